"""The server that a standby follows, as a libpq connection string names it.

Source: PostgreSQL's documentation, "Standby Server Operation" and "Streaming
Replication Protocol", versions 13 to 18.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

import msgspec
import psycopg
from psycopg import conninfo as libpq

from pgrecall.errors import (
    PostgresError,
    PostgresRightsError,
    PostgresUnreachableError,
    UsageError,
)
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.connection import Connection, first_line
from pgrecall.postgres.slots import SlotState, slot_state

_CONNECT_TIMEOUT_SECONDS = 10
_OWNER_ONLY = 0o077


class UpstreamFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is to be followed. ``history`` is its timeline's history file, or empty.

    ``free_senders`` and ``free_slots``: how many more walsenders and slots it admits.
    ``conninfo`` is for primary_conninfo: without a password and without a database.
    """

    where: str
    conninfo: str
    version_num: int
    system_identifier: int
    timeline: int
    history: bytes
    is_in_recovery: bool
    wal_level: str
    free_senders: int
    free_slots: int
    slot: SlotState | None


class Sender(msgspec.Struct, frozen=True, kw_only=True):
    """One walsender that streams. ``lag_bytes``: written by the server, not replayed there."""

    pid: int
    sync_state: str
    replayed_to: str
    lag_bytes: int


def parse_upstream(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a URL or of keywords and values; raises UsageError.

    A password is refused: it would be seen in the list of processes, and again in
    postgresql.auto.conf. A password file must be there, and closed to others.
    """
    try:
        found = {name: str(value) for name, value in libpq.conninfo_to_dict(text).items()}
    except psycopg.ProgrammingError as error:
        # libpq's message may repeat the text, with a password in it.
        raise UsageError(
            "--primary is no connection string of libpq",
            hint="write postgresql://USER@HOST:PORT/postgres",
        ) from error
    if "password" in found:
        raise UsageError(
            "--primary holds a password, which everybody on this host can see",
            hint="put it into a password file (mode 0600) and add ?passfile=/path/of/it",
        )
    if not {"host", "hostaddr", "service"} & found.keys():
        raise UsageError(
            "--primary names no host",
            hint="write postgresql://USER@HOST:PORT/postgres; a socket directory as ?host=/run/dir",
        )
    if "passfile" not in found and environment.get("PGPASSFILE"):
        found["passfile"] = environment["PGPASSFILE"]
    if "passfile" in found:
        found["passfile"] = os.path.abspath(found["passfile"])
        _require_closed(found["passfile"])
    return found


def ask_upstream(
    parameters: Mapping[str, str], *, slot: str, application_name: str
) -> UpstreamFacts:
    """Connect twice, for SQL and for replication, and look; changes nothing.

    Raises PostgresUnreachableError, PostgresRightsError (the role, pg_hba.conf), PostgresError.
    """
    with connect_upstream(parameters, "looking at the primary") as connection:
        settings = {
            name: str(connection.value("SELECT pg_catalog.current_setting(%s)", (name,)))
            for name in ("wal_level", "max_wal_senders", "max_replication_slots")
        }
        senders = int(connection.value("SELECT count(*) FROM pg_catalog.pg_stat_replication"))
        slots = int(connection.value("SELECT count(*) FROM pg_catalog.pg_replication_slots"))
        is_in_recovery = bool(connection.value("SELECT pg_catalog.pg_is_in_recovery()"))
        found = slot_state(connection, slot) if slot else None
        user = str(connection.value("SELECT session_user::text"))
        where, version_num = connection.where, connection.version_num
    if int(settings["max_wal_senders"]) <= senders:
        raise PostgresError(
            f"{where} has no walsender to spare (max_wal_senders = {settings['max_wal_senders']})",
            hint="raise max_wal_senders there, which takes a restart",
        )
    system, timeline, history = _identify(parameters, where)
    kept = {name: value for name, value in parameters.items() if name != "dbname"}
    kept = {"user": user, "application_name": application_name, **kept}
    return UpstreamFacts(
        where=where,
        conninfo=libpq.make_conninfo("", **kept),
        version_num=version_num,
        system_identifier=system,
        timeline=timeline,
        history=history,
        is_in_recovery=is_in_recovery,
        wal_level=settings["wal_level"],
        free_senders=int(settings["max_wal_senders"]) - senders,
        free_slots=int(settings["max_replication_slots"]) - slots,
        slot=found,
    )


def connect_upstream(parameters: Mapping[str, str], purpose: str) -> Connection:
    """A session for SQL; raises PostgresUnreachableError, PostgresRightsError, UsageError."""
    raw = _open({"dbname": "postgres", **parameters}, purpose)
    info = raw.info
    where = f"the primary at {info.host} port {info.port}, role {info.user}"
    connection = Connection(raw, where=where, purpose=purpose)
    try:
        connection.rows("SELECT pg_catalog.set_config('search_path', '', false)")
    except BaseException:
        connection.close()
        raise
    return connection


def receiver_state(connection: Connection) -> str:
    """pg_stat_wal_receiver.status of a standby: streaming, waiting ...; empty without one."""
    rows = connection.rows("SELECT coalesce(status, '') FROM pg_catalog.pg_stat_wal_receiver")
    return str(rows[0][0]) if rows else ""


def sender_of(connection: Connection, application_name: str) -> Sender | None:
    """The walsender that streams to the standby of that name; None when there is none."""
    rows = connection.rows(
        "SELECT pid, coalesce(sync_state, ''), coalesce(replay_lsn::text, '0/0'),"
        " pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()"
        " THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END,"
        " coalesce(replay_lsn, '0/0'))::bigint"
        " FROM pg_catalog.pg_stat_replication"
        " WHERE application_name = %s AND state = 'streaming' AND replay_lsn IS NOT NULL"
        " ORDER BY backend_start DESC LIMIT 1",
        (application_name,),
    )
    if not rows:
        return None
    pid, sync_state, replayed, lag = rows[0]
    return Sender(
        pid=int(pid),
        sync_state=str(sync_state),
        replayed_to=str(Lsn.parse(str(replayed))),
        lag_bytes=max(0, int(lag)),
    )


def _identify(parameters: Mapping[str, str], where: str) -> tuple[int, int, bytes]:
    """IDENTIFY_SYSTEM and TIMELINE_HISTORY: proves that role and pg_hba.conf let a standby in."""
    with _open({**parameters, "replication": "true"}, "replication") as raw:
        try:
            row = raw.execute("IDENTIFY_SYSTEM").fetchall()[0]
            timeline, history = int(row[1]), b""
            if timeline > 1:
                answer = raw.execute(f"TIMELINE_HISTORY {timeline:d}".encode()).pgresult
                history = (answer.get_value(0, 1) if answer is not None else None) or b""
        except psycopg.Error as error:
            raise PostgresError(
                f"{where} does not answer as one that can be followed: {first_line(error)}"
            ) from error
    return int(row[0]), timeline, history


def _open(parameters: Mapping[str, str], purpose: str) -> psycopg.Connection[tuple[Any, ...]]:
    options: dict[str, Any] = {
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        **parameters,
        "application_name": "pgrecall standby build",
        "client_encoding": "utf8",
    }
    try:
        raw = psycopg.connect("", autocommit=True, prepare_threshold=None, **options)
    except psycopg.Error as error:
        message = " ".join(str(error).split())
        refused = ("pg_hba.conf", "authentication failed", "no password", "permission", "role ")
        if any(word in message for word in refused):
            raise PostgresRightsError(
                f"the primary refuses the connection for {purpose}: {message}",
                hint="the role needs LOGIN and REPLICATION, a line for replication in"
                " pg_hba.conf, and a password in the password file",
            ) from error
        raise PostgresUnreachableError(
            f"the primary cannot be reached for {purpose}: {message}",
            hint="is it running, and are host and port of --primary right?",
        ) from error
    if raw.pgconn.used_password and os.environ.get("PGPASSWORD"):
        raw.close()
        raise UsageError(
            "the password comes from PGPASSWORD, which the standby will not have",
            hint="put it into a password file (mode 0600) and add ?passfile=/path/of/it",
        )
    return raw


def _require_closed(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UsageError(
            f"the password file {path} cannot be read: {error.strerror}",
            hint="it must be readable for the user that the standby runs as",
        ) from error
    if stat.S_IMODE(mode) & _OWNER_ONLY:
        raise UsageError(
            f"the password file {path} is open to others, so libpq does not read it",
            hint=f"chmod 600 {path}",
        )
