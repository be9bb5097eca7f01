"""Records that cross the end of a segment, put together from the indexes of its neighbours.

Almost every segment ends in the middle of a record; now and then that record
is a commit, a restore point or another one that matters to a recovery target.
It belongs to neither index, so whoever plans with indexes asks here as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pgrecall.codec.wal_records import (
    RECORD_HEADER_BYTES,
    RM_XLOG,
    TABLESPACE_CREATED,
    Special,
    creates_tablespace,
    main_data,
    may_matter,
    parse_special,
    transaction_end,
)
from pgrecall.model.wal_index import Transaction, WalIndex

NOTHING = "nothing"
"""No record crosses, or it is of a kind that no recovery target asks for."""
COMPLETE = "complete"
"""``record`` crosses and ends in the last of the segments that were looked at."""
OPEN = "open"
"""The record may matter, and its end was not among the indexes given."""
DISCARDED = "discarded"
"""The server crashed while it wrote the record, and WAL goes on without it: it never happened."""
UNREADABLE = "unreadable"
"""The record may matter, and the indexes hold too little of it: read the segments themselves."""

_LONG_HEADER = 40
_SHORT_HEADER = 24


class Crossing:
    """``outcome`` is one of the constants of this module; ``record`` is there when COMPLETE."""

    __slots__ = ("outcome", "record")

    def __init__(self, outcome: str, record: Transaction | Special | None = None) -> None:
        self.outcome = outcome
        self.record = record

    def __repr__(self) -> str:
        return f"Crossing({self.outcome!r}, {self.record!r})"


def complete_crossing(indexes: Sequence[WalIndex]) -> Crossing:
    """What the record is that the first segment leaves unfinished.

    ``indexes`` are of consecutive segments along the timeline path that is
    replayed: two are enough, unless a record is longer than a segment. A
    record is taken for whole when the lengths in the page headers add up and
    the next record names it as the one before; where no record follows, the
    segment's own valid end must lie behind it.
    """
    first = indexes[0]
    unfinished = first.unfinished
    if unfinished is None or not may_matter(unfinished.head):
        return Crossing(NOTHING)
    rest = unfinished.total_bytes - unfinished.have_bytes
    known = unfinished.head
    is_gapless = len(known) == unfinished.have_bytes
    for previous, index in pairwise(indexes):
        if index.start_lsn != previous.segment_end:
            return Crossing(OPEN)
        if index.contrecord_bytes == 0:
            return Crossing(DISCARDED)
        if index.contrecord_bytes != rest:
            return Crossing(UNREADABLE)
        if is_gapless:
            known += index.contrecord_head
        here = _payload_bytes(index)
        if rest > here:
            is_gapless = is_gapless and len(index.contrecord_head) == here
            rest -= here
            continue
        end_lsn = _end_of_contrecord(index, rest)
        if index.first_previous_lsn is not None:
            if index.first_previous_lsn != unfinished.lsn:
                return Crossing(UNREADABLE)
        elif index.end_lsn < end_lsn:
            return Crossing(OPEN)
        return _parsed((unfinished.lsn, end_lsn), known, unfinished.total_bytes, first.magic)
    return Crossing(OPEN)


def _parsed(place: tuple[int, int], known: bytes, total_bytes: int, magic: int) -> Crossing:
    """The record at ``place`` (start, end) from its first bytes, maybe not all ``total_bytes``."""
    if len(known) < RECORD_HEADER_BYTES:
        return Crossing(UNREADABLE)
    if not may_matter(known):
        return Crossing(NOTHING)
    if known[17] == RM_XLOG:
        data = main_data(known, total_bytes)
        if data is None or len(known) < total_bytes:
            return Crossing(UNREADABLE)
        special = parse_special(*place, known[16] & 0xF0, known[data[0] : data[0] + data[1]])
        return Crossing(COMPLETE, special) if special else Crossing(UNREADABLE)
    if creates_tablespace(known):
        data = main_data(known, total_bytes)
        begun = known[data[0] : data[0] + data[1]] if data is not None else b""
        # Of a long path the rest may be missing; its beginning is enough to be careful.
        special = parse_special(*place, TABLESPACE_CREATED, begun)
        return Crossing(COMPLETE, special) if special else Crossing(UNREADABLE)
    ended = transaction_end(known, total_bytes, magic)
    if ended is None:
        return Crossing(UNREADABLE)
    time, xid, is_commit = ended
    if xid is None:
        return Crossing(UNREADABLE)
    return Crossing(COMPLETE, Transaction(*place, xid, time, is_commit))


def _payload_bytes(index: WalIndex) -> int:
    """Bytes of records that a whole segment holds: all but its page headers."""
    pages = index.segment_bytes // index.page_bytes
    return index.segment_bytes - _LONG_HEADER - (pages - 1) * _SHORT_HEADER


def _end_of_contrecord(index: WalIndex, rest: int) -> int:
    """Where a rest of so many bytes, which fits into the segment, ends; aligned."""
    left_on_first = index.page_bytes - _LONG_HEADER
    if rest <= left_on_first:
        offset = _LONG_HEADER + rest
    else:
        on_page = index.page_bytes - _SHORT_HEADER
        pages, beyond = divmod(rest - left_on_first - 1, on_page)
        offset = (pages + 1) * index.page_bytes + _SHORT_HEADER + beyond + 1
    return index.start_lsn + ((offset + 7) & ~7)
