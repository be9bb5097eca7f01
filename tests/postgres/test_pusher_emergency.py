"""A real server whose store is gone: WAL is given up, and every missing byte is accounted for."""

from __future__ import annotations

from pathlib import Path

from pgrecall.model.wal_files import WalFile
from pgrecall.repository.gaps import DROPPED, read_gaps
from tests.postgres.test_prefetch import Agent, with_agent
from tests.postgres.test_wal_push_fetch import Archiving, start_archiving
from tests.support.postgresql import PostgresServer, ServerFactory

MIB = 1 << 20


def fill(server: PostgresServer, count: int) -> list[str]:
    names = []
    for _ in range(count):
        server.sql("SELECT pg_logical_emit_message(true, 'test', repeat('x', 1000))")
        names.append(str(server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")))
        server.sql("SELECT pg_switch_wal()")
    return names


def last_archived(server: PostgresServer) -> str:
    return str(server.value("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver"))


def accounted(archiving: Archiving, names: list[str]) -> tuple[list[str], list[str]]:
    """Which segments are archived, and which are recorded as dropped."""
    archive = archiving.archive()
    gaps = read_gaps(archive.store, archive.server, archive.generation.number)
    assert {gap.cause for gap in gaps} <= {DROPPED}
    dropped = {gap.start for gap in gaps}
    return (
        [name for name in names if archive.has(name)],
        [name for name in names if WalFile(name).start(archive.segment_bytes) in dropped],
    )


def test_wal_that_is_given_up_is_recorded_to_the_byte(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    archiving = start_archiving(pg_factory, tmp_path, segment_mib=1)
    server = archiving.server
    with_agent(archiving, tmp_path)
    with archiving.config.open("a", encoding="utf-8") as file:
        file.write(f"drop_wal_above_bytes = {4 * MIB}\n")
    agent = Agent(archiving, server.pgdata)
    repository, away = Path(archiving.repository.path), tmp_path / "away"
    with agent.at_work():
        before = fill(server, 3)
        server.wait_until(lambda: last_archived(server) >= before[-1], "archiving works")
        repository.rename(away)
        names = fill(server, 12)
        server.wait_until(lambda: last_archived(server) >= names[7], "the surplus is given up")
        assert "DROPPED" in server.log
        assert agent.pusher.facts()["dropped_unrecorded"]
        away.rename(repository)
        # More WAL before the store is known to be back would be a reason to give more up.
        server.wait_until(lambda: not agent.pusher.facts()["failing"], "the store is back")
        # PostgreSQL asks again a minute after three failures, or when a segment is finished.
        server.wait_until(
            lambda: fill(server, 1) and last_archived(server) >= names[-1], "the rest is archived"
        )
        server.wait_until(
            lambda: agent.pusher.facts()["dropped_unrecorded"] == 0, "the gaps are recorded"
        )
    archived, dropped = accounted(archiving, [*before, *names])
    assert set(archived) >= set(before)
    assert set(dropped) >= {names[0]}
    assert set(archived) | set(dropped) == {*before, *names}
    assert names[-1] in archived
