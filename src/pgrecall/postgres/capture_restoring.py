"""What bringing a capture back says to the server: what there is, ALTER SYSTEM, CREATE.

Sources: PostgreSQL's documentation of pg_settings, pg_file_settings, ALTER SYSTEM,
CREATE TABLESPACE, CREATE SUBSCRIPTION, and of the functions of replication slots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from psycopg import sql

from pgrecall.errors import PostgresError
from pgrecall.model.capture_restore import AUTO_CONF, KnownSetting
from pgrecall.model.captures import CapturedSlot, CapturedSubscription, CapturedTablespace
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.parameters import parameter_facts, set_parameter

#: Lists of names: a value in one literal would be taken for one name (variable_is_guc_list_quote
#: in dumputils.c).
_LISTS = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)
_ELEMENT = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,]*?))\s*(?:,|$)')


def known_settings(connection: Connection, names: Iterable[str]) -> dict[str, KnownSetting]:
    """Those of ``names`` that the server has. Raises PostgresRightsError when the role may not
    read pg_file_settings, PostgresError."""
    wanted = sorted(names)
    facts = parameter_facts(connection, wanted)
    defaults: dict[str, str | None] = dict(
        connection.rows(
            "SELECT name, boot_val FROM pg_catalog.pg_settings WHERE name = ANY (%s)", (wanted,)
        )
    )
    in_files = {
        str(name)
        for name, path in connection.rows(
            "SELECT DISTINCT name, sourcefile FROM pg_catalog.pg_file_settings"
            " WHERE name IS NOT NULL AND sourcefile IS NOT NULL"
        )
        if str(path).rpartition("/")[2] != AUTO_CONF
    }
    return {
        name: KnownSetting(
            default=defaults[name],
            needs_restart=one.needs_restart,
            may_alter=one.may_alter and facts.allows_alter,
            auto_value=one.auto_value,
            is_in_files=name in in_files,
        )
        for name, one in facts.by_name.items()
    }


def directory_problem(connection: Connection, path: str) -> str:
    """Why no tablespace can be made in a directory of the server; empty when one can."""
    try:
        entries = connection.rows("SELECT pg_catalog.pg_ls_dir(%s)", (path,))
    except PostgresError as error:
        return f"the server cannot look into {path}: {error.message}"
    return f"{path} is not empty" if entries else ""


def alter_system(connection: Connection, name: str, value: str | None) -> None:
    """As set_parameter, with a value as pg_settings shows it, lists of names too."""
    if value is None or name not in _LISTS:
        set_parameter(connection, name, value)
        return
    elements = sql.SQL(", ").join(sql.Literal(one) for one in elements_of(value) or [""])
    connection.rows(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), elements))


def is_value(name: str, found: str | None, wanted: str | None) -> bool:
    """Whether postgresql.auto.conf says ``wanted``, as alter_system wrote it."""
    if found is None or wanted is None or name not in _LISTS:
        return found == wanted
    return (elements_of(found) or [""]) == (elements_of(wanted) or [""])


def elements_of(value: str) -> list[str]:
    """The names of a list, without their quotes."""
    found, position = [], 0
    while position < len(value):
        match = _ELEMENT.match(value, position)
        if match is None or match.end() == position:
            break
        quoted = match[1]
        found.append(match[2] if quoted is None else quoted.replace('""', '"'))
        position = match.end()
    return found


def create_slot(connection: Connection, slot: CapturedSlot) -> None:
    """Make a slot, in the session's database if it is logical; raises PostgresError."""
    if slot.kind == "physical":
        connection.rows(
            "SELECT pg_catalog.pg_create_physical_replication_slot(%s, true)", (slot.name,)
        )
    elif slot.two_phase:
        connection.rows(
            "SELECT pg_catalog.pg_create_logical_replication_slot(%s, %s, false, true)",
            (slot.name, slot.plugin),
        )
    else:
        connection.rows(
            "SELECT pg_catalog.pg_create_logical_replication_slot(%s, %s)",
            (slot.name, slot.plugin),
        )


def create_tablespace(connection: Connection, space: CapturedTablespace) -> None:
    """Make a tablespace in a directory that is there; raises PostgresError."""
    connection.rows(
        sql.SQL("CREATE TABLESPACE {} OWNER {} LOCATION {}").format(
            sql.Identifier(space.name), sql.Identifier(space.owner), sql.Literal(space.location)
        )
    )


def drop_tablespace(connection: Connection, name: str) -> None:
    """Drop a tablespace that nothing lies in; raises PostgresError for any other."""
    connection.rows(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(name)))


def create_subscription(connection: Connection, one: CapturedSubscription) -> None:
    """Make a subscription in the session's database, disabled; the publisher is not asked.

    Raises PostgresError.
    """
    slot = sql.SQL("NONE") if not one.slot else sql.Literal(one.slot)
    connection.rows(
        sql.SQL(
            "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH (connect = false,"
            " slot_name = {})"
        ).format(
            sql.Identifier(one.name),
            sql.Literal(one.connection),
            sql.SQL(", ").join(map(sql.Identifier, one.publications)),
            slot,
        )
    )


def drop_subscription(connection: Connection, name: str) -> bool:
    """Drop a subscription that is still disabled, its slot at the publisher stays.

    False: it is enabled, or gone. Raises PostgresError.
    """
    rows = connection.rows(
        "SELECT subenabled FROM pg_catalog.pg_subscription WHERE subname = %s AND subdbid ="
        " (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
        (name,),
    )
    if not rows or rows[0][0]:
        return False
    identifier = sql.Identifier(name)
    connection.rows(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(identifier))
    connection.rows(sql.SQL("DROP SUBSCRIPTION {}").format(identifier))
    return True
