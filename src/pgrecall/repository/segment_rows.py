"""What the ranges keep of a segment's index: one row of numbers, and names of restore points."""

from __future__ import annotations

from binascii import a2b_base64
from typing import Any

import msgspec

from pgrecall.codec.wal_records import may_matter
from pgrecall.model.wal_index import STOPPED_AT_INVALID, VERSION, WalIndex

NO_TIME = -(1 << 63)
"""In place of a time that an index does not have."""

MAY_CROSS, IS_DAMAGED, HAS_MORE_POINTS = 1, 2, 4
"""Flags of a row. MAY_CROSS: a record that leads into the next segment may be one that a recovery
target asks for. IS_DAMAGED: the WAL ends in its middle. HAS_MORE_POINTS: not all restore points
are named."""

Row = tuple[int, int, int, int, int, int, int, int]
"""``end_lsn``, ``last_record`` (0: none), ``first_end``, ``greatest_end``, ``last_commit``,
``least_xid``, ``greatest_xid``, ``flags``. LSNs as numbers, times in microseconds since 2000 UTC:
``greatest_end`` is the latest of a commit or abort, ``first_end`` that of the first,
``last_commit`` that of the last commit in WAL order."""

Points = tuple[str, ...]


class _Index(msgspec.Struct):
    """What of an index's JSON (model/wal_index.py) a row is made of."""

    v: int
    start: str
    end: str
    stopped: str
    last: str = ""
    commit_times: tuple[int, int, int, int] | None = None
    end_times: tuple[int, int, int, int] | None = None
    least_xid: int = 0
    greatest_xid: int = 0
    more_restore_points: bool = False
    restore_points: list[list[Any]] = []
    unfinished: list[Any] | None = None


_INDEXES = msgspec.json.Decoder(_Index)


def row_of(index: WalIndex) -> tuple[Row, Points]:
    """The row of an index, and the names of its restore points."""
    ended, commits = index.end_times, index.commit_times
    head = index.unfinished.head if index.unfinished is not None else None
    return (
        int(index.end_lsn),
        int(index.last_record_lsn or 0),
        ended.first if ended else NO_TIME,
        ended.greatest if ended else NO_TIME,
        commits.last if commits else NO_TIME,
        index.least_xid,
        index.greatest_xid,
        _flags(head, index.stopped_at, has_more=index.has_more_restore_points),
    ), tuple(point.name for point in index.restore_points)


def row_from(data: bytes | memoryview, start: int) -> tuple[Row, Points] | None:
    """The same from the stored index of the segment that begins at ``start``, in less time.

    None for whatever is not plain: that is to be read, and judged, as every other index.
    """
    try:
        index = _INDEXES.decode(data)
        if index.v != VERSION or _lsn(index.start) != start:
            return None
        ended, commits = index.end_times, index.commit_times
        head = a2b_base64(index.unfinished[3], strict_mode=True) if index.unfinished else None
        return (
            _lsn(index.end),
            _lsn(index.last) if index.last else 0,
            ended[0] if ended else NO_TIME,
            ended[3] if ended else NO_TIME,
            commits[1] if commits else NO_TIME,
            index.least_xid,
            index.greatest_xid,
            _flags(head, index.stopped, has_more=index.more_restore_points),
        ), tuple(str(point[0]) for point in index.restore_points)
    except (msgspec.DecodeError, ValueError, IndexError, TypeError):
        return None


def _flags(unfinished: bytes | None, stopped: str, *, has_more: bool) -> int:
    crosses = unfinished is not None and may_matter(unfinished)
    return (
        MAY_CROSS * crosses
        | IS_DAMAGED * (stopped == STOPPED_AT_INVALID)
        | HAS_MORE_POINTS * has_more
    )


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)
