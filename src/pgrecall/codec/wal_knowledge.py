"""From the records that tell something of tables to values.

A row of a catalog comes from the record itself, or from the page image that full-page writes put
in its place. Only what the bytes prove is kept: a record of another shape is left out.

Sources: PostgreSQL's access/xlogrecord.h, access/heapam_xlog.h, access/htup_details.h,
storage/bufpage.h, access/xact.h, catalog/storage_xlog.h, commands/dbcommands_xlog.h,
utils/relmapper.c, catalog/pg_class.h and pg_database.h, versions 13 to 18. LIGHT.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pgrecall.codec.wal_blocks import Block, HeapRecord, heap_record, page_row
from pgrecall.codec.wal_records import main_data, transaction_end
from pgrecall.codec.wal_telling import (
    ABORTED,
    COMMIT_PREPARED,
    HEAP_DELETE,
    HEAP_HOT_UPDATE,
    HEAP_INPLACE,
    HEAP_INSERT,
    HEAP_TRUNCATE,
    HEAP_UPDATE,
    MAGIC_14,
    RM_DBASE,
    RM_HEAP,
    RM_RELMAP,
    RM_SMGR,
    RM_XACT,
    STILL_OPEN,
    subtransactions_of,
    unpack_counts,
)
from pgrecall.model.wal_knowledge import (
    CATALOGS,
    COMMITTED,
    DELETE,
    DELETIONS,
    FEWEST_DELETED,
    INSERT,
    MAXIMUM_DELETIONS,
    MAXIMUM_FILES,
    MAXIMUM_SUBTRANSACTIONS,
    MAXIMUM_UNLINKINGS,
    OPEN,
    PG_CLASS,
    ROW_BYTES,
    UNLINKINGS,
    UPDATE,
    CatalogChange,
    CatalogCommit,
    CatalogMove,
    DatabaseDrop,
    DatabaseMark,
    Deletions,
    File,
    FileTruncation,
    SegmentKnowledge,
    TableTruncation,
    Unlinking,
)

_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_SMGR_TRUNCATE = struct.Struct("=IIII")
_TABLE_TRUNCATE = struct.Struct("=IIB3x")
_STATISTICS_13 = struct.Struct("=iII")
_STATISTICS_18 = struct.Struct("=iIII")
_FILE = struct.Struct("=III")
_MAGIC_17 = 0xD116
_RELATION_STATISTICS = 2
_PREFIX_FROM_OLD, _SUFFIX_FROM_OLD = 0x20, 0x40
_INIT_PAGE = 0x80
_HEAP_HEADER_BYTES = 5
_TUPLE_HEADER_BYTES = 23
_UNUSABLE = -2
"""datconnlimit of a database whose removal has begun (13.12, 14.9, 15.4 and later)."""

RawEvent = tuple[int, int, bytes]


def parse_knowledge(
    magic: int, events: Iterable[RawEvent], counts: bytes, left_out: int
) -> SegmentKnowledge:
    """What these records of one segment tell, and the packed counts of deleted rows.

    ``left_out`` is what the walk says: 1 changes of catalogs, 2 counts beyond its bounds.
    """
    parser = _Parser(magic)
    for lsn, end_lsn, record in events:
        parser.take(lsn, end_lsn, record)
    more = [name for bit, name in ((1, CATALOGS), (2, DELETIONS)) if left_out & bit]
    return SegmentKnowledge(
        tuple(parser.unlinkings),
        tuple(parser.commits),
        tuple(parser.changes),
        tuple(parser.file_truncations),
        tuple(parser.table_truncations),
        tuple(parser.database_drops),
        tuple(parser.database_marks),
        tuple(parser.moves),
        _deletions(counts),
        tuple(more),
    )


def bounded(whole: SegmentKnowledge) -> SegmentKnowledge:
    """As much of it as an index holds; ``more`` then sends the reader to the segment."""
    more = set(whole.more)
    unlinkings = tuple(_bounded_unlinking(item) for item in whole.unlinkings[:MAXIMUM_UNLINKINGS])
    if len(whole.unlinkings) > MAXIMUM_UNLINKINGS or any(item.has_more for item in unlinkings):
        more.add(UNLINKINGS)
    if any(len(commit.subtransactions) > MAXIMUM_SUBTRANSACTIONS for commit in whole.commits):
        more.add(CATALOGS)
    commits = tuple(
        commit.replaced(subtransactions=commit.subtransactions[:MAXIMUM_SUBTRANSACTIONS])
        for commit in whole.commits
    )
    worth = [item for item in whole.deletions if item.state == OPEN or item.rows >= FEWEST_DELETED]
    if len(worth) > MAXIMUM_DELETIONS:
        more.add(DELETIONS)
        worth = sorted(worth, key=_least_rows_last)[:MAXIMUM_DELETIONS]
    worth.sort(key=_first_lsn)
    return whole.replaced(
        unlinkings=unlinkings, commits=commits, deletions=tuple(worth), more=tuple(sorted(more))
    )


def _bounded_unlinking(item: Unlinking) -> Unlinking:
    parts = (item.files, item.dropped, item.subtransactions)
    if all(len(part) <= MAXIMUM_FILES for part in parts):
        return item
    return item.replaced(
        files=item.files[:MAXIMUM_FILES],
        dropped=item.dropped[:MAXIMUM_FILES],
        subtransactions=item.subtransactions[:MAXIMUM_FILES],
        has_more=True,
    )


def _least_rows_last(item: Deletions) -> int:
    return -item.rows


def _first_lsn(item: Deletions) -> int:
    return item.first_lsn


def _deletions(counts: bytes) -> tuple[Deletions, ...]:
    """Counts of deleted rows, those of subtransactions added to their parents'."""
    found: dict[tuple[int, int, int, str], list[int]] = {}
    for lsn, _, top, database, file, rows, outcome in unpack_counts(counts):
        if outcome == ABORTED:
            continue
        state = OPEN if outcome == STILL_OPEN else COMMITTED
        known = found.setdefault((top, database, file, state), [lsn, 0])
        known[0] = min(known[0], lsn)
        known[1] += rows
    return tuple(
        Deletions(lsn, xid, database, file, rows, state)
        for (xid, database, file, state), (lsn, rows) in found.items()
    )


class _Parser:
    def __init__(self, magic: int) -> None:
        self.magic = magic
        self.unlinkings: list[Unlinking] = []
        self.commits: list[CatalogCommit] = []
        self.changes: list[CatalogChange] = []
        self.file_truncations: list[FileTruncation] = []
        self.table_truncations: list[TableTruncation] = []
        self.database_drops: list[DatabaseDrop] = []
        self.database_marks: list[DatabaseMark] = []
        self.moves: list[CatalogMove] = []

    def take(self, lsn: int, end_lsn: int, record: bytes) -> None:
        """One record of those that the walk hands over."""
        manager = record[17]
        if manager == RM_XACT:
            self._take_commit(lsn, end_lsn, record)
        elif manager == RM_HEAP and record[16] & 0x70 != HEAP_TRUNCATE:
            found = heap_record(record, self.magic)
            if found is not None:
                self._take_row(lsn, found)
        else:
            place = main_data(record, len(record))
            if manager == RM_SMGR:
                # Its main data stands alone, too: storage records refer to no block.
                self._take_file_truncation(lsn, record, place)
            elif place is not None:
                self._take_plain(lsn, end_lsn, record, record[place[0] : place[0] + place[1]])

    def _take_plain(self, lsn: int, end_lsn: int, record: bytes, data: bytes) -> None:
        xid = _U32.unpack_from(record, 4)[0]
        manager = record[17]
        if manager == RM_DBASE and len(data) >= 8:
            database = _U32.unpack_from(data)[0]
            self.database_drops.append(DatabaseDrop(lsn, end_lsn, xid, database))
        elif manager == RM_RELMAP and len(data) >= 20:
            self._take_map(lsn, data)
        elif manager == RM_HEAP and len(data) >= _TABLE_TRUNCATE.size:
            database, count, _ = _TABLE_TRUNCATE.unpack_from(data)
            if count <= (len(data) - _TABLE_TRUNCATE.size) // 4:
                oids = struct.unpack_from(f"={count}I", data, _TABLE_TRUNCATE.size)
                self.table_truncations.append(TableTruncation(lsn, xid, database, oids))

    def _take_file_truncation(self, lsn: int, record: bytes, place: tuple[int, int] | None) -> None:
        if place is not None and place[1] >= _SMGR_TRUNCATE.size:
            blocks, *file = _SMGR_TRUNCATE.unpack_from(record, place[0])
            xid = _U32.unpack_from(record, 4)[0]
            where = (file[0], file[1], file[2])
            self.file_truncations.append(FileTruncation(lsn, xid, where, blocks))

    def _take_map(self, lsn: int, data: bytes) -> None:
        """The map of the catalogs whose files have no number in pg_class."""
        database = _U32.unpack_from(data)[0]
        count = _U32.unpack_from(data, 16)[0]
        pairs = struct.unpack_from(f"={2 * min(count, (len(data) - 20) // 8)}I", data, 20)
        for oid, file in zip(pairs[::2], pairs[1::2], strict=True):
            if oid == PG_CLASS:
                self.moves.append(CatalogMove(lsn, database, file))

    # --- transactions ------------------------------------------------------------------

    def _take_commit(self, lsn: int, end_lsn: int, record: bytes) -> None:
        place = main_data(record, len(record))
        ended = transaction_end(record, len(record), self.magic)
        if place is None or ended is None:
            return
        time, xid, _ = ended
        data = record[place[0] : place[0] + place[1]]
        children = subtransactions_of(data, record[16])
        self.commits.append(CatalogCommit(lsn, xid or 0, children))
        files, dropped, is_whole = self._unlinked(data)
        if files or not is_whole:
            self.unlinkings.append(
                Unlinking(
                    lsn,
                    end_lsn,
                    xid or 0,
                    time,
                    children,
                    files,
                    dropped,
                    has_more=not is_whole,
                    is_prepared=record[16] & 0x70 == COMMIT_PREPARED,
                )
            )

    def _unlinked(self, data: bytes) -> tuple[tuple[File, ...], tuple[tuple[int, int], ...], bool]:
        """Files and dropped relations of a commit's main data, and whether it could be read."""
        xinfo = _U32.unpack_from(data, 8)[0]
        at = 20 if xinfo & 0x01 else 12
        if xinfo & 0x02:
            (at, _), is_there = _list_at(data, at, 4)
            if not is_there:
                return (), (), not xinfo & 0x04
        if not xinfo & 0x04:
            return (), (), True
        (end, begin), is_there = _list_at(data, at, _FILE.size)
        if not is_there:
            return (), (), False
        files = tuple((space, db, file) for space, db, file in _FILE.iter_unpack(data[begin:end]))
        dropped: tuple[tuple[int, int], ...] = ()
        if xinfo & 0x100:
            item = _STATISTICS_18 if self.magic > _MAGIC_17 else _STATISTICS_13
            (end, begin), is_there = _list_at(data, end, item.size)
            if is_there:
                dropped = tuple(
                    (database, oid)
                    for kind, database, oid, *_ in item.iter_unpack(data[begin:end])
                    if kind == _RELATION_STATISTICS
                )
        return files, dropped, True

    # --- rows of catalogs ----------------------------------------------------------------

    def _take_row(self, lsn: int, found: HeapRecord) -> None:
        block, data = found.blocks[0], found.data
        operation = found.info & 0x70
        if operation == HEAP_INSERT and len(data) >= 3:
            offset = 1 if found.info & _INIT_PAGE else _U16.unpack_from(data)[0]
            row = (0, _logged_row(block.data)) if block.data else (0, page_row(block.page, offset))
            self._change(lsn, found, INSERT, (None, (block.number, offset)), row)
        elif operation == HEAP_DELETE and len(data) >= 8:
            offset = _U16.unpack_from(data, 4)[0]
            self._change(lsn, found, DELETE, ((block.number, offset), None), (0, b""))
        elif operation in (HEAP_UPDATE, HEAP_HOT_UPDATE) and len(data) >= 14:
            old_block = found.blocks[1].number if len(found.blocks) > 1 else block.number
            new_offset = 1 if found.info & _INIT_PAGE else _U16.unpack_from(data, 12)[0]
            places = (old_block, _U16.unpack_from(data, 4)[0]), (block.number, new_offset)
            row = _updated_row(block, data[7], new_offset)
            self._change(lsn, found, UPDATE, places, row)
        elif operation == HEAP_INPLACE and len(data) >= 2:
            row_bytes = block.data or page_row(block.page, _U16.unpack_from(data)[0], 212)
            self._take_mark(lsn, found.xid, row_bytes)

    def _change(
        self,
        lsn: int,
        found: HeapRecord,
        kind: str,
        places: tuple[tuple[int, int] | None, tuple[int, int] | None],
        row: tuple[int, bytes],
    ) -> None:
        _, database, catalog = found.blocks[0].file
        skip = row[0]
        data = row[1][: max(0, ROW_BYTES - skip)]
        self.changes.append(
            CatalogChange(lsn, found.xid, catalog, kind, database, *places, skip, data)
        )

    def _take_mark(self, lsn: int, xid: int, row: bytes) -> None:
        """A row of pg_database changed in place: is it made unusable by this?"""
        at = 80 if self.magic > MAGIC_14 else 208
        if len(row) >= at + 4 and struct.unpack_from("=i", row, at)[0] == _UNUSABLE:
            self.database_marks.append(DatabaseMark(lsn, xid, _U32.unpack_from(row)[0]))


def _list_at(data: bytes, at: int, item_bytes: int) -> tuple[tuple[int, int], bool]:
    """(End, begin) of the items of a counted list, and whether it lies within ``data``."""
    if len(data) - at < 4:
        return (at, at), False
    begin = at + 4
    end = begin + _U32.unpack_from(data, at)[0] * item_bytes
    return (end, begin), end <= len(data)


def _logged_row(data: bytes) -> bytes:
    """A whole row as a record holds it: five bytes of header, null bitmap, padding, columns."""
    if len(data) < _HEAP_HEADER_BYTES or data[4] < _TUPLE_HEADER_BYTES:
        return b""
    return data[_HEAP_HEADER_BYTES + data[4] - _TUPLE_HEADER_BYTES :]


def _updated_row(block: Block, flags: int, offset: int) -> tuple[int, bytes]:
    """How many bytes are as in the old row, and those that follow them."""
    if not block.data:
        return 0, page_row(block.page, offset)
    at = skip = 0
    if flags & _PREFIX_FROM_OLD:
        skip = _U16.unpack_from(block.data)[0] if len(block.data) >= 2 else 0
        at = 2
    if flags & _SUFFIX_FROM_OLD:
        at += 2
    return skip, _logged_row(block.data[at:])
