"""How replication stands: who streams from a server, and from whom a standby streams.

Source: PostgreSQL's documentation, "Monitoring Database Activity" and "Recovery Control
Functions", versions 13 to 18. What the role may not see (it takes pg_monitor) is NULL.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from psycopg import sql

from pgrecall.postgres.connection import Connection


class StandbyState(msgspec.Struct, frozen=True, kw_only=True):
    """One session of pg_stat_replication. ``state`` is empty where the role may not see it.

    Bytes are from the server's position to what the standby has; seconds are what
    PostgreSQL has measured of late, None when nothing was written. A receiver that only
    stores has no replay.
    """

    name: str
    address: str
    slot: str
    state: str
    sync_state: str
    sent_lag_bytes: int | None = None
    write_lag_bytes: int | None = None
    flush_lag_bytes: int | None = None
    replay_lag_bytes: int | None = None
    write_lag_seconds: float | None = None
    flush_lag_seconds: float | None = None
    replay_lag_seconds: float | None = None
    reply_at: datetime | None = None


class ReceivingState(msgspec.Struct, frozen=True, kw_only=True):
    """What a standby receives and replays. ``status`` is empty when no receiver runs.

    ``is_wanted``: primary_conninfo is set. ``behind_bytes``: received, and not replayed;
    ``delay_seconds``: age of the last transaction that was replayed, 0 when all is
    replayed, None when none was.
    """

    is_wanted: bool
    status: str = ""
    sender: str = ""
    slot: str = ""
    received_lsn: str = ""
    replayed_lsn: str = ""
    behind_bytes: int | None = None
    delay_seconds: float | None = None
    is_paused: bool = False
    last_message_at: datetime | None = None


class ServerSide(msgspec.Struct, frozen=True, kw_only=True):
    """The server itself. ``synchronous``: synchronous_standby_names."""

    is_in_recovery: bool
    lsn: str
    asked_at: datetime
    synchronous: str


def server_side(connection: Connection) -> ServerSide:
    """Role and position; raises PostgresError."""
    row = connection.row(
        "SELECT pg_catalog.pg_is_in_recovery(), coalesce((CASE WHEN"
        " pg_catalog.pg_is_in_recovery() THEN coalesce(pg_catalog.pg_last_wal_receive_lsn(),"
        " pg_catalog.pg_last_wal_replay_lsn()) ELSE pg_catalog.pg_current_wal_lsn() END)::text,"
        " ''), pg_catalog.clock_timestamp(),"
        " pg_catalog.current_setting('synchronous_standby_names')"
    )
    return ServerSide(is_in_recovery=row[0], lsn=row[1], asked_at=row[2], synchronous=row[3])


def standby_states(connection: Connection) -> list[StandbyState]:
    """Everybody who streams from this server, by name; raises PostgresError."""
    lag = sql.SQL(", ").join(
        sql.SQL("pg_catalog.pg_wal_lsn_diff(here.lsn, r.{})::bigint").format(sql.Identifier(one))
        for one in ("sent_lsn", "write_lsn", "flush_lsn", "replay_lsn")
    )
    seconds = sql.SQL(", ").join(
        sql.SQL("EXTRACT(EPOCH FROM r.{})::float8").format(sql.Identifier(one))
        for one in ("write_lag", "flush_lag", "replay_lag")
    )
    query = sql.SQL(
        "SELECT coalesce(r.application_name, ''), coalesce(r.client_addr::text, ''),"
        " coalesce(s.slot_name::text, ''), coalesce(r.state, ''), coalesce(r.sync_state, ''),"
        " {lag}, {seconds}, r.reply_time FROM pg_catalog.pg_stat_replication AS r"
        " LEFT JOIN pg_catalog.pg_replication_slots AS s ON s.active_pid = r.pid,"
        " (SELECT CASE WHEN pg_catalog.pg_is_in_recovery()"
        " THEN coalesce(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())"
        " ELSE pg_catalog.pg_current_wal_lsn() END AS lsn) AS here ORDER BY 1, r.pid"
    ).format(lag=lag, seconds=seconds)
    # The columns stand in the order of the fields. A position that moved on meanwhile is no lag.
    fields = StandbyState.__struct_fields__
    found = []
    for row in connection.rows(query):
        values = dict(zip(fields, row, strict=True))
        for name in fields:
            if name.endswith("_bytes") and values[name] is not None:
                values[name] = max(0, values[name])
        found.append(StandbyState(**values))
    return found


def receiving_state(connection: Connection) -> ReceivingState:
    """What a standby receives and replays; raises PostgresError."""
    received, replayed, behind, delay, is_paused, conninfo = connection.row(
        "SELECT coalesce(here.received::text, ''), coalesce(here.replayed::text, ''),"
        " pg_catalog.pg_wal_lsn_diff(here.received, here.replayed)::bigint,"
        " CASE WHEN here.received <= here.replayed THEN 0 ELSE EXTRACT(EPOCH FROM"
        " pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp())::float8 END,"
        " pg_catalog.pg_is_wal_replay_paused(),"
        " coalesce(pg_catalog.current_setting('primary_conninfo', true), '') <> ''"
        " FROM (SELECT pg_catalog.pg_last_wal_receive_lsn() AS received,"
        " pg_catalog.pg_last_wal_replay_lsn() AS replayed) AS here"
    )
    rows = connection.rows(
        "SELECT coalesce(status, 'unknown'), coalesce(sender_host, ''),"
        " coalesce(sender_port::text, ''), coalesce(slot_name, ''), last_msg_receipt_time"
        " FROM pg_catalog.pg_stat_wal_receiver WHERE pid IS NOT NULL"
    )
    status, host, port, slot, message_at = rows[0] if rows else ("", "", "", "", None)
    return ReceivingState(
        is_wanted=conninfo,
        status=status,
        sender=f"{host} port {port}" if host else "",
        slot=slot,
        received_lsn=received,
        replayed_lsn=replayed,
        behind_bytes=None if behind is None else max(0, behind),
        delay_seconds=delay,
        is_paused=is_paused,
        last_message_at=message_at,
    )
