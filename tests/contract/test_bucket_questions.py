"""What a real S3 server tells of a bucket, and what becomes of what it does not tell."""

from __future__ import annotations

import os

import pytest

from pgrecall.check.bucket import bucket_findings
from pgrecall.model.bucket_facts import QUESTIONS, BucketFacts
from pgrecall.settings import RepositorySettings
from pgrecall.store.bucket_questions import ask_bucket
from tests.support.object_servers import (
    ADMIN_ACCESS_KEY,
    ADMIN_SECRET_KEY,
    S3Server,
    free_ports,
)
from tests.support.recording_proxy import Answer, recording_proxy
from tests.support.s3_admin import administer
from tests.support.s3_fixtures import S3Settings

ADMIN = {"THE_ACCESS_KEY": ADMIN_ACCESS_KEY, "THE_SECRET_KEY": ADMIN_SECRET_KEY}
LOCK = (
    "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>"
    "<DefaultRetention><Mode>COMPLIANCE</Mode><Days>30</Days></DefaultRetention>"
    "</Rule></ObjectLockConfiguration>"
)
POLICY = (
    '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*",'
    '"Action":"s3:GetObject","Resource":"arn:aws:s3:::%s/*"}]}'
)
#: What the test server does not implement: query, and Amazon's answer.
AMAZON = {
    "versioning=": "<VersioningConfiguration><Status>Suspended</Status>"
    "<MfaDelete>Enabled</MfaDelete></VersioningConfiguration>",
    "publicAccessBlock=": "<PublicAccessBlockConfiguration>"
    "<BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>true</IgnorePublicAcls>"
    "<BlockPublicPolicy>true</BlockPublicPolicy>"
    "<RestrictPublicBuckets>true</RestrictPublicBuckets></PublicAccessBlockConfiguration>",
    "logging=": "<BucketLoggingStatus><LoggingEnabled><TargetBucket>logs</TargetBucket>"
    "</LoggingEnabled></BucketLoggingStatus>",
    "object-lock=": LOCK.replace("<Days>30</Days>", "<Years>2</Years>"),
}


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """One with object lock; its name."""
    name = f"locked-{os.urandom(4).hex()}"
    administer(s3.endpoint, f"/{name}", also={"x-amz-bucket-object-lock-enabled": "true"})
    return name


def test_a_bucket_that_is_protected_says_so(
    s3: S3Server, s3_settings: S3Settings, bucket: str
) -> None:
    settings = s3_settings(bucket=bucket)
    plain = ask_bucket(settings, ADMIN)
    assert plain is not None
    assert (plain.versioning, plain.object_lock, plain.is_immutable) == ("enabled", True, False)
    administer(s3.endpoint, f"/{bucket}", "object-lock=", LOCK.encode())
    administer(s3.endpoint, f"/{bucket}", "policy=", (POLICY % bucket).encode())
    assert ask_bucket(settings, ADMIN) == BucketFacts(
        versioning="enabled",
        mfa_delete=False,
        object_lock=True,
        lock_mode="COMPLIANCE",
        lock_days=30,
        is_public=True,
        logs_access=False,
        encryption="none",
        untold={"public access block": "NotImplemented"},
    )


def test_what_is_refused_is_not_told_and_no_failure(
    s3_settings: S3Settings, secret_environment: dict[str, str]
) -> None:
    """With the rights of a writer of objects, and no more."""
    facts = ask_bucket(s3_settings(), secret_environment)
    assert facts is not None
    assert (facts.versioning, facts.object_lock, facts.is_immutable) == ("off", None, None)
    assert set(facts.untold.values()) == {"AccessDenied"}
    assert {"object lock", "encryption"} <= facts.untold.keys()
    findings = bucket_findings(facts, "s3", "fail")
    assert "fail" not in {one.severity for one in findings}
    assert "object lock (AccessDenied)" in findings[-1].message


def test_answers_of_amazon_are_understood(
    s3: S3Server, s3_settings: S3Settings, secret_environment: dict[str, str]
) -> None:
    with recording_proxy(s3.endpoint) as proxy:
        proxy.falsify = lambda request, body: next(
            (Answer(200, content=text.encode()) for query, text in AMAZON.items()
             if request.endswith(query)), body,
        )  # fmt: skip
        facts = ask_bucket(s3_settings(endpoint=proxy.endpoint), secret_environment)
    assert facts is not None
    assert (facts.versioning, facts.mfa_delete) == ("suspended", True)
    assert (facts.blocks_public_access, facts.logs_access) == (True, True)
    assert (facts.lock_mode, facts.lock_days, facts.is_immutable) == ("COMPLIANCE", 730, True)


def test_one_that_is_away_is_asked_once(
    s3_settings: S3Settings, secret_environment: dict[str, str]
) -> None:
    settings = s3_settings(endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
    facts = ask_bucket(settings, secret_environment)
    assert facts is not None
    assert tuple(facts.untold) == QUESTIONS
    assert all("not reached" in why for why in facts.untold.values())


def test_others_are_not_asked(s3_settings: S3Settings) -> None:
    assert ask_bucket(RepositorySettings(name="r", store="local", path="/r"), {}) is None
    facts = ask_bucket(s3_settings(access_key="", secret_key=""), {})
    assert facts is not None
    assert tuple(facts.untold) == QUESTIONS
    assert facts.is_immutable is None


@pytest.mark.parametrize(
    ("facts", "code", "severity"),
    [
        (BucketFacts(versioning="off"), "bucket-unprotected", "warn"),
        (BucketFacts(versioning="enabled"), "bucket-protection", "ok"),
        (
            BucketFacts(
                versioning="enabled", object_lock=True, lock_mode="GOVERNANCE", lock_days=7
            ),
            "bucket-protection", "ok",
        ),
        (BucketFacts(is_public=True, blocks_public_access=False), "bucket-public", "fail"),
        (BucketFacts(is_public=False, blocks_public_access=False), "bucket-open", "warn"),
        (BucketFacts(untold={"versioning": "AccessDenied"}), "bucket-untold", "ok"),
    ],
)  # fmt: skip
def test_what_it_means(facts: BucketFacts, code: str, severity: str) -> None:
    (finding,) = bucket_findings(facts, "s3", "fail")
    assert (finding.code, finding.severity) == (code, severity)
