"""What relations are called, and which files they have, at each position along a run of WAL.

Name maps say so at some positions; between them the rows of pg_class, pg_namespace and pg_database
that committed transactions wrote. Pure: it is fed in WAL order, and answers for the position that
it has reached. What it cannot know it does not guess: a relation is then without a name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NamedTuple

from pgrecall.model.name_maps import DatabaseEntry, DatabaseNames
from pgrecall.model.wal_knowledge import (
    DELETE,
    INSERT,
    PG_CLASS,
    PG_DATABASE,
    PG_NAMESPACE,
    CatalogChange,
    CatalogCommit,
    Place,
)
from pgrecall.wal.class_rows import ClassRow, changed_row, parse_row, row_of_map

Relation = tuple[int, int]
"""(database, oid)"""

_TRANSIENT = "pg_temp_"
_LONGEST_TRANSACTION = 256 << 30
"""Bytes of WAL; four thousand million commit records, after which numbers repeat, are more."""
_MOST_PENDING = 100_000
_OWN_SCHEMAS = {11: "pg_catalog", 99: "pg_toast", 2200: "public"}


class Table(NamedTuple):
    """A relation as it was last seen; ``rows`` is the estimate of the last map, -1 without one."""

    database: int
    oid: int
    schema: str
    name: str
    kind: str
    file: int
    tablespace: int
    pages: int
    rows: int


class Applied(NamedTuple):
    """What a committed transaction did to pg_class; relations by (database, oid).

    ``created`` also holds temporary ones that it dropped: nobody has lost them. ``rewritten`` are
    those for which it made a transient table, as VACUUM FULL, CLUSTER and ALTER TABLE do.
    ``unknown_updates`` and ``unknown_deletes`` count rows that nobody could name.
    """

    created: frozenset[Relation]
    changed: frozenset[Relation]
    deleted: tuple[Table, ...]
    rewritten: frozenset[Relation]
    unknown_updates: int
    unknown_deletes: int


class NameTracker:
    """Names and files, position by position."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[Place, bytes]] = {}
        self._tables: dict[Relation, Table] = {}
        self._files: dict[tuple[int, int], int] = {}
        self._schemas: dict[Relation, str] = {}
        self._databases: dict[int, str] = {}
        self._pending: dict[int, list[CatalogChange]] = {}
        self._maps: dict[int, str] = {}

    # --- asking -------------------------------------------------------------------

    def table(self, database: int, oid: int) -> Table | None:
        """The relation with this oid, if it was ever seen; also when it is gone since."""
        return self._tables.get((database, oid))

    def table_of_file(self, database: int, file: int) -> Table | None:
        """The relation that had this file last."""
        oid = self._files.get((database, file))
        return self._tables.get((database, oid)) if oid is not None else None

    def oid_of_file(self, database: int, file: int) -> int:
        """The oid of the relation that had this file last, 0 when that is not known."""
        return self._files.get((database, file), 0)

    def database_name(self, oid: int) -> str:
        """The name of a database, or its oid in words."""
        return self._databases.get(oid, f"database oid {oid}")

    def tables(self) -> Iterable[Table]:
        """Every relation that was ever seen."""
        return self._tables.values()

    def needs(self, entry: DatabaseEntry) -> bool:
        """Whether the map of this entry tells more than what is known already."""
        self._databases[entry.oid] = entry.name
        return bool(entry.digest) and self._maps.get(entry.oid) != entry.digest

    # --- feeding ------------------------------------------------------------------

    def take_map(self, names: DatabaseNames, digest: str, magic: int) -> None:
        """A map that was true at the position that was reached."""
        rows: dict[Place, bytes] = {}
        for relation in names.relations:
            place = (relation.block, relation.offset)
            rows[place] = row_of_map(relation, magic)
            self._schemas[names.oid, relation.schema_oid] = relation.schema
            table = Table(
                names.oid,
                relation.oid,
                relation.schema,
                relation.name,
                relation.kind,
                relation.file,
                relation.tablespace,
                0,
                relation.rows,
            )
            self._tables[names.oid, relation.oid] = table
            if relation.file:
                self._files[names.oid, relation.file] = relation.oid
        self._rows[names.oid] = rows
        self._maps[names.oid] = digest

    def forget_rows(self, database: int | None = None) -> None:
        """WAL is missing, or a catalog was rewritten: where rows lie is not known any more."""
        if database is None:
            self._rows.clear()
            self._pending.clear()
            self._maps.clear()
        else:
            self._rows.pop(database, None)
            self._maps.pop(database, None)

    def note(self, change: CatalogChange) -> None:
        """A row was written; it counts when its transaction commits."""
        self._pending.setdefault(change.xid, []).append(change)
        if len(self._pending) > _MOST_PENDING:
            # The oldest was aborted, as good as surely; should it commit, its rows are unknown.
            del self._pending[next(iter(self._pending))]

    def commit(self, commit: CatalogCommit, magic: int) -> Applied:
        """A transaction committed: what it wrote is true from here on."""
        changes = [
            change
            for xid in (commit.xid, *commit.subtransactions)
            for change in self._pending.pop(xid, ())
        ]
        # Transaction numbers come back: what an aborted namesake wrote long ago is not of this one.
        changes = [one for one in changes if one.lsn >= commit.lsn - _LONGEST_TRANSACTION]
        changes.sort(key=_lsn_of)
        step = _Step(magic)
        for change in changes:
            if change.catalog == PG_CLASS:
                self._maps.pop(change.database, None)
                self._apply(change, step)
            else:
                self._apply_name(change)
        for (database, oid), file in step.transient.items():
            # The table took the transient one's file over, whether or not its row could be told.
            self._files[database, file] = oid
            known = self._tables.get((database, oid))
            if known is not None:
                self._tables[database, oid] = known._replace(file=file)
        return step.applied()

    # --- inside --------------------------------------------------------------------

    def _apply(self, change: CatalogChange, step: _Step) -> None:
        rows = self._rows.setdefault(change.database, {})
        # Only where a map and the WAL behind it overlap is the new place known already.
        old = rows.pop(change.old, None) if change.old is not None else None
        if change.kind == DELETE:
            row = parse_row(old, step.magic) if old is not None else None
            if row is not None and row.is_temporary:
                step.created.add((change.database, row.oid))
                return
            table = self._tables.get((change.database, row.oid)) if row is not None else None
            if table is None:
                step.unknown_deletes += 1
            else:
                step.deleted.append(table)
            return
        if change.new is None:
            return
        if old is None and change.kind != INSERT:
            old = rows.get(change.new)
        raw = changed_row(old, change)
        row = parse_row(raw, step.magic) if raw is not None else None
        if raw is None or row is None:
            rows.pop(change.new, None)
            step.unknown_updates += 1
            return
        rows[change.new] = raw
        if row.is_temporary:
            return
        self._register(change.database, row)
        (step.created if change.kind == INSERT else step.changed).add((change.database, row.oid))
        if change.kind == INSERT and row.name.startswith(_TRANSIENT) and row.file:
            origin = row.name.removeprefix(_TRANSIENT)
            if origin.isascii() and origin.isdigit():
                step.transient[change.database, int(origin)] = row.file

    def _register(self, database: int, row: ClassRow) -> None:
        key = (database, row.oid)
        known = self._tables.get(key)
        schema = self._schemas.get((database, row.schema_oid), _OWN_SCHEMAS.get(row.schema_oid))
        self._tables[key] = Table(
            database,
            row.oid,
            schema if schema is not None else f"schema oid {row.schema_oid}",
            row.name,
            row.kind,
            row.file,
            row.tablespace,
            row.pages,
            known.rows if known is not None else -1,
        )
        if row.file:
            self._files[database, row.file] = row.oid

    def _apply_name(self, change: CatalogChange) -> None:
        """A schema or a database: an oid and a name, if the record tells both."""
        if change.kind == DELETE or change.skip or len(change.data) < 68:
            return
        oid = int.from_bytes(change.data[:4], sys.byteorder)
        name = change.data[4:68].split(b"\0", 1)[0].decode("utf-8", "replace")
        if change.catalog == PG_NAMESPACE:
            self._schemas[change.database, oid] = name
        elif change.catalog == PG_DATABASE:
            self._databases[oid] = name


class _Step:
    """What one transaction does, while it is applied."""

    def __init__(self, magic: int) -> None:
        self.magic = magic
        self.created: set[Relation] = set()
        self.changed: set[Relation] = set()
        self.deleted: list[Table] = []
        self.transient: dict[Relation, int] = {}
        self.unknown_updates = 0
        self.unknown_deletes = 0

    def applied(self) -> Applied:
        return Applied(
            frozenset(self.created),
            frozenset(self.changed),
            tuple(self.deleted),
            frozenset(self.transient),
            self.unknown_updates,
            self.unknown_deletes,
        )


def _lsn_of(change: CatalogChange) -> int:
    return change.lsn
