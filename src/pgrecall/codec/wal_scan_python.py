"""The walk over the records of a WAL segment in Python, for where the C extension is missing.

Step by step the same as ``walk_segment`` in _native.c, with the same result:
tests hold them equal, on real WAL and on mutated bytes.
"""

from __future__ import annotations

import struct

import google_crc32c

from pgrecall.codec.wal_records import (
    MAXIMUM_RECORD_BYTES,
    MAXIMUM_SPECIAL_BYTES,
    RECORD_CRC_OFFSET,
    RECORD_HEADER_BYTES,
    RM_XACT,
    RM_XLOG,
    SPECIALS,
    SWITCH,
    TABLESPACE_CREATED,
    creates_tablespace,
    main_data,
    may_matter,
    transaction_end,
)
from pgrecall.codec.wal_telling import (
    KEPT_TELLING,
    TELLS_NOTHING,
    TELLS_OF_A_ROW,
    TELLS_OF_CATALOGS,
    DeletedRows,
    commit_tells,
    tells,
)

Buffer = bytes | bytearray | memoryview

_SHORT_HEADER = 24
_LONG_HEADER = 40
_FIRST_IS_CONTRECORD = 0x0001
_IS_LONG = 0x0002
_FIRST_IS_OVERWRITE = 0x0008
_ALL_FLAGS = 0x000F

_END, _SWITCH, _INVALID = 0, 1, 2
_CARRIED_NONE, _CARRIED_COMPLETED, _CARRIED_DISCARDED, _CARRIED_FOREIGN = 0, 1, 2, 3
_PAGE_INVALID, _PAGE_FRESH, _PAGE_CONTINUES, _PAGE_OVERWRITES = 0, 1, 2, 3
_WHOLE, _UNFINISHED, _TORN, _OVERWRITTEN = 0, 1, 2, 3

_PAGE = struct.Struct("=HHIQI")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_ENDED = struct.Struct("=QQqII")

_Times = tuple[int, int, int, int]
_Result = tuple[
    int,
    tuple[int, int],
    tuple[int, int, int, int],
    int,
    tuple[int, int, int, bytes],
    int,
    tuple[int, int, int],
    _Times,
    _Times,
    tuple[int, int],
    list[tuple[int, int, int, bytes]],
    bytes,
    list[tuple[int, int, bytes]],
    bytes,
    int,
]


def scan_wal(
    data: Buffer,
    start: int,
    page_bytes: int,
    want_transactions: bool,
    carried: tuple[int, int, int, bytes],
    catalog_limit: int,
) -> _Result:
    """Walk over one segment; see result_tuple in _native.c for what comes back."""
    if not 512 <= page_bytes <= 65536 or page_bytes & (page_bytes - 1):
        raise ValueError("a WAL page has 512 to 65536 bytes, a power of two")
    walk = _Walk(bytes(data), start, page_bytes)
    walk.wants_transactions = want_transactions
    walk.catalog_limit = catalog_limit
    walk.segment(*carried)
    return walk.result()


class _Walk:
    def __init__(self, data: bytes, start: int, page_bytes: int) -> None:
        self.data = data
        self.start = start
        self.page_bytes = page_bytes
        self.position = 0
        self.need = 0
        self.magic = 0
        self.timeline = 0
        self.first_timeline = 0
        self.stop = _INVALID
        self.carried_state = _CARRIED_NONE
        self.end_lsn = start
        self.first_lsn = 0
        self.last_lsn = 0
        self.first_previous = 0
        self.previous = 0
        self.records = 0
        self.contrecord_bytes = 0
        self.unfinished = (0, 0, 0, b"")
        self.ended: list[tuple[int, int, int, int, int]] = []
        self.specials: list[tuple[int, int, int, bytes]] = []
        self.wants_transactions = False
        self.catalog_limit = 0
        self.catalog_events = 0
        self.events: list[tuple[int, int, bytes]] = []
        self.deleted = DeletedRows()

    def segment(self, lsn: int, total: int, have: int, head: bytes) -> None:
        """From the first page to where WAL ends; the arguments are the carried record."""
        if len(self.data) < self.page_bytes:
            return
        self.magic, _, self.timeline, _, remaining = _PAGE.unpack_from(self.data)
        page, _ = self._enter_page(0)
        if page == _PAGE_INVALID:
            return
        self.first_timeline = self.timeline
        self.position = _LONG_HEADER
        if page == _PAGE_CONTINUES:
            self.contrecord_bytes = self.need = remaining
            if not self._contrecord(lsn, total, have, head):
                return
        elif lsn:
            self.carried_state = _CARRIED_DISCARDED
        while self._next():
            pass

    def result(self) -> _Result:
        commits = [ended[2] for ended in self.ended if ended[4]]
        times = [ended[2] for ended in self.ended]
        xids = [ended[3] for ended in self.ended if ended[3]]
        packed = b"".join(_ENDED.pack(*e) for e in self.ended) if self.wants_transactions else b""
        return (
            self.stop,
            (self.first_timeline, self.timeline),
            (self.end_lsn, self.first_lsn, self.last_lsn, self.first_previous),
            self.contrecord_bytes,
            self.unfinished,
            self.carried_state,
            (self.records, len(commits), len(times) - len(commits)),
            _times(commits),
            _times(times),
            (min(xids, default=0), max(xids, default=0)),
            self.specials,
            packed,
            self.events,
            self.deleted.packed(),
            (self.catalog_events > self.catalog_limit) | self.deleted.has_more << 1,
        )

    def _enter_page(self, offset: int) -> tuple[int, int]:
        """Judge the page header at ``offset``; also what it says is left of a record."""
        if len(self.data) - offset < self.page_bytes:
            return _PAGE_INVALID, 0
        magic, info, timeline, address, remaining = _PAGE.unpack_from(self.data, offset)
        if (
            magic != self.magic
            or info & ~_ALL_FLAGS
            or address != self.start + offset
            or timeline < self.timeline
            or bool(info & _IS_LONG) != (offset == 0)
        ):
            return _PAGE_INVALID, remaining
        self.timeline = timeline
        if info & _FIRST_IS_CONTRECORD:
            return (_PAGE_CONTINUES if remaining else _PAGE_INVALID), remaining
        return (_PAGE_OVERWRITES if info & _FIRST_IS_OVERWRITE else _PAGE_FRESH), remaining

    def _read(self, head: bytes) -> tuple[int, bytes]:
        """Move over ``need`` bytes of a record, across pages, and add them to ``head``."""
        parts = [head]
        while True:
            left = self.page_bytes - self.position % self.page_bytes
            chunk = min(self.need, left)
            parts.append(self.data[self.position : self.position + chunk])
            self.position += chunk
            self.need -= chunk
            if not self.need:
                self.position = (self.position + 7) & ~7
                return _WHOLE, b"".join(parts)
            if self.position == len(self.data):
                return _UNFINISHED, b"".join(parts)
            page, remaining = self._enter_page(self.position)
            if page == _PAGE_OVERWRITES:
                return _OVERWRITTEN, b""
            if page != _PAGE_CONTINUES or remaining != self.need:
                return _TORN, b""
            self.position += _SHORT_HEADER

    def _contrecord(self, lsn: int, total: int, have: int, head: bytes) -> bool:
        known = (
            lsn != 0
            and total >= RECORD_HEADER_BYTES
            and have + self.need == total
            and len(head) <= have
        )
        if lsn and not known:
            self.carried_state = _CARRIED_FOREIGN
        outcome, record = self._read(head if known else b"")
        if outcome == _TORN:
            return False
        if outcome == _OVERWRITTEN:
            self.carried_state = _CARRIED_DISCARDED if known else self.carried_state
            return True
        if outcome == _UNFINISHED:
            self.stop = _END
            if known:
                kept = record if len(head) == have else head
                self._keep_unfinished(lsn, total, total - self.need, kept)
            return False
        self.end_lsn = self.start + self.position
        if not known:
            return True
        self.carried_state = _CARRIED_COMPLETED
        self.previous = lsn
        if len(head) < have:
            return True
        if not _is_whole(record):
            self.carried_state = _CARRIED_FOREIGN
            self.previous = 0
            return True
        self._take(record, lsn)
        return True

    def _next(self) -> bool:
        """One record; False when the walk is over."""
        if self.position == len(self.data):
            self.stop = _END
            return False
        if self.position % self.page_bytes == 0:
            page, _ = self._enter_page(self.position)
            if page in (_PAGE_INVALID, _PAGE_CONTINUES):
                return False
            self.position += _SHORT_HEADER
        lsn = self.start + self.position
        total = _U32.unpack_from(self.data, self.position)[0]
        if not RECORD_HEADER_BYTES <= total <= MAXIMUM_RECORD_BYTES:
            return False
        left = self.page_bytes - self.position % self.page_bytes
        if left >= RECORD_HEADER_BYTES:
            previous = _U64.unpack_from(self.data, self.position + 8)[0]
            if not self._is_linked(previous, lsn):
                return False
        self.need = total
        outcome, record = self._read(b"")
        if outcome == _TORN:
            return False
        if outcome == _OVERWRITTEN:
            return True
        linked = len(record) < RECORD_HEADER_BYTES or self._is_linked(
            _U64.unpack_from(record, 8)[0], lsn
        )
        if outcome == _UNFINISHED:
            if linked:
                self._keep_unfinished(lsn, total, total - self.need, record)
                self.stop = _END
            return False
        if not linked or not _is_whole(record):
            return False
        if self._take(record, lsn):
            self.stop = _SWITCH
            return False
        return True

    def _is_linked(self, previous: int, lsn: int) -> bool:
        return previous == self.previous if self.previous else previous < lsn

    def _keep_unfinished(self, lsn: int, total: int, have: int, record: bytes) -> None:
        kept = len(record)
        if not may_matter(record):
            telling = tells(record, self.magic)[0]
            if telling == TELLS_NOTHING:
                kept = RECORD_HEADER_BYTES
            elif not self.wants_transactions:
                kept = KEPT_TELLING
        self.unfinished = (lsn, total, have, record[:kept])

    def _take(self, record: bytes, lsn: int) -> bool:
        """Note a whole, valid record that ends at ``position``; True for a switch."""
        end = self.end_lsn = self.start + self.position
        self.previous = lsn
        if lsn >= self.start:
            if not self.first_lsn:
                self.first_lsn = lsn
                self.first_previous = _U64.unpack_from(record, 8)[0]
            self.last_lsn = lsn
            self.records += 1
        manager = record[17]
        if manager == RM_XACT:
            ended = transaction_end(record, len(record), self.magic)
            if ended:
                time, xid, is_commit = ended
                self.ended.append((lsn, end, time, xid or 0, int(is_commit)))
                self._take_end(record, lsn, xid or 0)
        elif creates_tablespace(record):
            self._take_special(record, lsn, TABLESPACE_CREATED)
        elif manager == RM_XLOG:
            operation = record[16] & 0xF0
            if operation == SWITCH:
                return True
            if operation in SPECIALS:
                self._take_special(record, lsn, operation)
        else:
            telling, place = tells(record, self.magic)
            if telling == TELLS_OF_A_ROW and place:
                self.deleted.add(_U32.unpack_from(record, 4)[0], place, lsn)
            else:
                self._take_event(record, lsn, telling)
        return False

    def _take_end(self, record: bytes, lsn: int, xid: int) -> None:
        place = main_data(record, len(record))
        if place:
            data = record[place[0] : place[0] + place[1]]
            self.deleted.end(xid, data, record[16])
            self._take_event(record, lsn, commit_tells(data, record[16]))

    def _take_event(self, record: bytes, lsn: int, telling: int) -> None:
        if telling == TELLS_NOTHING:
            return
        if telling == TELLS_OF_CATALOGS:
            self.catalog_events += 1
            if self.catalog_events > self.catalog_limit:
                return
        self.events.append((lsn, self.end_lsn, record))

    def _take_special(self, record: bytes, lsn: int, operation: int) -> None:
        place = main_data(record, len(record))
        if place:
            data = record[place[0] : place[0] + min(place[1], MAXIMUM_SPECIAL_BYTES)]
            self.specials.append((lsn, self.end_lsn, operation, data))


def _is_whole(record: bytes) -> bool:
    crc = google_crc32c.extend(0, record[RECORD_HEADER_BYTES:])
    crc = google_crc32c.extend(crc, record[:RECORD_CRC_OFFSET])
    return bool(crc == _U32.unpack_from(record, RECORD_CRC_OFFSET)[0])


def _times(times: list[int]) -> _Times:
    return (times[0], times[-1], min(times), max(times)) if times else (0, 0, 0, 0)
