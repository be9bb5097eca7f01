"""What is asked after a put that was answered with success, and what is concluded from it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest

from pgrecall.errors import PutNotKeptError
from pgrecall.store.base import Store
from pgrecall.store.opening import open_store
from tests.support.object_servers import S3Server
from tests.support.recording_proxy import Answer, RecordingProxy, recording_proxy
from tests.support.s3_fixtures import S3Settings

CONTENT = os.urandom(3000)
OTHER = b"x" * len(CONTENT)


def md5(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


class FakeService:
    """Answers in place of the store: a put with one tag, a look with another, reads with bytes."""

    def __init__(self, proxy: RecordingProxy) -> None:
        self.proxy = proxy
        self.put_tag = self.tag = md5(CONTENT)
        self.held = CONTENT
        proxy.falsify = self._answer

    def _answer(self, request: str, body: bytes) -> Answer:
        if request.startswith("PUT"):
            return Answer(200, self.put_tag)
        return Answer(200, self.tag, self.held)

    def asked(self) -> list[str]:
        """The methods since this was asked last."""
        found = [request.partition(" ")[0] for request in self.proxy.requests]
        self.proxy.requests.clear()
        return found


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[RecordingProxy]:
    with recording_proxy(s3.endpoint) as proxy:
        yield proxy


@pytest.fixture
def service(proxy: RecordingProxy) -> FakeService:
    return FakeService(proxy)


@pytest.fixture
def store(
    proxy: RecordingProxy, s3_settings: S3Settings, secret_environment: dict[str, str]
) -> Store:
    settings = s3_settings(endpoint=proxy.endpoint)
    return open_store(settings, secret_environment, is_anchored=False)


def test_the_real_server_is_asked_once(proxy: RecordingProxy, store: Store) -> None:
    assert store.put("a", [CONTENT[:10], CONTENT[10:]]) is True
    assert [request.partition(" ")[0] for request in proxy.requests] == ["PUT", "HEAD"]


def test_the_md5_of_what_was_sent_is_proof(service: FakeService, store: Store) -> None:
    service.put_tag = '"0x8DC1"'  # whatever the put was answered with
    assert store.put("a", [CONTENT]) is True
    assert service.asked() == ["PUT", "HEAD"]


def test_a_tag_that_only_looks_like_an_md5_is_looked_into_once(
    service: FakeService, store: Store
) -> None:
    """SSE-KMS: the object is right, its tag is no digest, and is none from then on."""
    service.put_tag = service.tag = md5(b"something else")
    assert store.put("a", [CONTENT]) is True
    assert service.asked() == ["PUT", "HEAD", "GET"]
    assert store.put("b", [CONTENT]) is True
    assert service.asked() == ["PUT", "HEAD"]


def test_with_kms_in_the_settings_no_tag_is_a_digest(
    service: FakeService, s3_settings: S3Settings, secret_environment: dict[str, str]
) -> None:
    settings = s3_settings(endpoint=service.proxy.endpoint, sse="aws:kms")
    store = open_store(settings, secret_environment, is_anchored=False)
    service.put_tag = service.tag = md5(b"something else")
    assert store.put("a", [CONTENT]) is True
    assert service.asked() == ["PUT", "HEAD"]


@pytest.mark.parametrize(
    ("put_tag", "tag", "asked"),
    [
        ('"0x8DC1"', '"0x8DC1"', ["PUT", "HEAD"]),
        ('"0x8DC1"', '"0x8DC2"', ["PUT", "HEAD", "GET"]),
        ('"0x8DC1"', "", ["PUT", "HEAD", "GET"]),
    ],
)
def test_other_tags_have_to_be_the_same(
    service: FakeService, store: Store, put_tag: str, tag: str, asked: list[str]
) -> None:
    service.put_tag, service.tag = put_tag, tag
    assert store.put("a", [CONTENT]) is True
    assert service.asked() == asked


@pytest.mark.parametrize("tag", [md5(OTHER), '"0x8DC2"', ""])
def test_other_bytes_of_the_same_size_are_found(
    service: FakeService, store: Store, tag: str
) -> None:
    service.held, service.tag = OTHER, tag
    with pytest.raises(PutNotKeptError, match="holds other bytes") as caught:
        store.put("a/object", [CONTENT])
    assert not caught.value.retryable
    assert "move a/object out of the repository" in caught.value.hint


def test_what_was_cut_off_is_named_with_both_sizes(service: FakeService, store: Store) -> None:
    service.held = CONTENT[:1234]
    with pytest.raises(PutNotKeptError, match=r"acknowledged 3000 bytes .* holds 1234 bytes"):
        store.put("a", [CONTENT])
