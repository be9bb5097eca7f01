"""Archive and recovery of real servers through an agent: pushed ahead, fetched ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgrecall.agent.listener import Listener
from pgrecall.settings import Settings, load_settings
from pgrecall.wal.agent_places import socket_path
from pgrecall.wal.fetch import FetchResult
from pgrecall.wal.outcomes import PushResult
from pgrecall.wal.prefetch import Fetcher
from pgrecall.wal.pusher import Pusher
from tests.postgres.test_wal_push_fetch import (
    NAME,
    Archiving,
    adopt,
    cold_copy,
    start_archiving,
)
from tests.support.postgresql import PostgresServer, ServerFactory


class Agent:
    """Pusher, fetcher and listener in threads, as the process of the agent has them."""

    def __init__(self, archiving: Archiving, pgdata: Path) -> None:
        settings: Settings = load_settings(str(archiving.config), {})
        server = settings.server(NAME)
        self.pusher = Pusher(settings, server, {}, pgdata=str(pgdata))
        self.fetcher = Fetcher(settings, server, {})
        self.listener = Listener(socket_path(settings, server), self, server=NAME)

    def push(self, path: str, pgdata: str) -> PushResult:
        return self.pusher.push(path, pgdata)

    def fetch(self, name: str, destination: str, pgdata: str) -> FetchResult | None:
        return self.fetcher.fetch(name, destination, pgdata)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        stop = threading.Event()
        threads = [
            threading.Thread(target=component.run, args=(stop,))
            for component in (self.pusher, self.fetcher, self.listener)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def with_agent(archiving: Archiving, directory: Path) -> None:
    """Name an agent's place in the configuration; it is found by its socket."""
    place = directory / "a"  # short: a socket's path has 107 bytes
    with archiving.config.open("a", encoding="utf-8") as file:
        file.write(f'[agent]\ndirectory = "{place}"\nsocket = "{directory}/s"\n')


def is_up(server: PostgresServer) -> bool:
    return not server.value("SELECT pg_is_in_recovery()")


def fill(archiving: Archiving, server: PostgresServer, count: int) -> str:
    last = ""
    for number in range(count):
        server.sql(f"INSERT INTO rows SELECT {number} FROM generate_series(1, 1000)")
        last = str(server.value("SELECT pg_walfile_name(pg_current_wal_lsn())"))
        server.sql("SELECT pg_switch_wal()")
    server.wait_until(lambda: archiving.archive().has(last), f"{last} archived")
    return last


def test_a_recovery_over_a_promotion_is_served_ahead(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    archiving = start_archiving(pg_factory, tmp_path, segment_mib=1)
    server = archiving.server
    with_agent(archiving, tmp_path)
    copy = cold_copy(archiving, tmp_path / "copy")
    second = cold_copy(archiving, tmp_path / "second")
    agent = Agent(archiving, server.pgdata)
    with agent.at_work():
        server.sql("CREATE TABLE rows (number int)")
        fill(archiving, server, 15)
        assert agent.listener.facts()["pushes"]
        server.stop()
    promoted = adopt(
        pg_factory,
        copy,
        archiving,
        archive_mode="on",
        archive_command=archiving.archive_command,
    )
    agent = Agent(archiving, copy)
    with agent.at_work():
        promoted.start()
        promoted.wait_until(lambda: is_up(promoted), "the end of recovery")
        assert int(str(agent.fetcher.facts()["fetched_prefetched_total"])) >= 10
        assert promoted.value("SELECT count(*) FROM rows") == 15_000
        fill(archiving, promoted, 15)
        promoted.stop()
    restored = adopt(pg_factory, second, archiving, recovery_target_timeline="2")
    agent = Agent(archiving, second)
    with agent.at_work():
        restored.start()
        restored.wait_until(lambda: is_up(restored), "the end of recovery")
        assert int(str(agent.fetcher.facts()["fetched_prefetched_total"])) >= 20
    assert restored.value("SELECT count(*) FROM rows") == 30_000


def test_an_outage_behind_the_agent_does_not_end_a_recovery(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    """Fact 3, through the agent: what was fetched ahead is no end of the archive."""
    archiving = start_archiving(pg_factory, tmp_path, segment_mib=1)
    server = archiving.server
    copy = cold_copy(archiving, tmp_path / "copy")
    server.sql("CREATE TABLE rows (number int)")
    fill(archiving, server, 30)
    server.stop()
    with_agent(archiving, tmp_path)
    restored = adopt(pg_factory, copy, archiving)
    agent = Agent(archiving, copy)
    away = tmp_path / "away"
    with agent.at_work():

        def go_away() -> bool:
            served = agent.fetcher.facts()["fetched_prefetched_total"]
            if served and not away.exists():
                Path(archiving.repository.path).rename(away)
            return not restored.is_running

        restored.start(wait=False)
        restored.wait_until(go_away, "the server has stopped")
        assert (copy / "recovery.signal").exists()
        assert "exit code 200" in restored.log
        away.rename(archiving.repository.path)
        restored.start()
        restored.wait_until(lambda: is_up(restored), "the end of recovery")
    assert restored.value("SELECT count(*) FROM rows") == 30_000
