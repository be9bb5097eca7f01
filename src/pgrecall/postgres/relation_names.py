"""Asking a server what its relations are called, and which files they have.

Source: the system catalogs pg_class, pg_namespace and pg_database of PostgreSQL 13 to 18; every
role may read them. Nothing is locked and no user's table is read.
"""

from __future__ import annotations

from collections.abc import Callable

from pgrecall.errors import PostgresError
from pgrecall.model.name_maps import DatabaseNames, FoundDatabase, FoundNames, NamedRelation
from pgrecall.postgres.actions import replay_or_insert_lsn, server_clock
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.facts import current_timeline

ConnectTo = Callable[[str], Connection]
"""Opens a session with the database of that name."""

_RELATIONS = """
SELECT c.oid::pg_catalog.int8, COALESCE(pg_catalog.pg_relation_filenode(c.oid), 0)::pg_catalog.int8,
       c.relfilenode::pg_catalog.int8, c.reltablespace::pg_catalog.int8,
       c.relnamespace::pg_catalog.int8, n.nspname::pg_catalog.text, c.relname::pg_catalog.text,
       c.relkind::pg_catalog.text,
       CASE WHEN c.oid >= 16384 THEN c.reltuples ELSE -1 END::pg_catalog.float8,
       c.ctid::pg_catalog.text
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relpersistence <> 't' AND c.relkind IN ('r', 'p', 'm', 't', 'i', 'I', 'S')
 ORDER BY c.oid
"""


def read_names(connection: Connection, connect_to: ConnectTo) -> FoundNames:
    """The names of every database of the server that ``connection`` reaches.

    A database that cannot be read is listed with the reason. Raises PostgresError and its kinds
    for ``connection`` itself, PostgresUnreachableError when the server goes away meanwhile.
    """
    is_in_recovery = bool(connection.value("SELECT pg_catalog.pg_is_in_recovery()"))
    # The position first: what commits from here on is in the WAL behind it, if not in the map.
    lsn = replay_or_insert_lsn(connection)
    timeline = current_timeline(connection, is_in_recovery=is_in_recovery)
    taken_at = server_clock(connection)
    databases = connection.rows(
        "SELECT oid::pg_catalog.int8, datname::pg_catalog.text, datallowconn,"
        " datconnlimit::pg_catalog.int8 FROM pg_catalog.pg_database ORDER BY oid"
    )
    return FoundNames(
        taken_at,
        timeline,
        lsn,
        tuple(
            _found(connection, connect_to, (int(oid), str(name)), _refusal(admits, int(limit)))
            for oid, name, admits, limit in databases
        ),
    )


def _refusal(admits: bool, limit: int) -> str:
    """Why nobody may connect to a database; empty when somebody may."""
    if limit == -2:
        return "its removal has begun and was not finished"
    return "" if admits else "it admits no connections (datallowconn)"


def _found(
    watch: Connection, connect_to: ConnectTo, database: tuple[int, str], refusal: str
) -> FoundDatabase:
    if refusal:
        return FoundDatabase(*database, None, refusal)
    try:
        with connect_to(database[1]) as connection:
            return FoundDatabase(*database, _names(connection, database[0]))
    except PostgresError as error:
        # libpq gives one kind of failure for a server that is gone and for a database that
        # refuses: the session that is there tells them apart.
        watch.ping()
        return FoundDatabase(*database, None, error.message)


def _names(connection: Connection, oid: int) -> DatabaseNames:
    class_file = connection.value(
        "SELECT pg_catalog.pg_relation_filenode('pg_catalog.pg_class')::pg_catalog.int8"
    )
    relations = []
    for found, file, written, space, schema_oid, schema, name, kind, rows, ctid in connection.rows(
        _RELATIONS
    ):
        block, _, offset = str(ctid).strip("()").partition(",")
        relations.append(
            NamedRelation(
                oid=int(found),
                file=int(file),
                written_file=int(written),
                tablespace=int(space),
                schema_oid=int(schema_oid),
                schema=str(schema),
                name=str(name),
                kind=str(kind),
                rows=two_digits(float(rows)),
                block=int(block),
                offset=int(offset),
            )
        )
    return DatabaseNames(oid, int(class_file), tuple(relations))


def two_digits(rows: float) -> int:
    """An estimate of rows to two digits, so that a map does not change with each ANALYZE."""
    if rows < 0:
        return -1
    return int(float(f"{rows:.1e}"))
