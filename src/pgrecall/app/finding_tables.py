"""The search for lost tables along one path: name maps, knowledge and sums, in WAL order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pgrecall.model.lsn import Lsn
from pgrecall.model.name_maps import NameRecord
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_index import Transaction
from pgrecall.model.wal_knowledge import SegmentKnowledge
from pgrecall.repository.name_maps import NameMaps, NamePlace
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.repository.wal_knowledge import KnowledgeReader, KnownSegment
from pgrecall.wal.deletion_sums import Deleted, DeletionSums
from pgrecall.wal.moments import Segments
from pgrecall.wal.name_tracker import NameTracker, Table
from pgrecall.wal.table_events import (
    DATABASE_DROPPED,
    DROPPED,
    DROPPED_OR_REWRITTEN,
    TRUNCATED,
    TRUNCATED_OR_REWRITTEN,
    EventFinder,
    Lost,
    TableEvent,
    is_own_table,
)
from pgrecall.wal.table_patterns import TablePattern

_WANTED = {
    "dropped": frozenset((DROPPED, DROPPED_OR_REWRITTEN, DATABASE_DROPPED)),
    "truncated": frozenset((TRUNCATED, TRUNCATED_OR_REWRITTEN, DROPPED_OR_REWRITTEN)),
}


_PREPARED = "restored, its prepared transaction still locks the table: ROLLBACK PREPARED it first"


class LostTable(NamedTuple):
    """An answer: recovery that stops just before ``lsn`` has the table, or its rows.

    ``table``: its database, schema and name, where these are known and it is one table.
    """

    what: str
    name: str
    time: int | None
    lsn: int
    xid: int
    rows: int | None = None
    note: str = ""
    table: tuple[str, str, str] | None = None


class TableSearch:
    """One path; what it learned on the way stays to be asked for.

    ``candidates`` are full names that fit the pattern, ``blind`` databases whose pg_class moved,
    ``unknown`` counts segments without knowledge, ``has_names``: a name map was found.
    """

    def __init__(self, archive: WalArchive, maps: NameMaps, history: TimelineHistory) -> None:
        self._reader = KnowledgeReader(archive)
        self._maps = maps
        self._history = history
        self._tracker = NameTracker()
        self._events = EventFinder(self._tracker)
        self._sums = DeletionSums(self._tracker)
        self._commits: dict[str, list[Transaction]] = {}
        self.candidates: set[str] = set()
        self.blind: set[str] = set()
        self.unknown = 0
        self.has_names = False

    def search(
        self, segments: Segments, wanted: str, pattern: TablePattern | None
    ) -> Iterator[LostTable]:
        """``wanted``: dropped, truncated or deleted. Raises as KnowledgeReader.along."""
        places = self._places()
        for segment in self._reader.along(segments):
            index = segment.wal_index
            if segment.follows_gap or segment.knowledge is None:
                self._tracker.forget_rows()
            # Several maps before the first segment: the last of them says it all.
            while len(places) > 1 and places[1].lsn <= index.start_lsn:
                del places[0]
            if segment.knowledge is None:
                self.unknown += 1
                while places and places[0].lsn < segment.until:
                    self._take_map(self._maps.record(places.pop(0)), index.magic)
                continue
            for part in self._parts(segment, places):
                for event in self._events.take(part, index.magic):
                    if wanted != "deleted":
                        yield from self._lost(segment, event, wanted, pattern)
            if wanted == "deleted":
                yield from self._deleted(segment)
        if wanted == "deleted":
            yield from self._still_open()
        self._see_candidates(pattern)
        self.blind |= {self._tracker.database_name(oid) for oid in self._events.moved if oid}

    # --- names ------------------------------------------------------------------------

    def _places(self) -> list[NamePlace]:
        ends = {switch.timeline: switch.end for switch in self._history.switches}
        places = self._maps.places((*ends, self._history.timeline))
        usable = [
            place
            for place in places
            if place.timeline not in ends or place.lsn <= ends[place.timeline]
        ]
        self.has_names = bool(usable)
        return usable

    def _take_map(self, record: NameRecord, magic: int) -> None:
        for entry in record.databases:
            if self._tracker.needs(entry):
                self._tracker.take_map(self._maps.names(entry.digest), entry.digest, magic)

    def _parts(self, segment: KnownSegment, places: list[NamePlace]) -> Iterator[SegmentKnowledge]:
        """The segment's knowledge, cut where name maps were taken."""
        knowledge = segment.knowledge
        assert knowledge is not None
        begin = 0
        while places and places[0].lsn < segment.until:
            place = places.pop(0)
            yield _between(knowledge, begin, place.lsn)
            begin = max(begin, place.lsn)
            self._take_map(self._maps.record(place), segment.wal_index.magic)
        yield _between(knowledge, begin, segment.until)

    def _see_candidates(self, pattern: TablePattern | None) -> None:
        if pattern is None:
            return
        for table in self._tracker.tables():
            database = self._tracker.database_name(table.database)
            if is_own_table(table) and pattern.fits(database, table.schema, table.name):
                self.candidates.add(f"{database}.{table.schema}.{table.name}")

    # --- what was lost ------------------------------------------------------------------

    def _lost(
        self, segment: KnownSegment, event: TableEvent, wanted: str, pattern: TablePattern | None
    ) -> Iterator[LostTable]:
        for lost in event.lost:
            if lost.action not in _WANTED[wanted]:
                continue
            database = self._tracker.database_name(lost.database)
            if lost.table is None:
                fits = pattern is None or pattern.fits_database(database)
            else:
                table = lost.table
                fits = pattern is None or pattern.fits(database, table.schema, table.name)
                if fits:
                    self.candidates.add(f"{database}.{table.schema}.{table.name}")
            if not fits:
                continue
            time = event.time
            if time is None:
                ended = self._end_of(segment, event.xid)
                time = ended.time if ended is not None else None
            name = self._name(lost.table, database) if lost.table else _unnamed(lost, database)
            note = _PREPARED if event.is_prepared else ""
            place = _place(lost.table, database) if lost.table else None
            yield LostTable(lost.action, name, time, event.lsn, event.xid, note=note, table=place)

    def _deleted(self, segment: KnownSegment) -> Iterator[LostTable]:
        assert segment.knowledge is not None
        ended = self._sums.take(
            tuple(one for one in segment.knowledge.deletions if one.first_lsn < segment.until)
        )
        for xid in dict.fromkeys((*ended, *self._sums.may_end_in(segment.wal_index))):
            is_known = xid in ended
            transaction: Transaction | None = None
            if not is_known or self._sums.is_worth_it(xid):
                transaction = self._end_of(segment, xid)
            if transaction is None and not is_known:
                continue
            is_commit = transaction is None or transaction.is_commit
            for deleted in self._sums.end(xid, is_commit=is_commit):
                lsn = transaction.lsn if transaction is not None else deleted.first_lsn
                time = transaction.time if transaction is not None else None
                yield self._of_deleted("deleted", deleted, (lsn, time, xid))

    def _still_open(self) -> Iterator[LostTable]:
        for xid, deleted in self._sums.still_open():
            what = "deleted, end not seen"
            yield self._of_deleted(what, deleted, (deleted.first_lsn, None, xid))

    def _of_deleted(
        self, what: str, deleted: Deleted, end: tuple[int, int | None, int]
    ) -> LostTable:
        lsn, time, xid = end
        database = self._tracker.database_name(deleted.database)
        name, place = f"file {deleted.file} of {database}, name unknown", None
        if deleted.table is not None:
            name = self._name(deleted.table, database)
            place = _place(deleted.table, database)
        return LostTable(what, name, time, lsn, xid, deleted.rows, table=place)

    def _end_of(self, segment: KnownSegment, xid: int) -> Transaction | None:
        name = segment.name
        if name not in self._commits:
            self._commits = {name: self._reader.transactions(name, segment.wal_index.start_lsn)}
        return next((one for one in self._commits[name] if one.xid == xid), None)

    def _name(self, table: Table, database: str) -> str:
        return f"{database}.{table.schema}.{table.name}"


def _place(table: Table, database: str) -> tuple[str, str, str]:
    return database, table.schema, table.name


def _unnamed(lost: Lost, database: str) -> str:
    if not lost.oid and not lost.file:
        return f"every table of {database}"
    what = f"oid {lost.oid}" if lost.oid else f"file {lost.file}"
    more = f" (and {lost.others} more relations)" if lost.others else ""
    return f"{what} of {database}, name unknown{more}"


def _between(knowledge: SegmentKnowledge, begin: Lsn | int, end: Lsn | int) -> SegmentKnowledge:
    """The part of it from ``begin`` up to ``end``; deletions are left whole."""
    parts = {
        name: tuple(item for item in getattr(knowledge, name) if begin <= item.lsn < end)
        for name in knowledge.__slots__
        if name not in {"deletions", "more"}
    }
    return knowledge.replaced(**parts)
