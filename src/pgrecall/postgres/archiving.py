"""What a server says of its archiving and its receivers, for ``wal status``.

Source: PostgreSQL's documentation, "Monitoring Database Activity", versions 13 to 18.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.errors import PostgresRightsError
from pgrecall.postgres.connection import Connection

READY = ".ready"


class PendingWal(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for the archiver (pg_wal/archive_status/\\*.ready).

    ``segments`` counts segments, ``files`` everything (history files too);
    ``oldest_at`` is when the first of them became ready, by the server's clock.
    """

    files: int
    segments: int
    oldest: str = ""
    oldest_at: datetime | None = None


class ReceiverState(msgspec.Struct, frozen=True, kw_only=True):
    """One session of pg_stat_replication; lags are NULL without the right to see them (pg_monitor).

    ``flush_lag_bytes``: what the server has flushed and the receiver not yet.
    """

    application_name: str
    slot: str
    state: str
    sync_state: str
    sent_lag_bytes: int | None = None
    flush_lag_bytes: int | None = None
    flush_lag_seconds: float | None = None
    reply_at: datetime | None = None


class WalPosition(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is: written to on a primary, received or replayed to on a standby.

    ``asked_at`` is the server's clock.
    """

    is_in_recovery: bool
    lsn: str
    segment_bytes: int
    asked_at: datetime


def wal_position(connection: Connection) -> WalPosition:
    """Ask for the position; raises PostgresError."""
    row = connection.row(
        "SELECT pg_catalog.pg_is_in_recovery(), (CASE WHEN pg_catalog.pg_is_in_recovery()"
        " THEN coalesce(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())"
        " ELSE pg_catalog.pg_current_wal_insert_lsn() END)::pg_catalog.text,"
        " (SELECT bytes_per_wal_segment FROM pg_catalog.pg_control_init()),"
        " pg_catalog.clock_timestamp()"
    )
    return WalPosition(
        is_in_recovery=bool(row[0]),
        lsn=str(row[1] or ""),
        segment_bytes=int(row[2]),
        asked_at=row[3],
    )


def pending_wal(connection: Connection) -> PendingWal | None:
    """What is ready and not archived; None when the role may not ask (it takes pg_monitor)."""
    try:
        rows = connection.rows(
            "SELECT name, modification FROM pg_catalog.pg_ls_archive_statusdir()"
            " WHERE name LIKE '%.ready' ORDER BY modification, name"
        )
    except PostgresRightsError:
        return None  # documented above
    names = [str(name).removesuffix(READY) for name, _ in rows]
    return PendingWal(
        files=len(names),
        segments=sum(len(name) == 24 for name in names),
        oldest=names[0] if names else "",
        oldest_at=rows[0][1] if rows else None,
    )


def receivers(connection: Connection) -> list[ReceiverState]:
    """Everybody who streams from this server, by name; raises PostgresError."""
    rows = connection.rows(
        "SELECT r.application_name, coalesce(s.slot_name, ''), coalesce(r.state, ''),"
        " coalesce(r.sync_state, ''), pg_catalog.pg_wal_lsn_diff(here.lsn, r.sent_lsn)::bigint,"
        " pg_catalog.pg_wal_lsn_diff(here.lsn, r.flush_lsn)::bigint,"
        " EXTRACT(EPOCH FROM r.flush_lag)::float8, r.reply_time"
        " FROM pg_catalog.pg_stat_replication AS r"
        " LEFT JOIN pg_catalog.pg_replication_slots AS s ON s.active_pid = r.pid,"
        " (SELECT CASE WHEN pg_catalog.pg_is_in_recovery()"
        " THEN pg_catalog.pg_last_wal_receive_lsn()"
        " ELSE pg_catalog.pg_current_wal_flush_lsn() END AS lsn) AS here ORDER BY 1, 2"
    )
    return [
        ReceiverState(
            application_name=str(row[0] or ""),
            slot=row[1],
            state=row[2],
            sync_state=row[3],
            sent_lag_bytes=max(0, row[4]) if row[4] is not None else None,
            flush_lag_bytes=max(0, row[5]) if row[5] is not None else None,
            flush_lag_seconds=row[6],
            reply_at=row[7],
        )
        for row in rows
    ]


def reset_archiver_statistics(connection: Connection) -> None:
    """Set the counters of pg_stat_archiver back; raises PostgresRightsError without the right."""
    connection.rows("SELECT pg_catalog.pg_stat_reset_shared('archiver')")
