"""Storage classes on a real S3 server: which objects get one, and what lies frozen."""

from __future__ import annotations

import re

import pytest

from pgrecall.further_errors import ObjectFrozenError
from pgrecall.settings import RepositorySettings
from pgrecall.store.bucket_questions import frozen_objects
from pgrecall.store.opening import open_store
from tests.support.object_servers import BUCKET, S3Server
from tests.support.recording_proxy import Answer, recording_proxy
from tests.support.s3_admin import administer
from tests.support.s3_fixtures import S3Settings

FROZEN = (
    b"<Error><Code>InvalidObjectState</Code><Message>Not valid for this class</Message></Error>"
)


def freeze(s3: S3Server, settings: RepositorySettings, key: str, name: str = "GLACIER") -> None:
    """Put an object into an archive class, as a lifecycle rule does."""
    path = f"/{BUCKET}/{settings.prefix}/{key}"
    administer(s3.endpoint, path, content=b"cold", also={"x-amz-storage-class": name})


def classes(s3: S3Server, settings: RepositorySettings) -> dict[str, str]:
    query = f"list-type=2&prefix={settings.prefix.replace('/', '%2F')}"
    listed = administer(s3.endpoint, f"/{BUCKET}", query, method="GET")
    entries = re.findall(r"<Key>([^<]*)</Key>.*?<StorageClass>(\w+)</StorageClass>", listed)
    return {key.removeprefix(settings.prefix + "/"): name for key, name in entries}


def test_large_objects_get_the_class_of_the_settings(
    s3: S3Server, s3_settings: S3Settings, secret_environment: dict[str, str]
) -> None:
    settings = s3_settings(storage_class="STANDARD_IA")
    store = open_store(settings, secret_environment, is_anchored=False)
    assert store.put("large", [bytes(128 << 10)])
    assert store.put("small", [bytes((128 << 10) - 1)])
    assert classes(s3, settings) == {"large": "STANDARD_IA", "small": "STANDARD"}
    assert store.read("large") == bytes(128 << 10)
    assert frozen_objects(settings, secret_environment, "") == []


def test_what_lies_in_an_archive_class_is_named(
    s3: S3Server, s3_settings: S3Settings, secret_environment: dict[str, str]
) -> None:
    settings = s3_settings()
    freeze(s3, settings, "backups/a/pack-0000")
    freeze(s3, settings, "backups/a/pack-0001", "DEEP_ARCHIVE")
    freeze(s3, settings, "backups/a/pack-0002", "GLACIER_IR")
    freeze(s3, settings, "backups/b/pack-0000")
    found = frozen_objects(settings, secret_environment, "backups/a/")
    assert found == ["backups/a/pack-0000", "backups/a/pack-0001"]
    assert frozen_objects(RepositorySettings(name="r", store="local", path="/r"), {}, "") is None
    assert frozen_objects(s3_settings(bucket="no-such"), secret_environment, "") is None


def test_pages_and_thawed_objects(
    s3: S3Server, s3_settings: S3Settings, secret_environment: dict[str, str]
) -> None:
    """Answers of Amazon: two pages, and a thawed object, one that is being thawed, a cold one."""
    settings = s3_settings()

    def entry(key: str, more: str) -> str:
        return (
            f"<Contents><Key>{settings.prefix}/{key}</Key><Size>1</Size>"
            f"<StorageClass>GLACIER</StorageClass>{more}</Contents>"
        )

    thawed = (
        "<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress>"
        "<RestoreExpiryDate>2026-12-24T00:00:00Z</RestoreExpiryDate></RestoreStatus>"
    )
    thawing = "<RestoreStatus><IsRestoreInProgress>true</IsRestoreInProgress></RestoreStatus>"
    first = entry("a", thawed) + entry("b", thawing) + "<NextContinuationToken>x+/=</NextContinu"
    pages = {"": first + "ationToken>", "continuation-token=x%2B%2F%3D&": entry("c", "")}
    with recording_proxy(s3.endpoint) as proxy:
        proxy.falsify = lambda request, body: Answer(
            200, content=pages[request.partition("?")[2].partition("list-type")[0]].encode()
        )
        found = frozen_objects(settings.replace(endpoint=proxy.endpoint), secret_environment, "")
    assert found == ["b", "c"]


def test_reading_a_frozen_object_says_what_it_is(
    s3: S3Server, s3_settings: S3Settings, secret_environment: dict[str, str]
) -> None:
    """It is neither absent nor a matter of rights."""
    with recording_proxy(s3.endpoint) as proxy:
        store = open_store(
            s3_settings(endpoint=proxy.endpoint), secret_environment, is_anchored=False
        )
        store.put("cold", [b"x"])
        proxy.falsify = lambda request, body: (
            Answer(403, content=FROZEN) if request.startswith("GET") else body
        )
        with pytest.raises(ObjectFrozenError, match="cold") as raised:
            store.read("cold")
    assert "restore-object" in raised.value.hint
