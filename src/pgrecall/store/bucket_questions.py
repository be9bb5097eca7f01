"""Ask an S3 service what protects a bucket: six small requests that obstore has no calls for.

They are signed here (AWS Signature Version 4, "Authenticating Requests: Using the Authorization
Header"). What is refused, not implemented or not reached is "not told", with the reason, and
never an error: a service owes nobody an answer.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import re
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from pgrecall.model.bucket_facts import QUESTIONS, BucketFacts
from pgrecall.settings.references import resolve_secret
from pgrecall.settings.sections import RepositorySettings

_EMPTY = hashlib.sha256(b"").hexdigest()
_LONGEST_ANSWER = 4 << 20
_MOST_SECONDS = 20.0
_DEFAULT_REGION = "us-east-1"
_DAYS_OF_YEAR = 365
_ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
_CONTENTS = re.compile(r"<Contents>(.*?)</Contents>", re.DOTALL)


class _Credentials(NamedTuple):
    access_key: str
    secret_key: str
    token: str


class _Answer(NamedTuple):
    """``code``: the service's own word for an error, empty for success."""

    status: int
    code: str
    text: str


class _UntoldError(Exception):
    """The store does not answer; its text says why."""


class _AwayError(_UntoldError):
    """It cannot be reached: no use in asking the next question."""


def ask_bucket(settings: RepositorySettings, environment: Mapping[str, str]) -> BucketFacts | None:
    """What the service of an S3 repository tells; None for a directory.

    Raises SettingsError when a secret is not where the settings say.
    """
    if settings.store == "local":
        return None
    if settings.store != "s3":
        return BucketFacts(untold=dict.fromkeys(QUESTIONS, f"not asked of {settings.store}"))
    credentials = _credentials(settings, environment)
    if credentials is None:
        why = "not asked: its credentials come from a role or another provider, not from settings"
        return BucketFacts(untold=dict.fromkeys(QUESTIONS, why))
    bucket = _Bucket(settings, environment, credentials)
    facts: dict[str, Any] = {}
    untold: dict[str, str] = {}
    for question, (query, read) in _QUESTIONS.items():
        try:
            facts.update(read(bucket.ask(query)))
        except _AwayError as error:
            asked = list(_QUESTIONS)
            untold |= dict.fromkeys(asked[asked.index(question) :], str(error))
            break
        except _UntoldError as error:
            untold[question] = str(error)
    return BucketFacts(**facts, untold=untold)


def frozen_objects(
    settings: RepositorySettings, environment: Mapping[str, str], prefix: str
) -> list[str] | None:
    """Keys below ``prefix`` that lie in an archive class and are not thawed; None: not told.

    One request for each thousand objects. Raises SettingsError.
    """
    credentials = _credentials(settings, environment) if settings.store == "s3" else None
    if credentials is None:
        return None
    bucket = _Bucket(settings, environment, credentials)
    base = "".join(f"{part}/" for part in settings.prefix.split("/") if part)
    found: list[str] = []
    token = ""
    while True:
        query = f"list-type=2&prefix={quote(base + prefix, safe='')}"
        if token:
            query = f"continuation-token={quote(token, safe='')}&{query}"
        try:
            answer = bucket.ask(query, {"x-amz-optional-object-attributes": "RestoreStatus"})
        except _UntoldError:
            return None
        for entry in _CONTENTS.findall(answer.text):
            key = (_tag(entry, "Key") or "").removeprefix(base)
            if _tag(entry, "StorageClass") in _ARCHIVE_CLASSES and not _is_thawed(entry):
                found.append(key)
        token = _tag(answer.text, "NextContinuationToken") or ""
        if not token:
            return found


def _is_thawed(entry: str) -> bool:
    is_done = (_tag(entry, "IsRestoreInProgress") or "").lower() == "false"
    return is_done and _tag(entry, "RestoreExpiryDate") is not None


def _credentials(
    settings: RepositorySettings, environment: Mapping[str, str]
) -> _Credentials | None:
    if settings.access_key or settings.secret_key:
        return _Credentials(
            resolve_secret(settings.access_key, environment),
            resolve_secret(settings.secret_key, environment),
            resolve_secret(settings.session_token, environment),
        )
    found = _Credentials(
        environment.get("AWS_ACCESS_KEY_ID", ""),
        environment.get("AWS_SECRET_ACCESS_KEY", ""),
        environment.get("AWS_SESSION_TOKEN", ""),
    )
    return found if found.access_key and found.secret_key else None


class _Bucket:
    def __init__(
        self,
        settings: RepositorySettings,
        environment: Mapping[str, str],
        credentials: _Credentials,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        named = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        self._region = settings.region or named or _DEFAULT_REGION
        url = urlsplit(settings.endpoint or f"https://s3.{self._region}.amazonaws.com")
        self._is_tls = url.scheme == "https"
        self._host = url.netloc if settings.path_style else f"{settings.bucket}.{url.netloc}"
        base = url.path.rstrip("/")
        self._path = f"{base}/{settings.bucket}" if settings.path_style else f"{base}/"

    def ask(self, query: str, also: Mapping[str, str] | None = None) -> _Answer:
        """Send GET ?query (sorted and encoded), with headers ``also``.

        Raises _UntoldError when it is not reached, or refuses.
        """
        path = quote(self._path, safe="/-_.~")
        headers = self._signed(path, query, also or {})
        seconds = min(self._settings.timeout_seconds, _MOST_SECONDS)
        try:
            connection = self._connect(seconds)
            try:
                connection.request("GET", f"{path}?{query}", headers=headers)
                response = connection.getresponse()
                text = response.read(_LONGEST_ANSWER).decode("utf-8", "replace")
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise _AwayError(f"not reached: {error}") from error
        code = _tag(text, "Code") if response.status >= 300 else ""
        answer = _Answer(response.status, code or "", text)
        if response.status >= 300 and code not in _ABSENT:
            raise _UntoldError(code or f"HTTP {response.status}")
        return answer

    def _connect(self, seconds: float) -> http.client.HTTPConnection:
        if not self._is_tls:
            return http.client.HTTPConnection(self._host, timeout=seconds)
        trust = ssl.create_default_context(cafile=self._settings.ca_file or None)
        return http.client.HTTPSConnection(self._host, timeout=seconds, context=trust)

    def _signed(self, path: str, query: str, also: Mapping[str, str]) -> dict[str, str]:
        now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        headers = {"host": self._host, "x-amz-content-sha256": _EMPTY, "x-amz-date": now, **also}
        if self._credentials.token:
            headers["x-amz-security-token"] = self._credentials.token
        names = ";".join(sorted(headers))
        lines = [f"{name}:{headers[name]}" for name in sorted(headers)]
        request = "\n".join(["GET", path, query, *lines, "", names, _EMPTY])
        scope = f"{now[:8]}/{self._region}/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        key = b"AWS4" + self._credentials.secret_key.encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        said = "\n".join(["AWS4-HMAC-SHA256", now, scope, digest])
        signature = hmac.digest(key, said.encode(), "sha256").hex()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._credentials.access_key}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}"
        )
        return headers


# --- what the answers say ------------------------------------------------------------

# Errors that are answers: there is none.
_ABSENT = frozenset(
    {
        "ObjectLockConfigurationNotFoundError",
        "NoSuchPublicAccessBlockConfiguration",
        "NoSuchBucketPolicy",
        "ServerSideEncryptionConfigurationNotFoundError",
    }
)


def _tag(text: str, name: str) -> str | None:
    found = re.search(rf"<{name}>([^<]{{0,2000}})</{name}>", text)
    return found[1].strip() if found else None


def _versioning(answer: _Answer) -> dict[str, object]:
    state = (_tag(answer.text, "Status") or "off").lower()
    return {
        "versioning": state if state in {"enabled", "suspended"} else "off",
        "mfa_delete": (_tag(answer.text, "MfaDelete") or "").lower() == "enabled",
    }


def _object_lock(answer: _Answer) -> dict[str, object]:
    if answer.code or (_tag(answer.text, "ObjectLockEnabled") or "").lower() != "enabled":
        return {"object_lock": False}
    days = int(_tag(answer.text, "Days") or 0)
    years = int(_tag(answer.text, "Years") or 0)
    return {
        "object_lock": True,
        "lock_mode": _tag(answer.text, "Mode") or "",
        "lock_days": days + years * _DAYS_OF_YEAR,
    }


def _public_access_block(answer: _Answer) -> dict[str, object]:
    names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    blocks = [(_tag(answer.text, name) or "").lower() == "true" for name in names]
    return {"blocks_public_access": not answer.code and all(blocks)}


def _policy_status(answer: _Answer) -> dict[str, object]:
    return {
        "is_public": not answer.code and (_tag(answer.text, "IsPublic") or "").lower() == "true"
    }


def _logging(answer: _Answer) -> dict[str, object]:
    return {"logs_access": bool(_tag(answer.text, "TargetBucket"))}


def _encryption(answer: _Answer) -> dict[str, object]:
    return {"encryption": _tag(answer.text, "SSEAlgorithm") or "none"}


_QUESTIONS: dict[str, tuple[str, Callable[[_Answer], dict[str, object]]]] = {
    "versioning": ("versioning=", _versioning),
    "object lock": ("object-lock=", _object_lock),
    "public access block": ("publicAccessBlock=", _public_access_block),
    "policy status": ("policyStatus=", _policy_status),
    "access logging": ("logging=", _logging),
    "encryption": ("encryption=", _encryption),
}
