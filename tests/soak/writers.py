"""Writers that go on through every crash, and know which commits were acknowledged."""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from tests.support.postgresql import PostgresServer

TABLE = "acknowledged"


class Writer:
    """Commits numbered rows, one transaction each; for one thread.

    ``acknowledged`` are numbers whose COMMIT was answered; ``in_doubt`` those whose
    connection went away before the answer: they may be there or not.
    """

    def __init__(self, server: PostgresServer, number: int) -> None:
        self.acknowledged: set[int] = set()
        self.in_doubt: set[int] = set()
        self._server = server
        self._next = number * 10_000_000
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer-{number}")

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def end(self) -> None:
        """Stop, after the commit that is under way; it must not hang."""
        self._stop.set()
        if self._thread.ident is None:
            return  # it never began
        self._thread.join(60)
        assert not self._thread.is_alive(), "a writer waits for a commit that never comes"

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._server.connect(connect_timeout=5) as connection:
                    self._write(connection)
            except psycopg.Error:
                self._stop.wait(0.05)  # the server is down, or starting

    def _write(self, connection: psycopg.Connection[Any]) -> None:
        while not self._stop.is_set():
            self._next += 1
            try:
                connection.execute(
                    "INSERT INTO acknowledged VALUES (%s, repeat('x', 2000))", (self._next,)
                )
            except psycopg.Error:
                self.in_doubt.add(self._next)
                raise
            self.acknowledged.add(self._next)


def prepare(server: PostgresServer) -> None:
    """Make the table that writers write to."""
    server.sql(f"CREATE TABLE {TABLE} (number bigint PRIMARY KEY, filler text)")


def assert_kept(server: PostgresServer, writers: list[Writer]) -> int:
    """Every acknowledged row is there, and none that was never written; how many there are."""
    found = {row[0] for row in server.sql(f"SELECT number FROM {TABLE}")}
    acknowledged = set().union(*(writer.acknowledged for writer in writers))
    in_doubt = set().union(*(writer.in_doubt for writer in writers))
    lost = acknowledged - found
    assert not lost, f"{len(lost)} acknowledged rows are lost, the first is {min(lost)}"
    assert not found - acknowledged - in_doubt
    return len(found)
