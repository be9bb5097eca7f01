"""Find where recovery stops: the exact record, from the indexes and, where needed, the WAL itself.

PostgreSQL's rules (xlogrecovery.c, recoveryStopsBefore and recoveryStopsAfter):
a time target ends at the first commit or abort in WAL order whose time lies
behind it (commit times are not monotonic); an xid target at the commit or abort
of that transaction; a name at the first restore point of that name; an LSN at
the first record that starts there or behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from pgrecall.codec.wal_crossing import COMPLETE, OPEN, UNREADABLE, complete_crossing
from pgrecall.codec.wal_scan import read_transactions
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import WalFile
from pgrecall.model.wal_index import (
    STOPPED_AT_INVALID,
    ParameterChange,
    RestorePoint,
    TablespaceCreation,
    Transaction,
    Unfinished,
    WalIndex,
    datetime_of,
    microseconds_of,
)
from pgrecall.restore.replay import ArchiveView, ReplayPath


class Stop:
    """A record at which recovery stops; ``at`` is its time, None where it has none."""

    __slots__ = ("at", "end_lsn", "lsn", "what")

    def __init__(self, lsn: Lsn, end_lsn: Lsn, what: str, at: datetime | None) -> None:
        self.lsn = lsn
        self.end_lsn = end_lsn
        self.what = what
        self.at = at


class Survey:
    """What was seen on the way along a path: the last commit, and what replaying it asks for."""

    def __init__(self) -> None:
        self.last_commit_at: datetime | None = None
        self.last_commit_lsn: Lsn | None = None
        self.last_record: Lsn | None = None
        self.parameters: dict[str, int] = {}
        self.tablespaces: list[TablespaceCreation] = []

    def see(self, index: WalIndex) -> None:
        """Take note of one segment."""
        if index.last_record_lsn is not None:
            self.last_record = index.last_record_lsn
        if index.commit_times is not None:
            self.last_commit_at = datetime_of(index.commit_times.last)
        self.tablespaces.extend(index.tablespaces)
        for change in index.parameter_changes:
            self.see_parameters(change)

    def see_parameters(self, change: ParameterChange) -> None:
        """Keep the highest value of each setting."""
        for name in PARAMETERS:
            self.parameters[name] = max(self.parameters.get(name, 0), int(getattr(change, name)))


PARAMETERS = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)


class StopFinder:
    """Searches one replay path, from ``start`` on (records before it are not replayed)."""

    def __init__(self, archive: ArchiveView, path: ReplayPath, start: Lsn) -> None:
        self.survey = Survey()
        self._archive = archive
        self._path = path
        self._start = start

    def by_time(self, at: datetime, *, inclusive: bool) -> Stop | None:
        """The first commit or abort behind ``at`` (or at it, if exclusive); None: none is."""
        limit = microseconds_of(at)

        def matches(ended: Transaction) -> bool:
            return ended.time > limit or (not inclusive and ended.time == limit)

        def may_match(index: WalIndex) -> bool:
            times = index.end_times
            return times is not None and times.greatest >= limit

        return self._first_transaction(may_match, matches)

    def by_xid(self, xid: int) -> Stop | None:
        """The commit or abort of a transaction; None: it did not end in this WAL."""

        def may_match(index: WalIndex) -> bool:
            return index.least_xid <= xid <= index.greatest_xid

        return self._first_transaction(may_match, lambda ended: ended.xid == xid)

    def by_name(self, name: str) -> list[Stop]:
        """All restore points of that name, in WAL order."""
        return [_point_stop(point) for point in self.restore_points() if point.name == name]

    def restore_points(self) -> Iterator[RestorePoint]:
        """Every restore point of the path."""
        for window in self._windows():
            crossing = complete_crossing(window) if len(window) > 1 else None
            if crossing is not None and isinstance(crossing.record, RestorePoint):
                yield crossing.record
            yield from window[-1].restore_points

    def walk(self) -> Survey:
        """Look at the whole path, for what a recovery to its end needs."""
        for _ in self._windows():
            pass
        return self.survey

    def look_until(self, end: Lsn) -> None:
        """Look at the segments that hold bytes before ``end``."""
        for window in self._windows():
            if window[-1].segment_end >= end:
                break

    # --- inside ------------------------------------------------------------------

    def _first_transaction(
        self, may_match: Callable[[WalIndex], bool], matches: Callable[[Transaction], bool]
    ) -> Stop | None:
        for window in self._windows():
            found = self._crossing_transaction(window)
            if found is not None and matches(found) and found.lsn >= self._start:
                return _transaction_stop(found)
            if not may_match(window[-1]):
                continue
            for ended in self._transactions(window[-1]):
                if ended.lsn >= self._start and matches(ended):
                    return _transaction_stop(ended)
        return None

    def _crossing_transaction(self, window: list[WalIndex]) -> Transaction | None:
        """The transaction whose record begins before the window's last segment and ends in it."""
        if len(window) < 2:
            return None
        crossing = complete_crossing(window)
        if crossing.outcome == COMPLETE:
            record = crossing.record
            return record if isinstance(record, Transaction) else None
        if crossing.outcome == UNREADABLE:
            carried: Unfinished | None = None
            for index in window:
                data = self._archive.read(self._name(index))
                ended, carried = read_transactions(data, index.start_lsn, carried)
            border = window[-1].start_lsn
            return next((found for found in ended if found.lsn < border), None)
        return None

    def _windows(self) -> Iterator[list[WalIndex]]:
        """For each segment its index, behind those that leave a record unfinished towards it."""
        window: list[WalIndex] = []
        # What only the backup holds ends where it stops: no target lies in there.
        archived = [name for name in self._path.names if name not in self._path.unarchived]
        for name, index in self._archive.indexes(archived):
            self.survey.see(index)
            window.append(index)
            if len(window) > 1:
                crossing = complete_crossing(window).record
                if isinstance(crossing, ParameterChange):
                    self.survey.see_parameters(crossing)
                if isinstance(crossing, TablespaceCreation):
                    self.survey.tablespaces.append(crossing)
            yield window
            if index.stopped_at == STOPPED_AT_INVALID and name != self._path.names[-1]:
                # PostgreSQL takes what follows for the end of all WAL, and would promote there.
                self._path.end_inside(name, index.end_lsn)
                return
            # A record may span several segments; then the window grows.
            if len(window) < 2 or complete_crossing(window).outcome != OPEN:
                del window[:-1]

    def _transactions(self, index: WalIndex) -> list[Transaction]:
        data = self._archive.read(self._name(index))
        return read_transactions(data, index.start_lsn)[0]

    def _name(self, index: WalIndex) -> str:
        size = self._archive.segment_bytes
        first = WalFile(self._path.names[0]).start(size)
        return self._path.names[(index.start_lsn - first) // size]


def _transaction_stop(ended: Transaction) -> Stop:
    verb = "commit" if ended.is_commit else "abort"
    return Stop(ended.lsn, ended.end_lsn, f"{verb} of transaction {ended.xid}", ended.ended_at)


def _point_stop(point: RestorePoint) -> Stop:
    return Stop(point.lsn, point.end_lsn, f"restore point {point.name!r}", point.created_at)
