"""What a dump asks of a server: its databases, and in each a snapshot that pg_dump then uses.

Source: PostgreSQL's documentation, "Snapshot Synchronization Functions": an exported snapshot
lasts as long as the transaction that exported it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Self

import msgspec
from psycopg import sql

from pgrecall.model.dumps import DatabaseProperties, TableProof, TableSize
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.facts import system_identifier
from pgrecall.settings import ServerSettings


class DatabaseFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A database as pg_database has it; ``size_bytes`` -1: the role may not connect to it."""

    name: str
    oid: int
    size_bytes: int
    allows_connections: bool
    may_connect: bool


class DumpFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a dump is planned from. ``can_read_passwords``: of pg_authid.

    ``free_connections``: so many more sessions would be admitted. ``bootstrap_role``: the
    superuser that initdb made, BOOTSTRAP_SUPERUSERID in PostgreSQL.
    """

    version_num: int
    is_in_recovery: bool
    system_identifier: int
    role: str
    bootstrap_role: str
    can_read_passwords: bool
    free_connections: int
    databases: tuple[DatabaseFacts, ...]

    @property
    def major(self) -> int:
        """Major version, for example 18."""
        return self.version_num // 10000


def dump_facts(connection: Connection) -> DumpFacts:
    """Ask the server; raises PostgresError and its kinds."""
    may_connect = "pg_catalog.has_database_privilege(oid, 'CONNECT')"
    return DumpFacts(
        version_num=connection.version_num,
        is_in_recovery=connection.value("SELECT pg_catalog.pg_is_in_recovery()"),
        system_identifier=system_identifier(connection),
        role=str(connection.value("SELECT current_user::pg_catalog.text")),
        bootstrap_role=str(
            connection.value(
                "SELECT rolname::pg_catalog.text FROM pg_catalog.pg_roles WHERE oid = 10"
            )
        ),
        can_read_passwords=connection.value(
            "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')"
        ),
        free_connections=connection.value(
            "SELECT pg_catalog.current_setting('max_connections')::pg_catalog.int4"
            " - pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int4"
            " - (SELECT pg_catalog.count(*)::pg_catalog.int4 FROM pg_catalog.pg_stat_activity"
            " WHERE backend_type = 'client backend')"
        ),
        databases=tuple(
            DatabaseFacts(
                name=name, oid=oid, size_bytes=size, allows_connections=allows, may_connect=may
            )
            for name, oid, size, allows, may in connection.rows(
                "SELECT datname::pg_catalog.text, oid::pg_catalog.int8,"  # noqa: S608 (constants)
                f" CASE WHEN {may_connect} THEN pg_catalog.pg_database_size(oid) ELSE -1 END,"
                f" datallowconn, {may_connect} FROM pg_catalog.pg_database ORDER BY datname"
            )
        ),
    )


class Snapshot(msgspec.Struct, frozen=True):
    """An exported snapshot: its identifier, the LSN (text) and the server's time of it."""

    identifier: str
    lsn: str
    at: datetime


def table_proofs(connection: Connection, schema: str = "") -> tuple[TableProof, ...]:
    """Rows and hashes of every ordinary table of the connection's database, or of one schema.

    What rows look like as text is fixed for it, so that two servers can be compared. Raises
    PostgresError, also where row security would hide rows from the role.
    """
    for name, value in (
        ("row_security", "off"),
        ("extra_float_digits", "3"),
        ("intervalstyle", "postgres"),
        ("bytea_output", "hex"),
    ):
        connection.rows("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))
    tables = connection.rows(
        "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text"
        " FROM pg_catalog.pg_class AS c"
        " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND c.relpersistence <> 't'"
        " AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ORDER BY 1, 2"
    )
    proofs = []
    for owner, name in tables:
        if schema and owner != schema:
            continue
        rows, total = connection.row(
            sql.SQL(
                "SELECT pg_catalog.count(*), COALESCE(pg_catalog.sum("
                "pg_catalog.hashtextextended(t::pg_catalog.text, 0)::pg_catalog.numeric), 0)"
                "::pg_catalog.text FROM ONLY {}.{} AS t"
            ).format(sql.Identifier(owner), sql.Identifier(name))
        )
        proofs.append(TableProof(owner, name, int(rows), str(total)))
    return tuple(proofs)


class DatabaseSession:
    """A session in one database; holds its snapshot until it is closed.

    Raises PostgresError and its kinds.
    """

    def __init__(
        self, server: ServerSettings, database: str, environment: Mapping[str, str]
    ) -> None:
        self.database = database
        self._connection = connect(
            server.replace(database=database),
            application_name="pgrecall dump",
            purpose="dump",
            environment=environment,
        )

    def export(self, *, is_in_recovery: bool) -> Snapshot:
        """Take the snapshot that all that follows sees."""
        self._connection.rows("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        identifier = str(self._connection.value("SELECT pg_catalog.pg_export_snapshot()"))
        lsn = (
            "pg_catalog.pg_last_wal_replay_lsn()"
            if is_in_recovery
            else "pg_catalog.pg_current_wal_insert_lsn()"
        )
        row = self._connection.row(f"SELECT {lsn}::pg_catalog.text, pg_catalog.clock_timestamp()")
        return Snapshot(identifier, str(row[0]), row[1])

    def properties(self) -> DatabaseProperties:
        """What makes the database again; read under the snapshot."""
        major = self._connection.major
        provider = "d.datlocprovider::pg_catalog.text" if major >= 15 else "'c'"
        locale = "d.datlocale" if major >= 17 else "d.daticulocale" if major >= 15 else "NULL"
        rules = "d.daticurules" if major >= 16 else "NULL"
        row = self._connection.row(
            "SELECT pg_catalog.pg_get_userbyid(d.datdba)::pg_catalog.text,"  # noqa: S608 (constants)
            " pg_catalog.pg_encoding_to_char(d.encoding)::pg_catalog.text,"
            " d.datcollate::pg_catalog.text, d.datctype::pg_catalog.text,"
            f" {provider}, {locale}::pg_catalog.text, {rules}::pg_catalog.text,"
            " d.datconnlimit, d.datistemplate,"
            " pg_catalog.shobj_description(d.oid, 'pg_database'),"
            " d.datacl::pg_catalog.text[], t.spcname::pg_catalog.text"
            " FROM pg_catalog.pg_database AS d"
            " JOIN pg_catalog.pg_tablespace AS t ON t.oid = d.dattablespace"
            " WHERE d.datname = pg_catalog.current_database()"
        )
        return DatabaseProperties(
            owner=row[0],
            encoding=row[1],
            collate=row[2] or "",
            ctype=row[3] or "",
            provider={"c": "libc", "i": "icu", "b": "builtin"}.get(row[4], str(row[4])),
            locale=row[5] or "",
            icu_rules=row[6] or "",
            connection_limit=row[7],
            is_template=row[8],
            comment=row[9] or "",
            acl=tuple(row[10] or ()),
            tablespace=row[11],
            settings=self._settings(),
            roles=self._roles(),
        )

    def tables(self) -> tuple[TableSize, ...]:
        """Ordinary tables and materialized views, the largest first; not those of the system."""
        rows = self._connection.rows(
            "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text,"
            " c.reltuples::pg_catalog.int8, COALESCE(pg_catalog.pg_table_size(c.oid), 0)"
            " FROM pg_catalog.pg_class AS c"
            " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'"
            " AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"
            " ORDER BY 4 DESC, 1, 2"
        )
        return tuple(TableSize(*row) for row in rows)

    def proofs(self) -> tuple[TableProof, ...]:
        """Count and hash the rows of every ordinary table: reads them all."""
        return table_proofs(self._connection)

    def large_objects(self) -> int:
        """How many there are."""
        return int(
            self._connection.value(
                "SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata"
            )
        )

    def ping(self) -> None:
        """Raise PostgresUnreachableError when the session, and its snapshot, are lost."""
        self._connection.ping()

    def close(self) -> None:
        """Give the snapshot back; may be called several times."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _settings(self) -> tuple[tuple[str, str, str], ...]:
        rows = self._connection.rows(
            "SELECT CASE WHEN s.setrole = 0 THEN ''"
            " ELSE pg_catalog.pg_get_userbyid(s.setrole)::pg_catalog.text END, c"
            " FROM pg_catalog.pg_db_role_setting AS s"
            " JOIN pg_catalog.pg_database AS d ON d.oid = s.setdatabase,"
            " pg_catalog.unnest(s.setconfig) AS c"
            " WHERE d.datname = pg_catalog.current_database()"
        )
        return tuple((role, *_cut(setting)) for role, setting in rows)

    def _roles(self) -> tuple[str, ...]:
        """Roles that the objects of this database depend on; predefined ones (pg_...) aside."""
        rows = self._connection.rows(
            "SELECT DISTINCT r.rolname::pg_catalog.text"
            " FROM pg_catalog.pg_shdepend AS s"
            " JOIN pg_catalog.pg_database AS d"
            " ON (s.dbid = d.oid OR (s.dbid = 0 AND s.objid = d.oid"
            " AND s.classid = 'pg_catalog.pg_database'::pg_catalog.regclass))"
            " JOIN pg_catalog.pg_roles AS r ON r.oid = s.refobjid"
            " WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass"
            " AND d.datname = pg_catalog.current_database() AND r.rolname !~ '^pg_'"
            " ORDER BY 1"
        )
        return tuple(str(row[0]) for row in rows)


def _cut(setting: str) -> tuple[str, str]:
    name, _, value = setting.partition("=")
    return name, value
