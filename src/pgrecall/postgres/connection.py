"""Connections to a server: how they are made, and how PostgreSQL's errors become ours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg
from psycopg import errors as psycopg_errors
from psycopg import sql

from pgrecall.errors import (
    PostgresError,
    PostgresRightsError,
    PostgresUnreachableError,
    UnsupportedServerError,
)
from pgrecall.settings import ServerSettings, resolve_secret

OLDEST_MAJOR = 13
NEWEST_MAJOR = 18

_CONNECT_TIMEOUT_SECONDS = 10
Query = LiteralString | sql.SQL | sql.Composed
Row = tuple[Any, ...]


class Connection:
    """One session of a server: autocommit, empty search_path, UTC, no timeouts of any kind.

    Safe to use from several threads: calls wait for each other. Everything raises
    PostgresUnreachableError when the session is lost, PostgresRightsError when the role may not
    do it, and PostgresError for every other error of the server.
    """

    __slots__ = ("_raw", "purpose", "where")

    def __init__(self, raw: psycopg.Connection[Row], *, where: str, purpose: str) -> None:
        self._raw = raw
        self.where = where
        self.purpose = purpose

    @property
    def version_num(self) -> int:
        """The server's version as PostgreSQL counts it, for example 180006."""
        return self._raw.info.server_version

    @property
    def major(self) -> int:
        """The server's major version, for example 18."""
        return self.version_num // 10000

    @property
    def backend_pid(self) -> int:
        """Process id of the server process that serves this session (on the server's host)."""
        return self._raw.info.backend_pid

    @property
    def is_closed(self) -> bool:
        """True when the session was closed or found lost; asks nothing of the server."""
        return self._raw.closed

    def rows(self, query: Query, parameters: Sequence[object] = ()) -> list[Row]:
        """Run one statement and return all its rows (none for a statement without result)."""
        try:
            # Without parameters psycopg leaves % alone and the statement may be of any kind.
            cursor = self._raw.execute(query, parameters or None)
            return cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            raise self._translated(error) from error

    def row(self, query: Query, parameters: Sequence[object] = ()) -> Row:
        """Run one statement that returns exactly one row."""
        rows = self.rows(query, parameters)
        if len(rows) != 1:
            raise PostgresError(f"{self.where} returned {len(rows)} rows where one was expected")
        return rows[0]

    def value(self, query: Query, parameters: Sequence[object] = ()) -> Any:
        """Run one statement that returns exactly one row, and return its first column."""
        return self.row(query, parameters)[0]

    def encrypted_password(self, role: str, password: str) -> str:
        """``password`` as a server stores it (SCRAM), for ALTER ROLE: it is not sent in plain."""
        try:
            stored = self._raw.pgconn.encrypt_password(
                password.encode(), role.encode(), b"scram-sha-256"
            )
        except psycopg.Error as error:
            raise self._translated(error) from error
        return stored.decode()

    def ping(self) -> None:
        """One round trip; raises PostgresUnreachableError when the session is lost."""
        self.rows("SELECT 1")

    def close(self) -> None:
        """End the session; may be called several times."""
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _translated(self, error: psycopg.Error) -> PostgresError:
        message = first_line(error)
        lost = self._raw.closed or isinstance(
            error, psycopg_errors.AdminShutdown | psycopg_errors.CrashShutdown
        )
        if lost:
            return PostgresUnreachableError(
                f"the session with {self.where} was lost ({self.purpose}): {message}",
                hint="look into the server's log; run the command again when the server is up",
            )
        if isinstance(error, psycopg_errors.InsufficientPrivilege):
            return PostgresRightsError(
                f"{self.where} refuses ({self.purpose}): {message}",
                hint="grant the role what it lacks; pgrecall check lists what is needed",
            )
        state = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
        return PostgresError(f"{self.where} answered with an error: {message}{state}")


def connect(
    server: ServerSettings,
    *,
    application_name: str,
    purpose: str,
    environment: Mapping[str, str] | None = None,
) -> Connection:
    """Open a session with ``server``.

    ``purpose`` says in error messages what the session was for. ``environment`` is where the
    password's ``env:`` reference is looked up (default: this process's). TCP keepalives find a
    dead peer within about a minute.

    Raises PostgresUnreachableError when there is no connection, PostgresRightsError when the
    server refuses the role, UnsupportedServerError for a version outside 13 to 18 or when a
    connection pooler answers (fact 18: it could give the backup's session to somebody else).
    """
    where = describe(server)
    password = resolve_secret(server.password, os.environ if environment is None else environment)
    options: dict[str, Any] = {
        "dbname": server.database,
        "port": server.port,
        "application_name": application_name,
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        "client_encoding": "utf8",
        "keepalives": 1,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "autocommit": True,
        "prepare_threshold": None,
    }
    for key, given in (("host", server.host), ("user", server.user), ("password", password)):
        if given:
            options[key] = given
    try:
        raw = psycopg.connect("", **options)
    except psycopg.Error as error:
        raise _refused(error, where, purpose) from error
    connection = Connection(raw, where=where, purpose=purpose)
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def describe(server: ServerSettings) -> str:
    """The server in words for messages: name, host, port, role and database, never a secret."""
    place = f"{server.host or 'the default socket'} port {server.port}"
    role = f", role {server.user}" if server.user else ""
    return f"server {server.name!r} ({place}, database {server.database}{role})"


def first_line(error: BaseException) -> str:
    """The first line of a message of libpq or the server, for messages of one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _prepare(connection: Connection) -> None:
    major = connection.major
    if not OLDEST_MAJOR <= major <= NEWEST_MAJOR:
        raise UnsupportedServerError(
            f"{connection.where} runs PostgreSQL {major}",
            hint=f"pgrecall supports PostgreSQL {OLDEST_MAJOR} to {NEWEST_MAJOR}",
        )
    if connection.value("SELECT pg_catalog.pg_backend_pid()") != connection.backend_pid:
        raise UnsupportedServerError(
            f"a connection pooler answers for {connection.where}",
            hint="set host and port to those of PostgreSQL itself, not of pgbouncer or its like",
        )
    settings = {
        "search_path": "",
        "timezone": "UTC",
        "datestyle": "ISO",
        "client_min_messages": "warning",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
    }
    if major >= 14:
        settings["idle_session_timeout"] = "0"
    if major >= 17:
        settings["transaction_timeout"] = "0"
    for name, value in settings.items():
        connection.rows("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))


def _refused(error: psycopg.Error, where: str, purpose: str) -> PostgresError:
    message = " ".join(str(error).split())
    refusals = ("28000", "28P01", "42501", "3D000")
    # libpq's own refusals carry no SQLSTATE.
    refused = "authentication failed" in message or "no password supplied" in message
    if refused or error.sqlstate in refusals:
        return PostgresRightsError(
            f"{where} refuses the connection for {purpose}: {message}",
            hint="check user, database and password of the server, and its pg_hba.conf",
        )
    return PostgresUnreachableError(
        f"cannot connect to {where} for {purpose}: {message}",
        hint="is PostgreSQL running, and are host (or socket directory) and port right?",
    )
