"""The database that a dump is loaded into: what is there, making it, swapping it, undoing that."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from psycopg import sql

from pgrecall.errors import PostgresError, PostgresUnreachableError
from pgrecall.model.dumps import DatabaseProperties
from pgrecall.postgres.connection import Connection
from pgrecall.system.faults import reached

_ACL = re.compile(r'^(?:"((?:[^"]|"")*)"|([^="]*))=([A-Za-z*]*)/')
_DEFAULT_TABLESPACE = "pg_default"
# Clients that connect again at once may come in between.
_SWAP_TRIES = 5
_RIGHTS = {"C": "CREATE", "T": "TEMPORARY", "c": "CONNECT"}
# What every database grants to everybody before anybody says otherwise.
_PUBLIC_DEFAULT = frozenset("Tc")


class TargetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is loaded into. ``databases``: their sizes in bytes, -1 where unknown."""

    version_num: int
    is_in_recovery: bool
    role: str
    is_superuser: bool
    databases: dict[str, int]
    roles: frozenset[str]


class TargetContent(msgspec.Struct, frozen=True):
    """How much is in a database: tables (partitioned and foreign ones too), large objects."""

    tables: int
    large_objects: int


def target_facts(connection: Connection) -> TargetFacts:
    """Ask the server; raises PostgresError and its kinds."""
    role, is_superuser = connection.row(
        "SELECT current_user::pg_catalog.text,"
        " (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)"
    )
    return TargetFacts(
        version_num=connection.version_num,
        is_in_recovery=connection.value("SELECT pg_catalog.pg_is_in_recovery()"),
        role=str(role),
        is_superuser=bool(is_superuser),
        databases={
            str(name): int(size)
            for name, size in connection.rows(
                "SELECT datname::pg_catalog.text,"
                " CASE WHEN pg_catalog.has_database_privilege(oid, 'CONNECT')"
                " THEN pg_catalog.pg_database_size(oid) ELSE -1 END FROM pg_catalog.pg_database"
            )
        },
        roles=frozenset(
            str(row[0])
            for row in connection.rows("SELECT rolname::pg_catalog.text FROM pg_catalog.pg_roles")
        ),
    )


def target_content(connection: Connection) -> TargetContent:
    """What is in the connection's database, the system's own aside."""
    tables, large = connection.row(
        "SELECT (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS c"
        " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'm', 'p', 'f') AND c.relpersistence <> 't'"
        " AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'),"
        " (SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata)"
    )
    return TargetContent(int(tables), int(large))


def create_database(
    connection: Connection,
    name: str,
    properties: DatabaseProperties | None,
    *,
    owner: str = "",
    tablespace: str = "",
) -> None:
    """Make an empty database, with the encoding and locale of ``properties`` if there are any.

    ``owner`` and ``tablespace`` empty: the server's defaults. Raises PostgresError.
    """
    parts: list[sql.Composable] = [
        sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
    ]
    if owner:
        parts.append(sql.SQL("OWNER {}").format(sql.Identifier(owner)))
    if tablespace and tablespace != _DEFAULT_TABLESPACE:
        parts.append(sql.SQL("TABLESPACE {}").format(sql.Identifier(tablespace)))
    if properties is not None:
        given = [
            ("ENCODING", properties.encoding),
            ("LC_COLLATE", properties.collate),
            ("LC_CTYPE", properties.ctype),
        ]
        if connection.major >= 15 and properties.provider != "libc":
            given.append(("LOCALE_PROVIDER", properties.provider))
            word = "BUILTIN_LOCALE" if properties.provider == "builtin" else "ICU_LOCALE"
            given.append((word, properties.locale))
            if connection.major >= 16:
                given.append(("ICU_RULES", properties.icu_rules))
        parts += [
            sql.SQL(word + " {}").format(sql.Literal(value)) for word, value in given if value
        ]
    connection.rows(sql.SQL(" ").join(parts))


def dress_database(
    connection: Connection,
    name: str,
    properties: DatabaseProperties,
    *,
    with_owners: bool,
    role_map: Mapping[str, str],
) -> None:
    """Give a database the comment, limits and settings of ``properties``; rights with owners.

    ``role_map``: who gets the rights of others.
    """
    database = sql.Identifier(name)
    if properties.comment:
        connection.rows(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                database, sql.Literal(properties.comment)
            )
        )
    if properties.connection_limit != -1:
        connection.rows(
            sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(
                database, sql.Literal(properties.connection_limit)
            )
        )
    if properties.is_template:
        connection.rows(sql.SQL("ALTER DATABASE {} IS_TEMPLATE true").format(database))
    for role, setting, value in properties.settings:
        if not role:
            head = sql.SQL("ALTER DATABASE {}").format(database)
        elif with_owners:
            head = sql.SQL("ALTER ROLE {} IN DATABASE {}").format(sql.Identifier(role), database)
        else:
            continue
        connection.rows(head + sql.SQL(" SET ") + _setting(setting, value))
    if with_owners and properties.acl:
        _grant(connection, database, properties, role_map)


def maintenance_database(usual: str, database: str) -> str:
    """Where to connect to rename or drop a database: not to itself."""
    return "template1" if usual == database else usual


def swap_databases(connection: Connection, name: str, new: str, kept: str) -> None:
    """``name`` becomes ``kept``, and ``new`` becomes ``name``: in one transaction, so that there is
    a database ``name`` at every moment. Sessions in both are ended.

    RENAME locks a database against new sessions, and fails when one came in before that: then
    these are ended, too. Raises PostgresError: nothing was changed.
    """
    renames = [(name, kept), (new, name)]
    for left in reversed(range(_SWAP_TRIES)):
        _end_sessions(connection, [name, new])
        connection.rows("BEGIN")
        try:
            for old_name, new_name in renames:
                connection.rows(
                    sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                        sql.Identifier(old_name), sql.Identifier(new_name)
                    )
                )
            reached("load.renamed")
            connection.rows("COMMIT")
        except PostgresUnreachableError:
            raise
        except PostgresError:
            connection.rows("ROLLBACK")
            if not left:
                raise
        else:
            return


def remove_database(connection: Connection, name: str) -> None:
    """Drop it if it is there, whoever is in it."""
    there = "SELECT pg_catalog.count(*) > 0 FROM pg_catalog.pg_database WHERE datname = %s"
    if not connection.value(there, (name,)):
        return
    database = sql.Identifier(name)
    connection.rows(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(database))
    connection.rows(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))


def analyze(connection: Connection) -> None:
    """Have the planner know what was loaded."""
    connection.rows("ANALYZE")


def _end_sessions(connection: Connection, databases: list[str]) -> None:
    patience = ", 10000" if connection.major >= 14 else ""
    connection.rows(
        f"SELECT pg_catalog.pg_terminate_backend(pid{patience})"  # noqa: S608 (constants)
        " FROM pg_catalog.pg_stat_activity"
        " WHERE datname = ANY (%s) AND pid <> pg_catalog.pg_backend_pid()",
        (databases,),
    )


def _setting(name: str, value: str) -> sql.Composable:
    """``name = value``; of lists (search_path and its like) the parts are quoted already."""
    head = sql.SQL(".").join(map(sql.Identifier, name.split("."))) + sql.SQL(" = ")
    if name.lower() in _LISTS:
        return head + sql.SQL(", ").join(map(sql.Literal, _list_parts(value)))
    return head + sql.Literal(value)


# GUC_LIST_QUOTE in PostgreSQL's guc_tables.c: pg_dump treats just these as lists, too.
_LISTS = frozenset(
    {
        "local_preload_libraries", "search_path", "session_preload_libraries",
        "shared_preload_libraries", "temp_tablespaces", "unix_socket_directories",
    }
)  # fmt: skip
_PART = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,]*?))\s*(?:,|$)')


def _list_parts(value: str) -> list[str]:
    parts, at = [], 0
    while at < len(value):
        match = _PART.match(value, at)
        if match is None or match.end() == at:
            break
        quoted, plain = match.groups()
        parts.append(quoted.replace('""', '"') if quoted is not None else plain)
        at = match.end()
    return parts or [value]


def _grant(
    connection: Connection,
    database: sql.Identifier,
    properties: DatabaseProperties,
    role_map: Mapping[str, str],
) -> None:
    """Rights as they were: what everybody has by default is taken away if it was."""
    of_public: set[str] = set()
    for item in properties.acl:
        match = _ACL.match(item)
        if match is None:
            continue
        quoted, plain, letters = match.groups()
        role = quoted.replace('""', '"') if quoted is not None else plain
        if not role:
            of_public |= set(letters) - {"*"}
            continue
        for number, letter in enumerate(letters):
            if letter not in _RIGHTS:
                continue
            option = letters[number + 1 : number + 2] == "*"
            connection.rows(
                sql.SQL("GRANT " + _RIGHTS[letter] + " ON DATABASE {} TO {}{}").format(
                    database,
                    sql.Identifier(role_map.get(role, role)),
                    sql.SQL(" WITH GRANT OPTION" if option else ""),
                )
            )
    for letter in sorted(_PUBLIC_DEFAULT - of_public):
        connection.rows(
            sql.SQL("REVOKE " + _RIGHTS[letter] + " ON DATABASE {} FROM PUBLIC").format(database)
        )
    for letter in sorted(of_public - _PUBLIC_DEFAULT):
        connection.rows(
            sql.SQL("GRANT " + _RIGHTS[letter] + " ON DATABASE {} TO PUBLIC").format(database)
        )
