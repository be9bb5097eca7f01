"""The pusher beside real servers: backlog, failover (fact 4), promotion, a former primary."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgrecall.errors import NotOwnerError
from pgrecall.model.wal_files import WalFile
from pgrecall.postgres.control import read_control
from pgrecall.repository.identity import (
    System,
    add_generation,
    add_owner,
    create_repository,
    latest_generation,
)
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import AgentSettings, RepositorySettings, ServerSettings, Settings
from pgrecall.store.opening import open_store, prepare_store
from pgrecall.wal.pusher import Pusher
from tests.support.postgresql import Installation, PostgresServer, ServerFactory
from tests.support.pusher_scene import at_work


class Archiving:
    """A repository, and pushers for as many data directories as there are."""

    def __init__(self, directory: Path, server: PostgresServer) -> None:
        self.directory = directory
        self.repository = RepositorySettings(
            name="one", store="local", path=str(directory / "repository"), retries=0
        )
        prepare_store(self.repository)
        store = open_store(self.repository, {}, is_anchored=False)
        now = datetime.now(UTC)
        create_repository(store, now)
        control = read_control(server.pgdata)
        major = server.installation.major
        system = System(control.system_identifier, major, control.segment_bytes, 8192)
        add_generation(store, "main", system, now)
        self._running = ExitStack()

    def pusher(self, server: PostgresServer) -> Pusher:
        place = self.directory / f"agent-{server.pgdata.name}"
        settings = Settings(
            servers={"main": ServerSettings(name="main", data_directory=str(server.pgdata))},
            repositories={"one": self.repository},
            agent=AgentSettings(directory=str(place)),
        )
        return Pusher(settings, settings.server("main"), {}, pgdata=str(server.pgdata))

    def start(self, server: PostgresServer) -> Pusher:
        pusher = self.pusher(server)
        self._running.enter_context(at_work(pusher))
        return pusher

    def stop(self) -> None:
        self._running.close()

    def archive(self) -> WalArchive:
        store = open_store(self.repository, {})
        generation = latest_generation(store, "main")
        assert generation is not None
        return WalArchive(store, "main", generation)

    def has(self, name: str) -> bool:
        return self.archive().has(name)


def make_primary(
    pg_factory: ServerFactory, installation: Installation | None = None
) -> PostgresServer:
    return pg_factory(installation, segment_mib=1, wal_keep_size="64MB", max_wal_size="200MB")


@pytest.fixture
def primary(pg_factory: ServerFactory) -> PostgresServer:
    return make_primary(pg_factory)


@pytest.fixture
def archiving(tmp_path: Path, primary: PostgresServer) -> Iterator[Archiving]:
    archiving = Archiving(tmp_path, primary)
    yield archiving
    archiving.stop()


def fill(server: PostgresServer, count: int = 1) -> list[str]:
    """So many segments more, finished with a switch; their names."""
    names = []
    for _ in range(count):
        server.sql("SELECT pg_logical_emit_message(true, 'test', repeat('x', 1000))")
        names.append(str(server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")))
        server.sql("SELECT pg_switch_wal()")
    return names


def make_standby(
    pg_factory: ServerFactory, primary: PostgresServer, directory: Path
) -> PostgresServer:
    primary.client("pg_basebackup", "-D", str(directory), "-X", "stream", "-c", "fast")
    standby = pg_factory.adopt(directory, primary.installation)
    (directory / "standby.signal").touch()
    standby.configure(primary_conninfo=f"host={primary.host} port={primary.port} user=postgres")
    standby.start()
    return standby


def wait_received(standby: PostgresServer, primary: PostgresServer) -> None:
    end = primary.value("SELECT pg_current_wal_lsn()")
    standby.wait_until(
        lambda: standby.value("SELECT pg_last_wal_receive_lsn() >= %s::pg_lsn", str(end)),
        "the standby has received everything",
    )


def promote(standby: PostgresServer) -> None:
    standby.sql("SELECT pg_promote()")
    standby.wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "it is promoted")


def test_a_backlog_is_pushed_ahead_and_confirmed(
    primary: PostgresServer, archiving: Archiving
) -> None:
    names = fill(primary, 20)
    pusher = archiving.start(primary)
    primary.wait_until(lambda: pusher.facts()["lag_segments"] == 0, "the backlog is archived")
    archive = archiving.archive()
    assert [name for name in names if not archive.has(name)] == []
    for name in names:
        result = pusher.push(f"pg_wal/{name}", str(primary.pgdata))
        assert archive.read(name) == (primary.pgdata / "pg_wal" / name).read_bytes()
        assert result.outcome == "created"
    begin = WalFile(names[0]).start(archive.segment_bytes)
    end = WalFile(names[-1]).start(archive.segment_bytes) + archive.segment_bytes
    assert archive.first_gap(archive.history(1), begin, end) is None


def test_wal_that_a_dead_primary_never_archived_comes_from_its_standby(
    pg_factory: ServerFactory, tmp_path: Path, installation: Installation
) -> None:
    """Fact 4: segments 3 to 5 were in no archive, and nobody noticed."""
    primary = make_primary(pg_factory, installation)
    archiving = Archiving(tmp_path, primary)
    try:
        check_failover(pg_factory, tmp_path, primary, archiving)
    finally:
        archiving.stop()


def check_failover(
    pg_factory: ServerFactory, tmp_path: Path, primary: PostgresServer, archiving: Archiving
) -> None:
    standby = make_standby(pg_factory, primary, tmp_path / "standby")
    before = fill(primary, 2)
    stop = threading.Event()
    pusher = archiving.pusher(primary)
    thread = threading.Thread(target=pusher.run, args=(stop,))
    thread.start()
    primary.wait_until(lambda: archiving.has(before[-1]), "the first are archived")
    stop.set()
    thread.join()
    primary.sql("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS number")
    lost = fill(primary, 3)
    wait_received(standby, primary)
    primary.kill9()
    assert not any(archiving.has(name) for name in lost)
    archiving.start(standby)
    promote(standby)
    standby.wait_until(lambda: all(archiving.has(name) for name in lost), "none is missing")
    after = fill(standby, 2)
    standby.wait_until(lambda: archiving.has(after[-1]), "the new timeline is archived")
    archive = archiving.archive()
    history = archive.history(2)
    begin = WalFile(before[0]).start(archive.segment_bytes)
    end = WalFile(after[-1]).start(archive.segment_bytes) + archive.segment_bytes
    assert archive.first_gap(history, begin, end) is None
    # The unfinished segment of the old timeline is no whole one.
    switch = history.switches[-1].end
    whole = [WalFile(found.name).start(archive.segment_bytes) for found in archive.segments(1)]
    assert all(start + archive.segment_bytes <= switch for start in whole)


def test_a_running_standby_archives_what_its_primary_does_not(
    pg_factory: ServerFactory, tmp_path: Path, primary: PostgresServer, archiving: Archiving
) -> None:
    standby = make_standby(pg_factory, primary, tmp_path / "standby")
    pusher = archiving.start(standby)
    names = fill(primary, 3)
    wait_received(standby, primary)
    current = str(primary.value("SELECT pg_walfile_name(pg_current_wal_lsn())"))
    # The last one is proven whole when the next has begun.
    primary.sql("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS number")
    standby.wait_until(lambda: all(archiving.has(name) for name in names), "they are archived")
    assert not archiving.has(current)
    archive = archiving.archive()
    for name in names:
        assert archive.read(name) == (primary.pgdata / "pg_wal" / name).read_bytes()
    # The primary, whose archiving works again, finds the same content.
    for name in names:
        other = archiving.pusher(primary).push(f"pg_wal/{name}", str(primary.pgdata))
        assert other.outcome == "already-stored"
    assert pusher.facts()["failing"] is False


def test_a_former_primary_that_became_a_standby_pushes_nothing_of_its_old_branch(
    pg_factory: ServerFactory, tmp_path: Path, primary: PostgresServer, archiving: Archiving
) -> None:
    standby = make_standby(pg_factory, primary, tmp_path / "standby")
    fill(primary, 1)
    wait_received(standby, primary)
    promote(standby)
    diverged = fill(primary, 3)
    primary.stop("immediate")
    (primary.pgdata / "standby.signal").touch()
    assert list((primary.pgdata / "pg_wal" / "archive_status").glob(f"{diverged[0]}*"))
    pusher = archiving.pusher(primary)
    # It has not replayed anything of the new timeline, and never will: it lies on another branch.
    primary.configure(primary_conninfo=f"host={standby.host} port={standby.port} user=postgres")
    primary.start(wait=False)
    stop = threading.Event()
    thread = threading.Thread(target=pusher.run, args=(stop,))
    thread.start()
    new = archiving.start(standby)
    names = fill(standby, 3)
    standby.wait_until(lambda: archiving.has(names[-1]), "the new primary archives")
    stop.set()
    thread.join()
    switch = archiving.archive().history(2).switches[-1].end
    size = read_control(standby.pgdata).segment_bytes
    beyond = [name for name in diverged if WalFile(name).start(size) + size > switch]
    assert beyond
    assert [name for name in beyond if archiving.has(name)] == []
    assert new.facts()["failing"] is False


def test_a_copy_that_takes_over_stops_the_original_within_a_second(
    primary: PostgresServer, archiving: Archiving
) -> None:
    pusher = archiving.start(primary)
    (first,) = fill(primary, 1)
    primary.wait_until(lambda: archiving.has(first), "the first is archived")
    store = open_store(archiving.repository, {})
    add_owner(store, "main", restore_id="copy", timeline=2, now=datetime.now(UTC))
    primary.wait_until(lambda: fill(primary, 1) and pusher.facts()["failing"], "it is refused")
    assert pusher.facts()["failure_code"] == "not-owner"
    refused = str(pusher.facts()["failure_file"])
    assert not archiving.has(refused)
    with pytest.raises(NotOwnerError):
        pusher.push(f"pg_wal/{refused}", str(primary.pgdata))
