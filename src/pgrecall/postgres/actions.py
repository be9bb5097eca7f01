"""Small things asked of a running server: its clock, its positions, switches, restore points."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import segment_name
from pgrecall.postgres.connection import Connection


class ArchiverFacts(msgspec.Struct, frozen=True):
    """pg_stat_archiver at one moment; names are empty and times None when there was none."""

    archived_count: int
    last_archived_file: str
    last_archived_at: datetime | None
    failed_count: int
    last_failed_file: str
    last_failed_at: datetime | None


class WalSwitch(msgspec.Struct, frozen=True):
    """A finished segment: ``file`` is the name that goes to the archive, ``end`` where it ended.

    ``is_new`` False: nothing was written since the last switch, and ``file`` is the segment
    before the current one.
    """

    file: str
    end: Lsn
    is_new: bool = True


def server_clock(connection: Connection) -> datetime:
    """The server's clock now, aware, in UTC."""
    clock: datetime = connection.value("SELECT pg_catalog.clock_timestamp()")
    return clock


def insert_lsn(connection: Connection) -> Lsn:
    """The position behind the newest WAL: inserted on a primary, received or replayed else.

    A page cannot have a later LSN (fact 17).
    """
    text: str = connection.value(
        "SELECT CASE WHEN pg_catalog.pg_is_in_recovery()"
        " THEN GREATEST(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())"
        " ELSE pg_catalog.pg_current_wal_insert_lsn() END::pg_catalog.text"
    )
    return Lsn.parse(text)


def summarizer_lsn(connection: Connection) -> Lsn:
    """How far the WAL summarizer has read, 17 and later; 0 where it does not run."""
    text: str | None = connection.value(
        "SELECT pending_lsn::pg_catalog.text FROM pg_catalog.pg_get_wal_summarizer_state()"
    )
    return Lsn.parse(text or "0/0")


def replay_or_insert_lsn(connection: Connection) -> Lsn:
    """The position before which everything that a query sees was committed, or aborted."""
    text: str = connection.value(
        "SELECT CASE WHEN pg_catalog.pg_is_in_recovery()"
        " THEN pg_catalog.pg_last_wal_replay_lsn()"
        " ELSE pg_catalog.pg_current_wal_insert_lsn() END::pg_catalog.text"
    )
    return Lsn.parse(text)


def switch_wal(connection: Connection, *, message: str = "pgrecall") -> WalSwitch:
    """Finish the current segment, so that it is archived; on a primary only.

    A small message goes into the WAL first, because PostgreSQL does not switch away from a
    segment that holds nothing new. Raises PostgresRightsError without the right to switch.
    """
    connection.rows("SELECT pg_catalog.pg_logical_emit_message(false, 'pgrecall', %s)", (message,))
    text, file = connection.row(
        "SELECT end_lsn::pg_catalog.text, pg_catalog.pg_walfile_name(end_lsn)"
        " FROM pg_catalog.pg_switch_wal() AS end_lsn"
    )
    return WalSwitch(file=str(file), end=Lsn.parse(text))


def switch_quietly(connection: Connection) -> WalSwitch:
    """Finish the current segment, if it holds anything; on a primary only.

    Where nothing was written since the last switch, PostgreSQL returns the beginning of the
    current segment and does nothing (documentation of pg_switch_wal). Raises
    PostgresRightsError without the right to switch.
    """
    end = Lsn.parse(connection.value("SELECT pg_catalog.pg_switch_wal()::pg_catalog.text"))
    file, size = file_before(connection, end)
    return WalSwitch(file=file, end=end, is_new=end % size != 0)


def file_before(connection: Connection, lsn: int) -> tuple[str, int]:
    """The segment with the last byte before ``lsn`` on the server's timeline, and segment size.

    pg_walfile_name itself names the segment before at a border up to 16, the one behind from 17.
    """
    current, size = connection.row(
        "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()),"
        " bytes_per_wal_segment FROM pg_catalog.pg_control_init()"
    )
    return segment_name(int(current[:8], 16), lsn - 1, int(size)), int(size)


def create_restore_point(connection: Connection, name: str) -> Lsn:
    """Write a named restore point (up to 63 bytes) and return its position."""
    text: str = connection.value(
        "SELECT pg_catalog.pg_create_restore_point(%s)::pg_catalog.text", (name,)
    )
    return Lsn.parse(text)


def archiver_facts(connection: Connection) -> ArchiverFacts:
    """What the archiver did so far; the numbers may lag behind by half a second."""
    row = connection.row(
        "SELECT archived_count, last_archived_wal, last_archived_time,"
        " failed_count, last_failed_wal, last_failed_time FROM pg_catalog.pg_stat_archiver"
    )
    return ArchiverFacts(
        archived_count=int(row[0]),
        last_archived_file=row[1] or "",
        last_archived_at=row[2],
        failed_count=int(row[3]),
        last_failed_file=row[4] or "",
        last_failed_at=row[5],
    )
