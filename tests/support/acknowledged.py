"""Writers that remember which of their commits the server has acknowledged."""

from __future__ import annotations

import threading
from typing import Self

import psycopg

from tests.support.postgresql import PostgresServer


class Writers:
    """``count`` sessions that commit numbered rows one after the other until they cannot.

    ``acknowledged`` holds the numbers whose commit came back; rows that were sent
    and not answered may be there or not.
    """

    def __init__(self, server: PostgresServer, count: int = 4, table: str = "acknowledged") -> None:
        self.table = table
        self.acknowledged: list[int] = []
        self._server = server
        self._stop = threading.Event()
        server.sql(f"CREATE TABLE IF NOT EXISTS {table} (number bigint PRIMARY KEY, filler text)")
        self._threads = [
            threading.Thread(target=self._write, args=(number, count)) for number in range(count)
        ]

    def _write(self, number: int, step: int) -> None:
        with self._server.connect() as connection:
            try:
                while not self._stop.is_set():
                    connection.execute(
                        f"INSERT INTO {self.table} VALUES (%s, repeat('x', 300))", (number,)
                    )
                    self.acknowledged.append(number)
                    number += step
            except psycopg.OperationalError:
                return  # the server is gone: this commit was not acknowledged

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def missing_on(self, server: PostgresServer) -> list[int]:
        """Acknowledged numbers that a recovered server lacks."""
        there = {row[0] for row in server.sql(f"SELECT number FROM {self.table}")}
        return sorted(set(self.acknowledged) - there)
