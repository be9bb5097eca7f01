"""Stores and proxies that say success and keep nothing, half, or something else.

A real server archives and is backed up through a TLS proxy in front of a real S3:
under TLS the payload is not signed, so the store takes what the proxy makes of it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pgrecall.errors import PutNotKeptError
from pgrecall.store.opening import open_store
from tests.e2e.test_s3 import S3Product, with_secret_files
from tests.support.agent_process import AgentScene
from tests.support.certificates import Certificates
from tests.support.object_servers import S3Server
from tests.support.postgresql import ServerFactory
from tests.support.recording_proxy import Answer, RecordingProxy, recording_proxy
from tests.support.s3_fixtures import S3Settings

Lie = Callable[[bytes], bytes | Answer]


def nothing(body: bytes) -> Answer:
    """Success with the very ETag that the store would have given."""
    return Answer(200, f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')


def half(body: bytes) -> bytes:
    """Cut off; the store itself is honest, and answers the ETag of what it got."""
    return body[: len(body) // 2]


def other(body: bytes) -> bytes:
    """As long as it should be, with one bit turned in the middle."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def full(body: bytes) -> Answer:
    """No room; nothing is kept."""
    said = b"<Error><Code>QuotaExceeded</Code><Message>no room</Message></Error>"
    return Answer(507, content=said)


def busy(body: bytes) -> Answer:
    return Answer(503, content=b"<Error><Code>SlowDown</Code><Message>later</Message></Error>")


DAMAGING = (half, other)


class Scene:
    """A server that archives through the proxy, which falsifies what a test says."""

    def __init__(self, product: S3Product, proxy: RecordingProxy, direct: S3Settings) -> None:
        self.product = product
        self.proxy = proxy
        #: The store itself, without the proxy.
        self.store = open_store(with_secret_files(direct(), product.secrets), {})

    def falsify(self, word: str, lie: Lie) -> threading.Event:
        """Every put of a key with ``word`` in it, until ``heal``; set when it has happened."""
        happened = threading.Event()

        def falsified(request: str, body: bytes) -> bytes | Answer:
            if not (request.startswith("PUT") and word in request):
                return body
            happened.set()
            return lie(body)

        self.proxy.falsify = falsified
        return happened

    def heal(self) -> None:
        self.proxy.falsify = lambda request, body: body
        self.proxy.before = self.proxy.after = lambda request: True

    def end_segment(self) -> str:
        """End the segment that is written now, and wait for nothing; its name."""
        server = self.product.server
        server.sql("SELECT pg_logical_emit_message(true, 'test', 'not empty')")
        name = str(server.value("SELECT pg_walfile_name(pg_current_wal_lsn())"))
        server.sql("SELECT pg_switch_wal()")
        return name

    def key_of(self, name: str) -> str:
        (key,) = (info.key for info in self.store.list("") if info.key.endswith("/" + name))
        return key

    def is_said(self, name: str) -> bool:
        """Whether PostgreSQL was told that the segment is archived."""
        status = self.product.server.pgdata / "pg_wal" / "archive_status"
        return (status / f"{name}.done").exists()

    def assert_whole(self, name: str) -> None:
        segment = self.product.server.pgdata / "pg_wal" / name
        assert self.product.archive().read(name) == segment.read_bytes()

    def wait_failed(self, name: str) -> None:
        """Until PostgreSQL was told that the segment could not be archived."""
        server = self.product.server
        server.wait_until(
            lambda: server.value(
                "SELECT count(*) FROM pg_stat_archiver WHERE last_failed_wal = %s", name
            ),
            f"{name} was refused",
        )

    def wait_archived(self, name: str) -> None:
        """Until PostgreSQL was told so, through a push of its own or the next segment's."""
        self.product.server.wait_until(lambda: self.is_said(name), f"{name} is archived")


@pytest.fixture
def scene(
    pg_factory: ServerFactory,
    s3: S3Server,
    s3_settings: S3Settings,
    certificates: Certificates,
    tmp_path: Path,
) -> Iterator[Scene]:
    with recording_proxy(s3.endpoint, certificates) as proxy:
        settings = s3_settings(
            endpoint=proxy.endpoint,
            allow_http=False,
            ca_file=str(certificates.authority),
            timeout_seconds=2.0,
            pack_bytes=1 << 18,
        )
        in_s3 = with_secret_files(settings, tmp_path / "k")
        kind = type("ThroughProxy", (S3Product,), {"in_s3": in_s3})
        product = kind.start(pg_factory, tmp_path, wal_keep_size="256MB")
        assert isinstance(product, S3Product)
        try:
            yield Scene(product, proxy, s3_settings)
        finally:
            product.close()


@pytest.fixture
def agent(scene: Scene) -> Iterator[AgentScene]:
    agents = AgentScene(scene.product)
    agents.start()
    try:
        yield agents
    finally:
        agents.close()


def go_through(lies: Sequence[Lie], scene: Scene) -> None:
    """Success is never said for what is not there whole, and PostgreSQL goes on afterwards."""
    for lie in lies:
        happened = scene.falsify("/wal/", lie)
        name = scene.end_segment()
        scene.wait_failed(name)
        assert happened.is_set(), lie
        assert not scene.is_said(name), lie
        scene.heal()
        if lie in DAMAGING:
            # The store is well, and the object is in the way: said, and not replaced.
            pushed = scene.product.cli(
                "wal", "push", str(scene.product.server.pgdata / "pg_wal" / name)
            )
            assert pushed.returncode == 11, (lie, pushed)
            key = scene.key_of(name)
            assert f"HINT: move {key} out of the repository" in pushed.stderr
            assert not scene.is_said(name), lie
            scene.store.delete(key)
        last = scene.end_segment()  # wakes the archiver, which waits for a minute otherwise
        for archived in (name, last):
            scene.wait_archived(archived)
            scene.assert_whole(archived)


def go_through_lost_answers(scene: Scene) -> None:
    """The store has the object, or never gets it, and nobody hears of it."""
    may_go, hung = threading.Event(), threading.Event()

    def is_put(request: str) -> bool:
        return request.startswith("PUT") and "/wal/" in request

    def hang(request: str) -> bool:
        if is_put(request):
            hung.set()
            may_go.wait(60)
        return not is_put(request)

    for hook, cut in (("before", hang), ("after", lambda request: not is_put(request))):
        setattr(scene.proxy, hook, cut)
        name = scene.end_segment()
        scene.wait_failed(name)
        # Where the put had taken effect a later try finds it, and not before.
        assert not scene.is_said(name) or scene.product.archive().has(name)
        may_go.set()
        scene.heal()
        last = scene.end_segment()
        for archived in (name, last):
            scene.wait_archived(archived)
            scene.assert_whole(archived)
    assert hung.is_set()


def prepared(scene: Scene) -> None:
    """A backup, and rows behind it; what belongs to the backup is archived."""
    scene.product.backup()
    scene.product.switch()
    scene.product.server.sql("CREATE TABLE rows AS SELECT generate_series(1, 500)")


def ended(scene: Scene, copy: Path) -> None:
    """More rows, and all of them are in a copy that is restored."""
    scene.product.server.sql("INSERT INTO rows SELECT generate_series(1, 500)")
    scene.product.switch()
    scene.product.restore(copy, start=True)
    assert scene.product.connected(copy).value("SELECT count(*) FROM rows") == 1000


def test_no_success_is_said_for_what_is_not_there(scene: Scene, tmp_path: Path) -> None:
    prepared(scene)
    go_through((nothing, half, other, full), scene)
    ended(scene, tmp_path / "copy")


def test_the_agent_says_no_success_for_what_is_not_there(
    scene: Scene, agent: AgentScene, tmp_path: Path
) -> None:
    prepared(scene)
    go_through((nothing, other, full), scene)
    go_through_lost_answers(scene)
    assert agent.agents[0].facts("pusher")["restarts"] == 0
    ended(scene, tmp_path / "copy")


def test_no_backup_is_listed_that_is_not_there(scene: Scene, tmp_path: Path) -> None:
    """A pack, a part of the manifest or the completion record is not kept as it was sent."""
    product = scene.product
    for word, lie in (
        *(("/pack-", nothing), ("/pack-", half), ("/pack-", other), ("/manifest", other)),
        *(("/complete.json", nothing), ("/complete.json", half)),
    ):
        happened = scene.falsify(word, lie)
        finished = product.cli("backup")
        scene.heal()
        assert happened.is_set()
        assert finished.returncode == PutNotKeptError.exit_status, (word, lie, finished)
        assert word in finished.stderr
        assert finished.stderr.count("HINT: ") == 1
        listed = json.loads(product.cli("backups", "list", "--json").stdout)
        assert listed["backups"] == [], (word, lie)
    prepared(scene)
    listed = json.loads(product.cli("backups", "list", "--json").stdout)
    assert len(listed["backups"]) == 1
    ended(scene, tmp_path / "copy")


def test_a_store_that_falters_is_asked_again(scene: Scene) -> None:
    """With tries left, a put that was not kept is sent again, and so is one that was too early."""
    product = scene.product
    product.repository = product.repository.replace(retries=4)
    text = product.config.read_text().replace("retry_seconds = 0", "retry_seconds = 30")
    product.write_config(text[: text.index("[repositories.")])
    for lie in (nothing, busy):
        times: list[str] = []

        def twice(body: bytes, lie: Lie = lie, times: list[str] = times) -> bytes | Answer:
            times.append("put")
            return lie(body) if len(times) <= 2 else body

        scene.falsify("/wal/", twice)
        scene.assert_whole(product.switch())
        assert len(times) > 2
    assert product.server.value("SELECT failed_count FROM pg_stat_archiver") == 0
