"""One change of a server at a time: a lock on the server itself, so that it holds for every host.

It is an advisory lock of the session (PostgreSQL's documentation, Advisory Locks): whoever holds
it loses it with the session, so nothing stays behind a killed process. Advisory locks are counted
for each database apart, while settings and roles are the server's: who has taken the lock looks
for one in another database, and gives way. Two that do so at the same moment both give way.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.errors import ServerBeingChangedError
from pgrecall.postgres.connection import Connection

CHANGE_LOCK = int.from_bytes(b"pgrecall", "big")
_HIGH, _LOW = CHANGE_LOCK >> 32, CHANGE_LOCK & 0xFFFFFFFF
_MAXIMUM_TRIES = 3


class LockHolder(msgspec.Struct, frozen=True):
    """A session that holds the lock. What this role may not see of it is empty or None."""

    pid: int
    application_name: str
    role: str
    address: str
    connected_at: datetime | None

    def describe(self) -> str:
        """For messages: process 4711 (pgrecall wal enable), role postgres, since ..."""
        words = [f"process {self.pid}"]
        if self.application_name:
            words[0] += f" ({self.application_name})"
        if self.role:
            words.append(f"role {self.role}")
        if self.address:
            words.append(f"from {self.address}")
        if self.connected_at is not None:
            words.append(f"connected since {self.connected_at:%Y-%m-%d %H:%M:%S%z}")
        return ", ".join(words)


def take_change_lock(connection: Connection) -> None:
    """Take the lock for the life of the session; raises ServerBeingChangedError, PostgresError."""
    found: list[LockHolder] = []
    for _ in range(_MAXIMUM_TRIES):
        is_taken = bool(
            connection.value("SELECT pg_catalog.pg_try_advisory_lock(%s::int8)", (CHANGE_LOCK,))
        )
        found = lock_holders(connection)
        if is_taken and not found:
            return
        if is_taken:
            connection.rows("SELECT pg_catalog.pg_advisory_unlock(%s::int8)", (CHANGE_LOCK,))
        if found:
            break
    who = "; ".join(holder.describe() for holder in found) or "a session that has just ended"
    ending = f"SELECT pg_terminate_backend({found[0].pid})" if found else "pg_terminate_backend"
    raise ServerBeingChangedError(
        f"somebody else is changing {connection.where} at this moment: {who}",
        hint=f"wait until that has ended, then look at the plan anew; if nobody is there any more,"
        f" {ending} ends the session",
    )


def lock_holders(connection: Connection) -> list[LockHolder]:
    """Other sessions that hold the lock, in whatever database; raises PostgresError."""
    rows = connection.rows(
        "SELECT l.pid, coalesce(a.application_name, ''), coalesce(a.usename, ''),"
        " coalesce(a.client_hostname, pg_catalog.host(a.client_addr), ''), a.backend_start"
        " FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
        " AND l.classid = %s::oid AND l.objid = %s::oid"
        " AND l.pid <> pg_catalog.pg_backend_pid() ORDER BY a.backend_start, l.pid",
        (_HIGH, _LOW),
    )
    return [LockHolder(*row) for row in rows]
