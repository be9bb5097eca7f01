"""Single moments in the archive: restore points, a transaction, the commits around a time.

Everything is told by indexes; a segment is read only where its index cannot tell enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from pgrecall.codec.wal_crossing import COMPLETE, OPEN, UNREADABLE, complete_crossing
from pgrecall.codec.wal_scan import read_restore_points, read_transactions
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_index import (
    RestorePoint,
    Transaction,
    Unfinished,
    WalIndex,
    microseconds_of,
)
from pgrecall.repository.wal_archive import WalArchive

Segments = list[tuple[str, Lsn]]
"""Names along a path, and up to where each belongs to it (repository.wal_knowledge)."""

Window = list[tuple[str, WalIndex]]


class Moments:
    """Searches one path of an archive."""

    def __init__(self, archive: WalArchive, segments: Segments) -> None:
        self._archive = archive
        self._segments = segments
        self._untils = dict(segments)

    def restore_points(self) -> Iterator[RestorePoint]:
        """Every restore point, in WAL order."""
        for window in self._windows():
            name, index = window[-1]
            if len(window) > 1:
                crossing = complete_crossing([index for _, index in window]).record
                if isinstance(crossing, RestorePoint):
                    yield crossing
            points = index.restore_points
            if index.has_more_restore_points:
                points = read_restore_points(self._archive.read(name), index.start_lsn)
            yield from (point for point in points if point.lsn < self._untils[name])

    def transaction(self, xid: int) -> Transaction | None:
        """The last commit or abort of a transaction of this number; None: it did not end here."""
        found = None
        for window in self._windows():
            name, index = window[-1]
            crossed = self._crossing(window)
            if crossed is not None and crossed.xid == xid:
                found = crossed
            if index.least_xid <= xid <= index.greatest_xid:
                found = self._last(name, index, xid) or found
        return found

    def around(self, at: datetime) -> tuple[Transaction | None, Transaction | None]:
        """The commits with the latest time at or before ``at``, and the first in WAL after it.

        The second is where recovery to ``at`` would stop: PostgreSQL stops at the first commit
        in WAL order whose time is later, and times are not monotonic.
        """
        limit = microseconds_of(at)
        crossed: list[Transaction] = []
        earlier: tuple[int, str, WalIndex] | None = None
        mixed: list[tuple[str, WalIndex]] = []
        for window in self._windows():
            name, index = window[-1]
            found = self._crossing(window)
            crossed += [found] if found is not None else []
            times = index.commit_times
            if times is None:
                continue
            if times.greatest <= limit:
                if earlier is None or times.greatest >= earlier[0]:
                    earlier = (times.greatest, name, index)
            elif times.least <= limit or not mixed:
                mixed.append((name, index))
        to_read = [*mixed, *([earlier[1:]] if earlier is not None else [])]
        commits = [
            one
            for ended in (crossed, *(self._transactions(*place) for place in to_read))
            for one in ended
            if one.is_commit
        ]
        before = [one for one in commits if one.time <= limit]
        after = [one for one in commits if one.time > limit]
        return max(before, key=_time_and_place, default=None), min(after, key=_lsn_of, default=None)

    # --- inside --------------------------------------------------------------------

    def _last(self, name: str, index: WalIndex, xid: int) -> Transaction | None:
        found = [one for one in self._transactions(name, index) if one.xid == xid]
        return found[-1] if found else None

    def _transactions(self, name: str, index: WalIndex) -> list[Transaction]:
        content = self._archive.read(name)
        ended = read_transactions(content, index.start_lsn)[0]
        return [one for one in ended if one.lsn < self._untils[name]]

    def _crossing(self, window: Window) -> Transaction | None:
        if len(window) < 2:
            return None
        crossing = complete_crossing([index for _, index in window])
        if crossing.outcome == COMPLETE:
            return crossing.record if isinstance(crossing.record, Transaction) else None
        if crossing.outcome != UNREADABLE:
            return None
        carried: Unfinished | None = None
        ended: list[Transaction] = []
        for name, index in window:
            ended, carried = read_transactions(self._archive.read(name), index.start_lsn, carried)
        border = window[-1][1].start_lsn
        return next((one for one in ended if one.lsn < border), None)

    def _windows(self) -> Iterator[Window]:
        """Each segment behind those that leave a record unfinished towards it."""
        window: Window = []
        for name, index in self._archive.indexes(name for name, _ in self._segments):
            if window and index.start_lsn != self._untils[window[-1][0]]:
                window.clear()
            window.append((name, index))
            yield window
            if len(window) < 2 or complete_crossing([one for _, one in window]).outcome != OPEN:
                del window[:-1]


def _time_and_place(transaction: Transaction) -> tuple[int, int]:
    return transaction.time, transaction.lsn


def _lsn_of(transaction: Transaction) -> int:
    return transaction.lsn
