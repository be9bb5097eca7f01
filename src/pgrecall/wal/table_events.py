"""Which tables a stretch of WAL drops, truncates or rewrites, and by which commit. Pure.

A commit that unlinks files is a DROP when it drops the relation's statistics (15 and later) or
deletes its row in pg_class; a TRUNCATE when the row got another file and no pages; anything else
that gives another file is a rewrite. Where neither can be told, the answer says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pgrecall.model.wal_knowledge import (
    CatalogChange,
    CatalogCommit,
    CatalogMove,
    DatabaseDrop,
    DatabaseMark,
    SegmentKnowledge,
    TableTruncation,
    Unlinking,
)
from pgrecall.wal.name_tracker import Applied, NameTracker, Relation, Table

DROPPED = "dropped"
TRUNCATED = "truncated"
REWRITTEN = "rewritten"
DROPPED_OR_REWRITTEN = "dropped or rewritten"
TRUNCATED_OR_REWRITTEN = "truncated or rewritten"
DATABASE_DROPPED = "dropped with its database"

#: What people call tables; indexes, sequences and TOAST tables go along with them.
TABLE_KINDS = frozenset("rpmf")

FIRST_OWN_NUMBER = 16384
"""Lower numbers are of files and oids that PostgreSQL has from the start: nobody's tables."""

_MAGIC_14 = 0xD10D


def is_own_table(table: Table) -> bool:
    """Whether somebody made this table: neither PostgreSQL itself, nor an index or the like."""
    return table.kind in TABLE_KINDS and table.oid >= FIRST_OWN_NUMBER


class Lost(NamedTuple):
    """A relation in an event; ``table`` is None when its name is not known.

    ``oid`` is 0 where not even that is known, then ``file`` is its number. ``others`` counts
    further unnamed relations of the same commit: its indexes and TOAST table, or other tables.
    """

    action: str
    database: int
    oid: int
    file: int
    table: Table | None
    others: int = 0


class TableEvent(NamedTuple):
    """A commit, or the removal of a database, at which tables were lost.

    Recovery that stops just before ``lsn`` has them; locked by the transaction itself, if that
    ``is_prepared``. ``time`` is None for a removed database.
    """

    lsn: int
    xid: int
    time: int | None
    database: int
    lost: tuple[Lost, ...]
    is_prepared: bool = False


class EventFinder:
    """Walks knowledge in WAL order; ``tracker`` is moved along."""

    def __init__(self, tracker: NameTracker) -> None:
        self.tracker = tracker
        self.moved: set[int] = set()
        self._marks: dict[int, DatabaseMark] = {}
        self._truncated: dict[int, set[Relation]] = {}

    def take(self, knowledge: SegmentKnowledge, magic: int) -> Iterator[TableEvent]:
        """The events of one segment, or of a part of it."""
        unlinkings = {item.lsn: item for item in knowledge.unlinkings}
        for item in _in_order(knowledge):
            if isinstance(item, CatalogChange):
                self.tracker.note(item)
            elif isinstance(item, CatalogCommit):
                yield from self._commit(item, unlinkings.get(item.lsn), magic)
            elif isinstance(item, TableTruncation):
                oids = ((item.database, oid) for oid in item.oids)
                self._truncated.setdefault(item.xid, set()).update(oids)
            elif isinstance(item, CatalogMove):
                self.moved.add(item.database)
                self.tracker.forget_rows(item.database)
            elif isinstance(item, DatabaseMark):
                self._marks[item.database] = item
            else:
                yield self._database(item)

    def _commit(
        self, commit: CatalogCommit, unlinking: Unlinking | None, magic: int
    ) -> Iterator[TableEvent]:
        logged: set[Relation] = set()
        for xid in (commit.xid, *commit.subtransactions):
            logged |= self._truncated.pop(xid, set())
        if unlinking is None:
            self.tracker.commit(commit, magic)
            return
        files = {
            (database, file): (
                self.tracker.oid_of_file(database, file),
                self.tracker.table_of_file(database, file),
            )
            for _, database, file in unlinking.files
        }
        known = {relation: self.tracker.table(*relation) for relation in unlinking.dropped}
        applied = self.tracker.commit(commit, magic)
        judge = _Judge(self.tracker, unlinking, applied, logged, magic)
        lost = judge.lost(files, known)
        if lost:
            database = unlinking.files[0][1] if unlinking.files else 0
            yield TableEvent(
                unlinking.lsn,
                unlinking.xid,
                unlinking.time,
                database,
                lost,
                unlinking.is_prepared,
            )

    def _database(self, drop: DatabaseDrop) -> TableEvent:
        # The mark is made in place: whoever recovers to behind it gets a database that admits
        # nobody. So the target lies before it.
        mark = self._marks.pop(drop.database, None)
        lsn = mark.lsn if mark is not None and mark.xid in (0, drop.xid) else drop.lsn
        lost = tuple(
            Lost(DATABASE_DROPPED, drop.database, table.oid, table.file, table)
            for table in self.tracker.tables()
            if table.database == drop.database and is_own_table(table)
        )
        unnamed = (Lost(DATABASE_DROPPED, drop.database, 0, 0, None),)
        return TableEvent(lsn, drop.xid, None, drop.database, lost or unnamed)


class _Judge:
    """Decides for one unlinking commit what became of which relation."""

    def __init__(
        self,
        tracker: NameTracker,
        unlinking: Unlinking,
        applied: Applied,
        logged_truncations: set[Relation],
        magic: int,
    ) -> None:
        self._tracker = tracker
        self._unlinking = unlinking
        self._applied = applied
        self._logged = logged_truncations
        self._tells_drops = magic > _MAGIC_14
        self._gone = {(table.database, table.oid) for table in applied.deleted}
        self._gone |= set(unlinking.dropped)

    def lost(
        self,
        files: dict[tuple[int, int], tuple[int, Table | None]],
        dropped: dict[Relation, Table | None],
    ) -> tuple[Lost, ...]:
        """What was lost; ``files`` and ``dropped`` as they were known before the commit."""
        found: dict[Relation, Lost] = {}
        unnamed: list[Lost] = []
        for (database, file), (oid, table) in files.items():
            if table is not None:
                if table.kind in TABLE_KINDS:
                    action = self._action(table)
                    found[database, table.oid] = Lost(action, database, table.oid, file, table)
                continue
            if self._is_own(database, file) or (not oid and file < FIRST_OWN_NUMBER):
                continue
            if oid or not self._tells_drops or not dropped:
                action = self._action_of_unknown(database, oid)
                unnamed.append(Lost(action, database, oid, file, None))
        for table in self._applied.deleted:
            if table.kind in TABLE_KINDS and (table.database, table.oid) not in found:
                if (table.database, table.oid) in self._applied.created:
                    continue
                found[table.database, table.oid] = Lost(
                    DROPPED, table.database, table.oid, table.file, table
                )
        for (database, oid), table in dropped.items():
            if (database, oid) in found or (database, oid) in self._applied.created:
                continue
            if table is None:
                unnamed.append(Lost(DROPPED, database, oid, 0, None))
            elif table.kind in TABLE_KINDS:
                found[database, oid] = Lost(DROPPED, database, oid, table.file, table)
        return (*found.values(), *_joined(unnamed))

    def _is_own(self, database: int, file: int) -> bool:
        """Made by this very transaction: nobody has lost it."""
        oid = self._tracker.oid_of_file(database, file)
        return bool(oid) and (database, oid) in self._applied.created

    def _action(self, table: Table) -> str:
        relation = (table.database, table.oid)
        if relation in self._gone:
            return DROPPED
        if relation in self._applied.rewritten:
            return REWRITTEN
        if relation in self._logged:
            return TRUNCATED
        if relation in self._applied.changed:
            now = self._tracker.table(*relation)
            if now is not None and now.file != table.file:
                is_empty = now.pages == 0 and now.tablespace == table.tablespace
                return TRUNCATED if is_empty else REWRITTEN
        return self._action_of_unknown(table.database, table.oid)

    def _action_of_unknown(self, database: int, oid: int) -> str:
        if (database, oid) in self._applied.rewritten:
            return REWRITTEN
        if self._tells_drops:
            return DROPPED if (database, oid) in self._gone else TRUNCATED_OR_REWRITTEN
        if self._applied.unknown_deletes and not self._applied.unknown_updates:
            return DROPPED
        return DROPPED_OR_REWRITTEN


def _joined(unnamed: list[Lost]) -> list[Lost]:
    """One entry for all of a commit's unnamed relations of one kind: tables come first by oid."""
    actions: dict[str, list[Lost]] = {}
    for lost in unnamed:
        actions.setdefault(lost.action, []).append(lost)
    return [
        min(group, key=_oid_or_file)._replace(others=len(group) - 1) for group in actions.values()
    ]


def _oid_or_file(lost: Lost) -> tuple[bool, int, int]:
    return (not lost.oid, lost.oid, lost.file)


_Item = CatalogChange | CatalogCommit | TableTruncation | CatalogMove | DatabaseMark | DatabaseDrop


def _in_order(knowledge: SegmentKnowledge) -> list[_Item]:
    items: list[_Item] = [
        *knowledge.changes,
        *knowledge.commits,
        *knowledge.table_truncations,
        *knowledge.moves,
        *knowledge.database_marks,
        *knowledge.database_drops,
    ]
    items.sort(key=_lsn_of)
    return items


def _lsn_of(item: _Item) -> int:
    return item.lsn
