"""Server-wide settings: what counts, where it comes from, and ALTER SYSTEM.

Sources: PostgreSQL's documentation of pg_settings, pg_file_settings, ALTER SYSTEM and
allow_alter_system (17). postgresql.auto.conf is read last, so what ALTER SYSTEM writes there wins
over every other file; only the command line of the postmaster wins over it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from psycopg import sql

from pgrecall.errors import PostgresError, PostgresRightsError
from pgrecall.postgres.connection import Connection

AUTO_CONF = "postgresql.auto.conf"

_RELOAD_SECONDS = 30.0
_POLL_SECONDS = 0.02
# What SHOW says of archive_command while archive_mode is off, whatever it is (xlog.c).
_DISABLED = "(disabled)"


class Parameter(msgspec.Struct, frozen=True):
    """One setting of a server at one moment.

    ``value`` counts now, in the unit of pg_settings (``unit``, empty for none). ``source`` and
    ``source_file`` say where it comes from. ``file_value`` is what the files say, the last word of
    them, as it stands there; ``auto_value`` what postgresql.auto.conf says; both None where nothing
    is said. ``may_alter``: the role may change it by ALTER SYSTEM.
    """

    name: str
    value: str
    unit: str = ""
    source: str = "default"
    source_file: str = ""
    needs_restart: bool = False
    is_pending: bool = False
    file_value: str | None = None
    auto_value: str | None = None
    may_alter: bool = True


class ParameterFacts(msgspec.Struct, frozen=True):
    """Several settings by name, and whether they can be changed from here.

    ``has_files``: pg_file_settings could be read; without it ``file_value`` and ``auto_value`` are
    unknown. ``allows_alter``: False when the server's allow_alter_system is off.
    """

    by_name: dict[str, Parameter]
    has_files: bool
    allows_alter: bool
    config_file: str = ""


def parameter_facts(connection: Connection, names: Sequence[str]) -> ParameterFacts:
    """Ask for the settings ``names``; those that the version does not have are left out.

    Raises PostgresError. Reading pg_file_settings takes a superuser or a grant.
    """
    rows = connection.rows(
        "SELECT name, setting, reset_val, COALESCE(unit, ''), source, COALESCE(sourcefile, ''),"
        " context = 'postmaster', pending_restart"
        " FROM pg_catalog.pg_settings WHERE name = ANY (%s)",
        (list(names),),
    )
    files = _file_values(connection, names)
    granted = _alterable(connection, names)
    found = {}
    for name, setting, reset, unit, source, source_file, needs_restart, is_pending in rows:
        in_files, in_auto = (files or {}).get(name, (None, None))
        found[name] = Parameter(
            name=name,
            value=(reset or "") if setting == _DISABLED else setting,
            unit=unit,
            source=source,
            source_file=source_file,
            needs_restart=needs_restart,
            is_pending=is_pending,
            file_value=in_files,
            auto_value=in_auto,
            may_alter=name in granted,
        )
    allows = connection.value(
        "SELECT COALESCE(pg_catalog.current_setting('allow_alter_system', true), 'on')"
    )
    return ParameterFacts(
        by_name=found,
        has_files=files is not None,
        allows_alter=allows != "off",
        config_file=connection.value(
            "SELECT COALESCE((SELECT setting FROM pg_catalog.pg_settings"
            " WHERE name = 'config_file'), '')"
        ),
    )


def set_parameter(connection: Connection, name: str, value: str | None) -> None:
    """ALTER SYSTEM SET, or RESET where ``value`` is None; durable when it returns.

    It counts after reload() or a restart. Raises PostgresError, PostgresRightsError.
    """
    if value is None:
        statement = sql.SQL("ALTER SYSTEM RESET {}").format(sql.Identifier(name))
    else:
        statement = sql.SQL("ALTER SYSTEM SET {} = {}").format(
            sql.Identifier(name), sql.Literal(value)
        )
    connection.rows(statement)


def reload(connection: Connection) -> None:
    """Let the server read its configuration again; returns when this session has seen it.

    Raises PostgresError when that takes longer than half a minute, or the server refuses.
    """
    before = connection.value("SELECT pg_catalog.pg_conf_load_time()")
    if not connection.value("SELECT pg_catalog.pg_reload_conf()"):
        raise PostgresError(
            f"{connection.where} could not be told to read its configuration",
            hint="say SELECT pg_reload_conf(); its log says what is wrong",
        )
    deadline = time.monotonic() + _RELOAD_SECONDS
    while connection.value("SELECT pg_catalog.pg_conf_load_time()") == before:
        if time.monotonic() > deadline:
            raise PostgresError(
                f"{connection.where} did not read its configuration in {_RELOAD_SECONDS:g} seconds",
                hint="its log says why: an error in a file keeps all of them from being read",
            )
        time.sleep(_POLL_SECONDS)


def file_errors(connection: Connection) -> tuple[str, ...]:
    """Errors in the configuration files, one line each; none when they may not be read.

    A setting that waits for a restart is reported there as well, and is left out here.
    """
    try:
        rows = connection.rows(
            "SELECT f.sourcefile, f.sourceline, f.error FROM pg_catalog.pg_file_settings AS f"
            " LEFT JOIN pg_catalog.pg_settings AS s ON s.name = f.name"
            " WHERE f.error IS NOT NULL AND NOT COALESCE(s.pending_restart, false)"
        )
    except PostgresRightsError:
        return ()  # documented above
    return tuple(f"{path} line {line}: {error}" for path, line, error in rows)


def _file_values(
    connection: Connection, names: Sequence[str]
) -> dict[str, tuple[str | None, str | None]] | None:
    """Name to (last word of all files, last word of postgresql.auto.conf); None: not permitted."""
    try:
        rows = connection.rows(
            "SELECT name, setting, sourcefile FROM pg_catalog.pg_file_settings"
            " WHERE name = ANY (%s) ORDER BY seqno",
            (list(names),),
        )
    except PostgresRightsError:
        return None  # the caller is told by has_files
    found: dict[str, tuple[str | None, str | None]] = {}
    for name, setting, path in rows:
        auto = found.get(name, (None, None))[1]
        is_auto = path.rpartition("/")[2] == AUTO_CONF
        found[name] = (setting, setting if is_auto else auto)
    return found


def _alterable(connection: Connection, names: Sequence[str]) -> set[str]:
    if connection.value("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"):
        return set(names)
    if connection.major < 15:
        return set()  # only superusers may (GRANT ... ON PARAMETER is new in 15)
    rows = connection.rows(
        "SELECT name FROM pg_catalog.pg_settings WHERE name = ANY (%s)"
        " AND pg_catalog.has_parameter_privilege(name, 'ALTER SYSTEM')",
        (list(names),),
    )
    return {row[0] for row in rows}
