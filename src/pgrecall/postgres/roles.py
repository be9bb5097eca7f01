"""The role that pgrecall connects as: what it has, what it needs, and giving and taking that.

Nothing here makes a superuser; docs/rights.md says what each right is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
from psycopg import sql

from pgrecall.postgres.connection import Connection

MONITOR = "pg_monitor"

_READ_FILE = "pg_read_binary_file(text, bigint, bigint, boolean)"


class RoleFacts(msgspec.Struct, frozen=True):
    """A role as it is. ``comment`` is that of COMMENT ON ROLE.

    ``missing_functions`` it may not execute, ``missing_roles`` it is no member of; all of them when
    there is no such role. ``can_connect``: to the database of the session that asked.
    """

    name: str
    exists: bool
    database: str
    is_superuser: bool = False
    can_login: bool = False
    can_replicate: bool = False
    can_connect: bool = True
    comment: str = ""
    missing_functions: tuple[str, ...] = ()
    missing_roles: tuple[str, ...] = ()


class RoleChange(msgspec.Struct, frozen=True):
    """What is given to a role, or taken from it again.

    ``makes``: the role itself. ``functions`` with their argument types, granted in ``database``;
    ``roles`` it becomes a member of. ``logs_in``, ``replicates``: attributes that it gets.
    """

    name: str
    database: str
    makes: bool = False
    logs_in: bool = False
    replicates: bool = False
    connects: bool = False
    functions: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to give."""
        attributes = self.makes or self.logs_in or self.replicates or self.connects
        return not (attributes or self.functions or self.roles)


def backup_functions(major: int) -> tuple[str, str]:
    """The functions that begin and end a backup, with their argument types."""
    if major >= 15:
        return ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)")
    return ("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)")


def needed_functions(major: int, *, streams: bool = False) -> tuple[str, ...]:
    """Every function that the role must be granted, with its argument types.

    ``streams``: a receiver, too, which reads a file of PGDATA from afar (a role with
    REPLICATION can read all of them anyway, by a base backup).
    """
    needed = (*backup_functions(major), "pg_switch_wal()", "pg_create_restore_point(text)")
    return (*needed, _READ_FILE) if streams else needed


def role_facts(connection: Connection, name: str, *, streams: bool = False) -> RoleFacts:
    """What the role ``name`` has of needed_functions() and else; raises PostgresError."""
    database = str(connection.value("SELECT pg_catalog.current_database()"))
    functions = needed_functions(connection.major, streams=streams)
    rows = connection.rows(
        "SELECT rolsuper, rolcanlogin, rolreplication,"
        " COALESCE(pg_catalog.shobj_description(oid, 'pg_authid'), ''),"
        " pg_catalog.has_database_privilege(oid, pg_catalog.current_database(), 'CONNECT'),"
        " pg_catalog.pg_has_role(oid, %s, 'USAGE')"
        " FROM pg_catalog.pg_roles WHERE rolname = %s",
        (MONITOR, name),
    )
    if not rows:
        return RoleFacts(
            name=name,
            exists=False,
            database=database,
            missing_functions=functions,
            missing_roles=(MONITOR,),
        )
    ((is_superuser, can_login, can_replicate, comment, can_connect, is_monitor),) = rows
    missing = [
        function
        for function in functions
        if not connection.value(
            "SELECT pg_catalog.has_function_privilege(%s, %s, 'EXECUTE')",
            (name, f"pg_catalog.{function}"),
        )
    ]
    return RoleFacts(
        name=name,
        exists=True,
        database=database,
        is_superuser=is_superuser,
        can_login=can_login,
        can_replicate=can_replicate,
        can_connect=can_connect,
        comment=comment,
        missing_functions=tuple(missing),
        missing_roles=() if is_monitor else (MONITOR,),
    )


def give(connection: Connection, change: RoleChange, *, comment: str, password: str = "") -> None:
    """Make the role and grant, all or nothing; ``comment`` marks a role that is made.

    ``password`` is sent as the server would store it, never in plain (PQencryptPasswordConn).
    Raises PostgresError, PostgresRightsError.
    """
    role = sql.Identifier(change.name)
    with _transaction(connection):
        if change.makes:
            connection.rows(sql.SQL("CREATE ROLE {} LOGIN REPLICATION").format(role))
            connection.rows(sql.SQL("COMMENT ON ROLE {} IS {}").format(role, sql.Literal(comment)))
            if password:
                stored = connection.encrypted_password(change.name, password)
                connection.rows(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(stored))
                )
        else:
            _attributes(connection, change, "LOGIN", "REPLICATION")
        if change.connects:
            connection.rows(
                sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(
                    sql.Identifier(change.database), role
                )
            )
        if change.functions:
            connection.rows(
                sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(
                    _functions(change.functions), role
                )
            )
        for granted in change.roles:
            connection.rows(sql.SQL("GRANT {} TO {}").format(sql.Identifier(granted), role))


def take(connection: Connection, change: RoleChange) -> None:
    """Take back what give() gave, all or nothing; the role itself, where it was made.

    Raises PostgresError when something depends on the role; then nothing was taken.
    """
    role = sql.Identifier(change.name)
    with _transaction(connection):
        if change.functions:
            connection.rows(
                sql.SQL("REVOKE EXECUTE ON FUNCTION {} FROM {}").format(
                    _functions(change.functions), role
                )
            )
        for granted in change.roles:
            connection.rows(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(granted), role))
        if change.connects:
            connection.rows(
                sql.SQL("REVOKE CONNECT ON DATABASE {} FROM {}").format(
                    sql.Identifier(change.database), role
                )
            )
        if change.makes:
            connection.rows(sql.SQL("DROP ROLE {}").format(role))
        else:
            _attributes(connection, change, "NOLOGIN", "NOREPLICATION")


def uses_of(connection: Connection, name: str) -> str:
    """What depends on a role, in words; empty when nothing does. Grants do not count."""
    owned, sessions = connection.row(
        "SELECT (SELECT pg_catalog.count(*) FROM pg_catalog.pg_shdepend AS d"
        "   JOIN pg_catalog.pg_roles AS r ON r.oid = d.refobjid"
        "   WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass"
        "   AND d.deptype = 'o' AND r.rolname = %s),"
        " (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE usename = %s)",
        (name, name),
    )
    uses = []
    if owned:
        uses.append(f"it owns {owned} object(s)")
    if sessions:
        uses.append(f"{sessions} session(s) are open as it")
    return ", ".join(uses)


def _attributes(connection: Connection, change: RoleChange, login: str, replication: str) -> None:
    wanted = [(change.logs_in, login), (change.replicates, replication)]
    words = " ".join(word for is_wanted, word in wanted if is_wanted)
    if words:
        connection.rows(
            sql.SQL("ALTER ROLE {} {}").format(
                sql.Identifier(change.name), sql.Composed([_word(word) for word in words.split()])
            )
        )


def _word(word: str) -> sql.SQL:
    known = {
        "LOGIN": sql.SQL(" LOGIN"),
        "NOLOGIN": sql.SQL(" NOLOGIN"),
        "REPLICATION": sql.SQL(" REPLICATION"),
        "NOREPLICATION": sql.SQL(" NOREPLICATION"),
    }
    return known[word]


def _functions(functions: Sequence[str]) -> sql.Composed:
    # Texts of needed_functions, or of a record that was made from them.
    parts = [_signature(function) for function in functions]
    return sql.SQL(", ").join(parts)


def _signature(function: str) -> sql.Composed:
    name, _, rest = function.partition("(")
    types = [word.strip() for word in rest.rstrip(")").split(",") if word.strip()]
    return sql.SQL("{}({})").format(
        sql.Identifier("pg_catalog", name),
        sql.SQL(", ").join(sql.Identifier("pg_catalog", _TYPES[word]) for word in types),
    )


_TYPES = {"text": "text", "boolean": "bool", "bigint": "int8"}


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    connection.rows("BEGIN")
    try:
        yield
        connection.rows("COMMIT")
    except BaseException:
        if not connection.is_closed:
            connection.rows("ROLLBACK")
        raise


def superuser_name(connection: Connection) -> str:
    """A superuser that may log in, that of initdb if it may; empty: there is none."""
    rows = connection.rows(
        "SELECT rolname FROM pg_catalog.pg_roles WHERE rolsuper AND rolcanlogin"
        " ORDER BY oid LIMIT 1"
    )
    return str(rows[0][0]) if rows else ""
