"""Chosen tables of a throwaway copy, moved into a schema of their own."""

from __future__ import annotations

import re

import msgspec
from psycopg import sql

from pgrecall.errors import UsageError
from pgrecall.postgres.connection import Connection

_TABLES = (
    "SELECT c.oid::pg_catalog.int8, n.nspname::pg_catalog.text, c.relname::pg_catalog.text,"
    " c.relkind::pg_catalog.text"
    " FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
    " WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't'"
    " AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"
)

_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')
_QUOTED_NAME = re.compile(rf"(?:{_PART.pattern})(?:\.(?:{_PART.pattern}))?")


class FoundTable(msgspec.Struct, frozen=True):
    """A table of the copy; ``kind`` as pg_class.relkind has it."""

    oid: int
    schema: str
    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def find_tables(connection: Connection, names: tuple[str, ...]) -> list[FoundTable]:
    """The tables of these names, ``table`` or ``schema.table``, exactly as they are written.

    In double quotes a part may stand as in SQL, too.

    A partitioned table comes with its partitions. Raises UsageError that names what is missing or
    ambiguous, and what there is.
    """
    all_tables = [FoundTable(*row) for row in connection.rows(_TABLES + " ORDER BY 2, 3")]
    found: dict[int, FoundTable] = {}
    for name in names:
        parts = _unquoted(name)
        matches = [
            one
            for one in all_tables
            if name in (one.name, str(one)) or parts in ((one.name,), (one.schema, one.name))
        ]
        if not matches:
            there = ", ".join(str(one) for one in all_tables[:20])
            raise UsageError(
                f"there was no table {name!r} at that moment",
                hint=f"there were: {there}" if there else "the database had no tables then",
            )
        if len(matches) > 1:
            raise UsageError(
                f"{name!r} is the name of several tables: " + ", ".join(map(str, matches)),
                hint="name the schema, too",
            )
        found[matches[0].oid] = matches[0]
    by_oid = {one.oid: one for one in all_tables}
    for parent in [one for one in found.values() if one.kind == "p"]:
        for (oid,) in connection.rows(
            "SELECT relid::pg_catalog.oid::pg_catalog.int8"
            " FROM pg_catalog.pg_partition_tree(%s::pg_catalog.oid::pg_catalog.regclass)",
            (parent.oid,),
        ):
            if oid in by_oid:
                found[oid] = by_oid[oid]
    return list(found.values())


def _unquoted(name: str) -> tuple[str, ...]:
    """The parts of a name of which some are quoted; none when it is not such a name."""
    if not _QUOTED_NAME.fullmatch(name):
        return ()
    return tuple(
        quoted.replace('""', '"') if quoted else plain for quoted, plain in _PART.findall(name)
    )


def move_tables(connection: Connection, tables: list[FoundTable], schema: str) -> list[str]:
    """Move them into a new schema; returns the foreign keys that had to go, in words.

    Indexes, constraints and owned sequences go with a table. Foreign keys do not: what they refer
    to is another one where the tables are loaded.
    """
    connection.rows(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    oids = [one.oid for one in tables]
    dropped = []
    for owner_schema, owner, name, refers_to in connection.rows(
        "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, k.conname::pg_catalog.text,"
        " k.confrelid::pg_catalog.regclass::pg_catalog.text"
        " FROM pg_catalog.pg_constraint AS k"
        " JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid"
        " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE k.contype = 'f' AND k.conparentid = 0"
        " AND (k.conrelid = ANY (%s::pg_catalog.oid[]) OR k.confrelid = ANY (%s::pg_catalog.oid[]))"
        " ORDER BY 1, 2, 3",
        (oids, oids),
    ):
        connection.rows(
            sql.SQL("ALTER TABLE {}.{} DROP CONSTRAINT {}").format(
                sql.Identifier(owner_schema), sql.Identifier(owner), sql.Identifier(name)
            )
        )
        dropped.append(f"{name} of {owner_schema}.{owner}, which refers to {refers_to}")
    for one in tables:
        what = sql.SQL("MATERIALIZED VIEW" if one.kind == "m" else "TABLE")
        connection.rows(
            sql.SQL("ALTER {} {}.{} SET SCHEMA {}").format(
                what, sql.Identifier(one.schema), sql.Identifier(one.name), sql.Identifier(schema)
            )
        )
    return dropped


def rename_table(connection: Connection, schema: str, name: str, new_name: str) -> None:
    """Give a table of the copy another name."""
    connection.rows(
        sql.SQL("ALTER TABLE {}.{} RENAME TO {}").format(
            sql.Identifier(schema), sql.Identifier(name), sql.Identifier(new_name)
        )
    )


def has_schema(connection: Connection, name: str) -> bool:
    """Whether the connection's database has a schema of that name."""
    return bool(
        connection.value(
            "SELECT pg_catalog.count(*) > 0 FROM pg_catalog.pg_namespace WHERE nspname = %s",
            (name,),
        )
    )
