"""Object stores: TLS, credentials, outages, missing buckets, and what services get wrong."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import obstore
import pytest

from pgrecall.errors import (
    ObjectMissingError,
    SettingsError,
    StoreAbsentError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
    UnsafeStoreError,
)
from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.base import Store
from pgrecall.store.opening import ANCHOR, open_store
from pgrecall.store.probing import probe_store
from tests.support.certificates import Certificates, make_certificates
from tests.support.object_servers import (
    BUCKET,
    READER_ACCESS_KEY,
    READER_SECRET_KEY,
    S3Server,
    s3_server,
)
from tests.support.s3_fixtures import S3Settings

Environment = dict[str, str]


def all_calls(store: Store) -> list[Callable[[], object]]:
    """Each method of a store, on a key that is not there."""
    return [
        lambda: store.head("a/b"),
        lambda: store.read("a/b"),
        lambda: store.reader("a/b"),
        lambda: list(store.list("a/")),
        lambda: store.children("a/"),
        lambda: store.put("a/b", [b"x"]),
        lambda: store.delete("a/b"),
    ]


# --- TLS -----------------------------------------------------------------------


def test_tls_with_an_authority_of_ones_own(
    s3: S3Server,
    s3_settings: S3Settings,
    certificates: Certificates,
    secret_environment: Environment,
) -> None:
    settings = s3_settings(
        endpoint=s3.https_endpoint, allow_http=False, ca_file=str(certificates.authority)
    )
    store = open_store(settings, secret_environment, is_anchored=False)
    assert len(probe_store(store, "")) == 5
    assert store.put("big", [os.urandom(3_000_000)]) is True


@pytest.mark.parametrize("has_other_authority", [False, True])
def test_tls_with_a_strange_authority_is_refused(
    s3: S3Server,
    s3_settings: S3Settings,
    secret_environment: Environment,
    tmp_path: Path,
    has_other_authority: bool,
) -> None:
    other = make_certificates(tmp_path / "other").authority if has_other_authority else ""
    settings = s3_settings(endpoint=s3.https_endpoint, allow_http=False, ca_file=str(other))
    store = open_store(settings, secret_environment, is_anchored=False)
    for call in all_calls(store):
        with pytest.raises(StoreError) as caught:
            call()
        assert not isinstance(caught.value, ObjectMissingError)


# --- credentials -----------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["THE_ACCESS_KEY", "THE_SECRET_KEY"])
def test_wrong_credentials_are_refused_and_not_repeated(
    s3_settings: S3Settings, secret_environment: Environment, wrong: str
) -> None:
    environment = {**secret_environment, wrong: "AKwrongwrongwrong"}
    store = open_store(s3_settings(retries=5), environment, is_anchored=False)
    for call in all_calls(store):
        with pytest.raises(StoreRefusedError) as caught:
            call()
        error = caught.value
        assert not error.retryable
        text = f"{error} {error.hint} {error.__cause__}"
        assert environment["THE_SECRET_KEY"] not in text
        assert "Debug source" not in str(error)
        assert "AKwrong" not in str(error)


def test_a_reader_may_not_write(s3_settings: S3Settings, secret_environment: Environment) -> None:
    writer = open_store(s3_settings(), secret_environment, is_anchored=False)
    writer.put("a/object", [b"x"])
    environment = {"THE_ACCESS_KEY": READER_ACCESS_KEY, "THE_SECRET_KEY": READER_SECRET_KEY}
    reader = open_store(s3_settings(), environment, is_anchored=False)
    assert reader.read("a/object") == b"x"
    with pytest.raises(StoreRefusedError, match="cannot write a/b"):
        reader.put("a/b", [b"x"])
    with pytest.raises(StoreRefusedError, match="cannot delete a/object"):
        reader.delete("a/object")
    assert writer.read("a/object") == b"x"


def test_a_secret_that_is_not_there_is_named(s3_settings: S3Settings) -> None:
    with pytest.raises(SettingsError, match="THE_SECRET_KEY"):
        open_store(s3_settings(), {"THE_ACCESS_KEY": "x"})
    with pytest.raises(SettingsError, match="go together"):
        open_store(s3_settings(secret_key=""), {"THE_ACCESS_KEY": "x"})


# --- outages -------------------------------------------------------------------------


def test_a_server_that_is_gone_is_never_an_empty_store(
    tmp_path: Path, s3_settings: S3Settings, secret_environment: Environment
) -> None:
    with s3_server(tmp_path) as server:
        settings = s3_settings(endpoint=server.endpoint)
        store = open_store(settings, secret_environment)
        store.put(ANCHOR, [b"{}"])
        store.put("a/object", [b"x"])
        assert [info.key for info in store.list("a/")] == ["a/object"]
        with store.reader("a/object") as reader:
            server.stop()
            with pytest.raises(StoreError) as caught:
                reader.read(0, 1)
            assert caught.value.retryable
        for call in all_calls(store):
            with pytest.raises(StoreError) as caught:
                call()
            assert type(caught.value) is StoreError
            assert caught.value.retryable
            assert "Debug source" not in str(caught.value)
        with pytest.raises(StoreError, match="tried 3 times"):
            open_store(settings.replace(retries=2), secret_environment).head("a/object")


def test_a_bucket_that_is_missing_is_no_empty_store(
    s3_settings: S3Settings, secret_environment: Environment
) -> None:
    store = open_store(s3_settings(bucket="missing"), secret_environment)
    for call in all_calls(store):
        with pytest.raises(StoreAbsentError):
            call()


def test_a_wrong_prefix_is_no_empty_repository(
    s3_settings: S3Settings, secret_environment: Environment
) -> None:
    right = open_store(s3_settings(), secret_environment)
    assert right.put(ANCHOR, [b"{}"]) is True
    assert right.head("a/b") is None
    assert list(right.list("a/")) == []
    wrong = open_store(s3_settings(prefix="mistyped"), secret_environment)
    for call in all_calls(wrong)[:5]:
        with pytest.raises(StoreAbsentError, match=ANCHOR):
            call()


def test_prefixes_keep_repositories_apart(
    s3_settings: S3Settings, secret_environment: Environment
) -> None:
    prefix = s3_settings().prefix
    one = open_store(s3_settings(prefix=f"{prefix}/one"), secret_environment, is_anchored=False)
    two = open_store(s3_settings(prefix=f"/{prefix}/one2/"), secret_environment, is_anchored=False)
    whole = open_store(s3_settings(), secret_environment, is_anchored=False)
    assert one.put("key", [b"1"]) is True
    assert two.put("key", [b"2"]) is True
    assert [info.key for info in one.list("")] == ["key"]
    assert one.children("") == ["key"]
    assert [info.key for info in whole.list("")] == ["one/key", "one2/key"]
    assert whole.children("") == ["one/", "one2/"]
    assert one.name == f"s3://{BUCKET}/{prefix}/one"


# --- settings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bucket": ""}, "needs a bucket"),
        ({"endpoint": "s3.example.com"}, "no URL"),
        ({"endpoint": "http://s3.example.com", "allow_http": False}, "no TLS"),
        ({"endpoint": "https://user:pw@s3.example.com"}, "credentials"),
        ({"ca_file": "/nowhere/ca.pem"}, "cannot read ca_file"),
        ({"store": "azure"}, "needs an account"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    s3_settings: S3Settings,
    secret_environment: Environment,
    changes: dict[str, str],
    problem: str,
) -> None:
    with pytest.raises(SettingsError, match=problem) as caught:
        open_store(s3_settings(**changes), secret_environment)
    assert "user:pw" not in str(caught.value)


# --- a service that misbehaves, or is asked for something special -----------------------


class Answers(BaseHTTPRequestHandler):
    """Answers requests with what the test put into ``answer``; remembers what was asked."""

    requests: list[tuple[str, str, dict[str, str], bytes]]
    answer: Callable[[str, str], tuple[int, dict[str, str], bytes]]
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.requests.append((self.command, self.path, headers, body))
        status, answered, content = type(self).answer(self.command, self.path)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **answered}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def service(
    answer: Callable[[str, str], tuple[int, dict[str, str], bytes]],
) -> Iterator[tuple[str, type[Answers]]]:
    handler = type("Handler", (Answers,), {"requests": [], "answer": staticmethod(answer)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


HEAD_OK = {"Last-Modified": "Sun, 22 Nov 2026 20:46:38 GMT", "ETag": '"e"'}


def keeps_one_byte(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    """Answers a put with success, and a look at any object with one byte."""
    return (200, {"ETag": '"e"'}, b"") if method == "PUT" else (200, HEAD_OK, b"x")


def _opened(settings: RepositorySettings, environment: Environment) -> Store:
    return open_store(settings, environment, is_anchored=False)


def test_encryption_by_the_server_is_asked_for(
    s3_settings: S3Settings, secret_environment: Environment
) -> None:
    with service(keeps_one_byte) as (endpoint, handler):
        for sse, key in (("AES256", ""), ("aws:kms", "arn:key")):
            settings = s3_settings(endpoint=endpoint, sse=sse, sse_kms_key=key)
            assert _opened(settings, secret_environment).put("a", [b"x"]) is True
            method, _, headers, body = handler.requests[-2]
            assert (method, body) == ("PUT", b"x")
            assert headers["x-amz-server-side-encryption"] == sse
            assert headers.get("x-amz-server-side-encryption-aws-kms-key-id", "") == key
            assert headers["if-none-match"] == "*"


def test_a_session_token_is_sent_and_one_of_the_environment_is_not(
    s3_settings: S3Settings, secret_environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-somebody-else")
    with service(keeps_one_byte) as (endpoint, handler):
        _opened(s3_settings(endpoint=endpoint), secret_environment).put("a", [b"x"])
        assert "x-amz-security-token" not in handler.requests[-1][2]
        settings = s3_settings(endpoint=endpoint, session_token="env:TOKEN")
        _opened(settings, {**secret_environment, "TOKEN": "t0"}).put("a", [b"x"])
        assert handler.requests[-1][2]["x-amz-security-token"] == "t0"


def test_a_put_that_is_acknowledged_without_proof_is_looked_after(
    s3_settings: S3Settings, secret_environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failure catalogue: 200 and nothing, or not all of it, stored."""
    store = _opened(s3_settings(), secret_environment)
    real = obstore.put
    monkeypatch.setattr(obstore, "put", lambda *_, **__: {"e_tag": None, "version": None})
    with pytest.raises(UnsafeStoreError, match="holds nothing"):
        store.put("a", [b"12345"])

    def put_half(client: object, key: str, content: bytes, **options: object) -> object:
        real(client, key, content[:2], **options)  # type: ignore[call-overload]
        return {"e_tag": None, "version": None}

    monkeypatch.setattr(obstore, "put", put_half)
    with pytest.raises(UnsafeStoreError, match="holds 2 bytes"):
        store.put("b", [b"12345"])
    assert store.put("c", [b"12"]) is True


def test_an_answer_without_etag_is_no_success_over_the_wire(
    s3_settings: S3Settings, secret_environment: Environment
) -> None:
    with service(lambda method, _: (200 if method == "PUT" else 404, {}, b"")) as (endpoint, _):
        with pytest.raises(StoreError) as caught:
            _opened(s3_settings(endpoint=endpoint), secret_environment).put("a", [b"12345"])
        assert not isinstance(caught.value, ObjectMissingError)


@pytest.mark.parametrize(
    ("status", "code", "expected", "is_retryable"),
    [
        (500, "", StoreError, True),
        (503, "SlowDown", StoreError, True),
        (429, "", StoreError, True),
        (400, "InvalidRequest", StoreError, False),
        (400, "ExpiredToken", StoreRefusedError, False),
        (401, "", StoreRefusedError, False),
        (507, "", StoreFullError, False),
        (403, "QuotaExceeded", StoreFullError, False),
    ],
)
def test_answers_are_told_apart(
    s3_settings: S3Settings,
    secret_environment: Environment,
    status: int,
    code: str,
    expected: type[StoreError],
    is_retryable: bool,
) -> None:
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>" if code else ""
    with service(lambda *_: (status, {}, body.encode())) as (endpoint, handler):
        store = _opened(s3_settings(endpoint=endpoint), secret_environment)
        for call in (lambda: store.put("a", [b"x"]), lambda: store.read("a")):
            with pytest.raises(StoreError) as caught:
                call()
            assert type(caught.value) is expected
            assert caught.value.retryable is is_retryable
        assert len(handler.requests) == 2  # obstore itself does not try again


def test_a_conflict_is_not_a_taken_key(
    s3_settings: S3Settings, secret_environment: Environment
) -> None:
    """S3: 409 while another put of the key is under way, which may yet fail."""
    body = b"<Error><Code>ConditionalRequestConflict</Code><Message>m</Message></Error>"
    head = {"answer": (404, {}, b"")}

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        return (409, {}, body) if method == "PUT" else head["answer"]

    with service(answer) as (endpoint, _):
        store = _opened(s3_settings(endpoint=endpoint), secret_environment)
        with pytest.raises(StoreError) as caught:
            store.put("a", [b"x"])
        assert caught.value.retryable
        head["answer"] = (200, {**HEAD_OK, "Content-Length": "1"}, b"x")
        assert store.put("a", [b"x"]) is False


def test_a_service_that_overwrites_is_found_out(
    s3_settings: S3Settings, secret_environment: Environment
) -> None:
    """Some services accept If-None-Match and pay no attention to it."""
    objects: dict[str, bytes] = {}
    requests: list[tuple[str, str, dict[str, str], bytes]] = []

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        key = path.partition("?")[0]
        if method == "PUT":
            objects[key] = requests[-1][3]
            return 200, {"ETag": '"e"'}, b""
        if method == "DELETE":
            objects.pop(key, None)
            return 204, {}, b""
        if key not in objects:
            return 404, {}, b""
        length = {"Content-Length": str(len(objects[key]))}
        return 200, {**HEAD_OK, **length}, objects[key]

    with service(answer) as (endpoint, handler):
        handler.requests = requests
        store = _opened(s3_settings(endpoint=endpoint), secret_environment)
        with pytest.raises(UnsafeStoreError, match="overwrote"):
            probe_store(store, "probes/")
    assert objects == {}


def test_a_service_that_hangs_runs_into_the_timeout(
    s3_settings: S3Settings, secret_environment: Environment
) -> None:
    is_over = threading.Event()

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        is_over.wait(30)
        return 500, {}, b""

    with service(answer) as (endpoint, _):
        settings = s3_settings(endpoint=endpoint, timeout_seconds=0.3)
        with pytest.raises(StoreError) as caught:
            _opened(settings, secret_environment).head("a")
        is_over.set()
    assert caught.value.retryable


def test_the_bucket_goes_into_the_host_name(
    s3_settings: S3Settings, secret_environment: Environment
) -> None:
    with service(lambda *_: (404, {}, b"")) as (endpoint, handler):
        port = endpoint.rpartition(":")[2]
        settings = s3_settings(endpoint=f"http://localhost:{port}", path_style=False)
        # backups.localhost is this host (RFC 6761), where the resolver knows it.
        try:
            _opened(settings, secret_environment).head("a")
        except StoreError as error:
            assert "dns" in str(error.__cause__).lower()
        else:
            (_, path, headers, _) = handler.requests[-1]
            assert headers["host"] == f"{BUCKET}.localhost:{port}"
            assert not path.startswith(f"/{BUCKET}")
