"""A writer that knows what it committed, so that a recovery can be held to exactly that."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, Self

from psycopg import sql

from pgrecall.model.lsn import Lsn
from tests.support.postgresql import PostgresServer


class Acknowledged(NamedTuple):
    """A commit that the server has acknowledged; ``at`` is the time in its commit record.

    ``end`` is the insert LSN after the acknowledgement.
    """

    number: int
    xid: int
    at: datetime
    end: Lsn


class Oracle:
    """Commits numbered rows one after the other, each in a transaction of its own.

    The server must run with track_commit_timestamp.
    """

    def __init__(self, server: PostgresServer, table: str = "oracle") -> None:
        self.server = server
        self.table = table
        self.acknowledged: list[Acknowledged] = []
        self._connection = server.connect(autocommit=False)
        with self._connection.transaction():
            self._connection.execute(
                sql.SQL(f"CREATE TABLE {table} (number int PRIMARY KEY, filler text)")
            )

    def write(self, count: int = 1) -> Acknowledged:
        """Commit so many rows; returns the last."""
        for _ in range(count):
            number = len(self.acknowledged) + 1
            xid = self._value(
                f"INSERT INTO {self.table} VALUES (%s, repeat('x', 200))"
                " RETURNING pg_current_xact_id()::text::bigint",
                (number,),
            )
            self._connection.commit()
            self._note(number, xid)
        return self.acknowledged[-1]

    def abort(self) -> int:
        """Write and roll back; the xid of the aborted transaction."""
        xid = self._value(
            f"INSERT INTO {self.table} VALUES (-1, '') RETURNING pg_current_xact_id()::text::bigint"
        )
        self._connection.rollback()
        return _short(xid)

    def write_in_subtransaction(self) -> int:
        """Commit a row from within a savepoint; the xid of the subtransaction."""
        number = len(self.acknowledged) + 1
        xid = self._value("SELECT pg_current_xact_id()::text::bigint")
        with self._connection.transaction():
            self._connection.execute(
                sql.SQL(f"INSERT INTO {self.table} VALUES (%s, '')"),
                (number,),
            )
            child = self._value(
                f"SELECT xmin::text::bigint FROM {self.table} WHERE number = %s", (number,)
            )
        self._connection.commit()
        self._note(number, xid)
        return int(child)

    def _note(self, number: int, xid: int) -> None:
        """Keep what the server says of a commit that it has acknowledged."""
        at = self._value(f"SELECT pg_xact_commit_timestamp('{_short(xid)}'::xid)")
        end = Lsn.parse(self._value("SELECT pg_current_wal_insert_lsn()::text"))
        self._connection.rollback()
        self.acknowledged.append(Acknowledged(number, _short(xid), at, end))

    def _value(self, text: str, parameters: tuple[object, ...] | None = None) -> Any:
        row = self._connection.execute(sql.SQL(text), parameters).fetchone()
        assert row is not None
        return row[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def through(self, last: Acknowledged) -> list[int]:
        """Numbers up to and including a commit."""
        return [one.number for one in self.acknowledged if one.number <= last.number]

    def before(self, next_one: Acknowledged) -> list[int]:
        """Numbers before a commit."""
        return [one.number for one in self.acknowledged if one.number < next_one.number]

    def found_on(self, server: PostgresServer) -> list[int]:
        """Numbers of the rows that a recovered server holds, in order."""
        return [row[0] for row in server.sql(f"SELECT number FROM {self.table} ORDER BY number")]


def in_zone(moment: datetime, **offset: int) -> str:
    """A time as a user writes it, so far from UTC: ``in_zone(at, hours=-5, minutes=-30)``."""
    return moment.astimezone(timezone(timedelta(**offset))).isoformat(sep=" ")


def _short(xid: int) -> int:
    """The 32 bits of an xid that WAL and recovery targets know."""
    return xid & 0xFFFFFFFF
