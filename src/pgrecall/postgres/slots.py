"""The replication slots of a server: what they cost; one made ahead, and dropped again.

A slot that nobody reads keeps WAL without end. One that is made here reserves nothing until a
receiver connects (pg_create_physical_replication_slot, immediately_reserve false).

Source: PostgreSQL's documentation, pg_replication_slots, versions 13 to 18.
"""

from __future__ import annotations

import re
from datetime import datetime

import msgspec
from psycopg import sql

from pgrecall.errors import SlotError, UsageError
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.connection import Connection

LOST = "lost"
UNRESERVED = "unreserved"
PHYSICAL = "physical"

_NAME = re.compile(r"[a-z0-9_]{1,63}")


class SlotState(msgspec.Struct, frozen=True, kw_only=True):
    """One slot. ``kind`` is physical or logical.

    ``wal_status``: reserved, extended, unreserved (its WAL may be removed at the
    next checkpoint), lost (it is), or empty before the first use. ``retained_bytes``:
    WAL from its restart position to the server's; ``safe_wal_bytes``: what may still
    be written before it loses WAL (None: no limit is set, or it is lost).
    ``invalidation`` is PostgreSQL's reason (17 and newer).
    """

    name: str
    kind: str
    is_active: bool
    active_pid: int | None = None
    database: str = ""
    wal_status: str = ""
    restart_lsn: str = ""
    retained_bytes: int | None = None
    safe_wal_bytes: int | None = None
    inactive_since_at: datetime | None = None
    invalidation: str = ""

    @property
    def restart(self) -> Lsn | None:
        """The oldest WAL that the slot keeps; None when it keeps none."""
        return Lsn.parse(self.restart_lsn) if self.restart_lsn else None


def check_slot_name(name: str) -> str:
    """``name`` if PostgreSQL takes it for a slot; raises UsageError."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} is no name of a replication slot",
            hint="lower-case letters, digits and underscores, at most 63",
        )
    return name


def list_slots(connection: Connection) -> list[SlotState]:
    """Every slot by name; raises PostgresError."""
    nothing = sql.SQL("NULL")
    is_new = connection.major >= 17
    query = sql.SQL(
        "SELECT slot_name, slot_type, active, active_pid, coalesce(database, ''),"
        " coalesce(wal_status, ''), coalesce(restart_lsn::text, ''),"
        " pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()"
        " THEN coalesce(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())"
        " ELSE pg_catalog.pg_current_wal_lsn() END, restart_lsn)::bigint,"
        " safe_wal_size, {inactive}, {reason} FROM pg_catalog.pg_replication_slots"
        " ORDER BY slot_name"
    ).format(
        inactive=sql.SQL("inactive_since") if is_new else nothing,
        reason=sql.SQL("coalesce(invalidation_reason, '')") if is_new else sql.SQL("''"),
    )
    # The columns stand in the order of the fields.
    fields = SlotState.__struct_fields__
    return [SlotState(**dict(zip(fields, row, strict=True))) for row in connection.rows(query)]


def slot_state(connection: Connection, name: str) -> SlotState | None:
    """One slot; None when there is none of that name. Raises PostgresError."""
    return next((slot for slot in list_slots(connection) if slot.name == name), None)


def make_slot(connection: Connection, name: str) -> None:
    """Make a physical slot that reserves nothing yet; raises PostgresError."""
    connection.rows(
        "SELECT pg_catalog.pg_create_physical_replication_slot(%s, false)",
        (check_slot_name(name),),
    )


def drop_idle_slot(connection: Connection, name: str) -> None:
    """Drop a slot that nobody uses; raises SlotError when somebody does or there is none.

    Also raises PostgresError, where somebody begins to use it at this moment.
    """
    found = slot_state(connection, name)
    if found is None:
        raise SlotError(
            f"{connection.where} has no replication slot {name!r}",
            hint="pgrecall wal slots lists them",
        )
    if found.is_active:
        raise SlotError(
            f"the replication slot {name!r} is in use by process {found.active_pid}",
            hint="end what uses it first (a standby, a receiver); nothing was dropped",
        )
    connection.rows("SELECT pg_catalog.pg_drop_replication_slot(%s)", (name,))


def slot_keep_bytes(connection: Connection) -> int | None:
    """max_slot_wal_keep_size in bytes; None: unlimited, a slot can fill the disk."""
    megabytes = int(
        connection.value(
            "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'"
        )
    )
    return None if megabytes < 0 else megabytes << 20


def synchronous_state(connection: Connection, walsender_pid: int) -> str:
    """sync_state of one walsender: async, potential, sync, quorum; empty when it is not there."""
    rows = connection.rows(
        "SELECT coalesce(sync_state, '') FROM pg_catalog.pg_stat_replication WHERE pid = %s",
        (walsender_pid,),
    )
    return str(rows[0][0]) if rows else ""


def chosen_walsender(connection: Connection, application_name: str) -> bool:
    """True when commits wait for a walsender of that name."""
    return bool(
        connection.value(
            "SELECT count(*) FROM pg_catalog.pg_stat_replication"
            " WHERE application_name = %s AND sync_state IN ('sync', 'quorum')",
            (application_name,),
        )
    )


def hanging_levels(levels: dict[str, str]) -> list[str]:
    """Where commits would hang with a receiver that applies nothing: remote_apply (fact 9)."""
    return [where for where, level in levels.items() if level == "remote_apply"]


def weaker_levels(levels: dict[str, str]) -> list[str]:
    """Where an acknowledged commit need not be on the receiver's disk, with its level."""
    weaker = ("remote_write", "local", "off")
    return [f"{level} for {where}" for where, level in levels.items() if level in weaker]


def commit_levels(connection: Connection) -> dict[str, str]:
    """Where synchronous_commit is set, and to what: the server, its databases, its roles.

    What a session sets for itself is not seen.
    """
    levels = {
        "the server": str(
            connection.value(
                "SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'synchronous_commit'"
            )
        )
    }
    rows = connection.rows(
        "SELECT coalesce('database ' || d.datname, ''), coalesce('role ' || r.rolname, ''),"
        " pg_catalog.split_part(c.setting, '=', 2)"
        " FROM pg_catalog.pg_db_role_setting s"
        " CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS c(setting)"
        " LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase"
        " LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole"
        " WHERE c.setting LIKE 'synchronous\\_commit=%'"
    )
    for database, role, level in rows:
        levels[" and ".join(part for part in (database, role) if part) or "every role"] = level
    return levels


def read_data_file(connection: Connection, name: str, limit_bytes: int) -> bytes | None:
    """A small file of the server's PGDATA; None when it is not there.

    Needs EXECUTE on pg_read_binary_file(text, bigint, bigint, boolean); raises PostgresRightsError.
    """
    content = connection.value(
        "SELECT pg_catalog.pg_read_binary_file(%s, 0, %s::bigint, true)", (name, limit_bytes)
    )
    return None if content is None else bytes(content)
