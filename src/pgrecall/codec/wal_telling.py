"""Which WAL records tell something of tables, and how deleted rows are counted.

The same decisions as ``tells``, ``commit_tells`` and ``count_deleted`` in _native.c: tests hold
them equal. Sources: PostgreSQL's access/xlogrecord.h, access/heapam_xlog.h, access/xact.h,
catalog/storage_xlog.h, commands/dbcommands_xlog.h and utils/relmapper.h, versions 13 to 18. LIGHT.
"""

from __future__ import annotations

import struct

from pgrecall.model.wal_knowledge import PG_CLASS, PG_DATABASE, PG_NAMESPACE

RECORD_HEADER_BYTES = 24
MAGIC_14 = 0xD10D

RM_XACT, RM_SMGR, RM_DBASE, RM_RELMAP, RM_HEAP = 1, 2, 4, 7, 10
HEAP_INSERT, HEAP_DELETE, HEAP_UPDATE, HEAP_TRUNCATE = 0x00, 0x10, 0x20, 0x30
HEAP_HOT_UPDATE, HEAP_INPLACE = 0x40, 0x70
SMGR_TRUNCATE = 0x20
FIRST_OWN_FILE = 16384
MAXIMUM_COUNTS = 65536
KEPT_TELLING = 64
"""Of a record that crosses the end of a segment and may tell something an index keeps so much."""

TELLS_NOTHING, TELLS, TELLS_OF_CATALOGS, TELLS_OF_A_ROW = 0, 1, 2, 3
STILL_OPEN, COMMITTED, ABORTED = 0, 1, 2

_LOCATOR = struct.Struct("=III")
_U32 = struct.Struct("=I")
_COUNT = struct.Struct("=QIIIIII")

_CATALOGS = frozenset((PG_CLASS, PG_NAMESPACE))
_HAS_XINFO = 0x80
COMMIT_PREPARED = 0x30
_COMMITS = frozenset((0x00, COMMIT_PREPARED))

FirstPlace = tuple[int, int, int]


def first_place(record: bytes, magic: int) -> FirstPlace | bool:
    """Tablespace, database and file of the first block reference, if it is of a main fork.

    False: it refers to none; True: the bytes that are there do not reach so far.
    """
    at = RECORD_HEADER_BYTES + 4
    if len(record) < at:
        return True
    flags = record[RECORD_HEADER_BYTES + 1]
    if record[RECORD_HEADER_BYTES] != 0 or flags & 0x8F:
        return False
    if flags & 0x10:
        if len(record) < at + 5:
            return True
        image = record[at + 4]
        at += 5
        if image & 0x01 and image & (0x1C if magic > MAGIC_14 else 0x02):
            at += 2
    if len(record) < at + _LOCATOR.size:
        return True
    space, database, file = _LOCATOR.unpack_from(record, at)
    return space, database, file


def tells(record: bytes, magic: int) -> tuple[int, FirstPlace | None]:
    """What kind of knowledge is in a record that is no commit, maybe of its first bytes only.

    Too few bytes count as TELLS. The place is that of a deleted row.
    """
    if len(record) < RECORD_HEADER_BYTES:
        return TELLS, None
    manager, operation = record[17], record[16] & 0xF0
    if manager == RM_SMGR:
        return (TELLS_OF_CATALOGS if operation == SMGR_TRUNCATE else TELLS_NOTHING), None
    if manager == RM_DBASE:
        return (TELLS if operation == drop_operation(magic) else TELLS_NOTHING), None
    if manager == RM_RELMAP:
        return (TELLS if operation == 0 else TELLS_NOTHING), None
    if manager != RM_HEAP:
        return TELLS_NOTHING, None
    operation &= 0x70
    if operation == HEAP_TRUNCATE:
        return TELLS, None
    place = first_place(record, magic)
    if isinstance(place, bool):
        return (TELLS if place else TELLS_NOTHING), None
    if operation == HEAP_DELETE and place[2] >= FIRST_OWN_FILE:
        return TELLS_OF_A_ROW, place
    is_row = operation <= HEAP_HOT_UPDATE
    if place[2] in _CATALOGS and is_row:
        return TELLS_OF_CATALOGS, None
    if place[2] == PG_DATABASE and (is_row or operation == HEAP_INPLACE):
        return TELLS_OF_CATALOGS, None
    return TELLS_NOTHING, None


def drop_operation(magic: int) -> int:
    """XLOG_DBASE_DROP of a version."""
    return 0x20 if magic > MAGIC_14 else 0x10


def commit_tells(data: bytes, info: int) -> int:
    """Whether a transaction's record, of which this is the main data, tells of tables.

    It does when it unlinks relations, or changed a catalog: then it carries invalidations.
    """
    if info & 0x70 not in _COMMITS or not info & _HAS_XINFO or len(data) < 12:
        return TELLS_NOTHING
    xinfo = _U32.unpack_from(data, 8)[0]
    if xinfo & 0x04:
        return TELLS
    return TELLS_OF_CATALOGS if xinfo & 0x08 else TELLS_NOTHING


def subtransactions_of(data: bytes, info: int) -> tuple[int, ...]:
    """The xids of the subtransactions in the main data of a commit or abort record."""
    if not info & _HAS_XINFO or len(data) < 12:
        return ()
    xinfo = _U32.unpack_from(data, 8)[0]
    at = 20 if xinfo & 0x01 else 12
    if not xinfo & 0x02 or len(data) < at + 4:
        return ()
    count = _U32.unpack_from(data, at)[0]
    if count > (len(data) - at - 4) // 4:
        return ()
    return struct.unpack_from(f"={count}I", data, at + 4)


class DeletedRows:
    """Counts deleted rows by transaction and file, and what became of the transactions."""

    __slots__ = ("_counts", "_outcomes", "has_more")

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int, int], list[int]] = {}
        self._outcomes: dict[int, tuple[int, int]] = {}
        self.has_more = False

    def add(self, xid: int, place: FirstPlace, lsn: int) -> None:
        """One row, deleted by the record at ``lsn``."""
        key = (xid, place[1], place[2])
        known = self._counts.get(key)
        if known is not None:
            known[1] += 1
        elif len(self._counts) >= MAXIMUM_COUNTS:
            self.has_more = True
        else:
            self._counts[key] = [lsn, 1]

    def end(self, xid: int, data: bytes, info: int) -> None:
        """A transaction ends; ``data`` is the main data of its record."""
        if not self._counts:
            return
        outcome = COMMITTED if info & 0x70 in _COMMITS else ABORTED
        for ended in (xid, *subtransactions_of(data, info)):
            self._outcomes.setdefault(ended, (xid, outcome))

    def packed(self) -> bytes:
        """As the C walk gives them: 32 bytes each, sorted by xid, database and file."""
        parts = []
        for (xid, database, file), (lsn, count) in sorted(self._counts.items()):
            top, outcome = self._outcomes.get(xid, (xid, STILL_OPEN))
            parts.append(_COUNT.pack(lsn, xid, top, database, file, count & 0xFFFFFFFF, outcome))
        return b"".join(parts)


def unpack_counts(packed: bytes) -> list[tuple[int, int, int, int, int, int, int]]:
    """(first LSN, xid, top xid, database, file, rows, outcome) of each count."""
    return list(_COUNT.iter_unpack(packed))
