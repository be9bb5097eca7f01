"""How far a run of segments reaches in time and LSN, exactly as ``choice`` would answer.

A range is claimed only where every moment of it is granted: bounds come from
indexes where those are exact, and from the WAL itself in the one segment in
which the run's first backup becomes consistent.
"""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pgrecall.codec.wal_scan import read_transactions
from pgrecall.model.lsn import Lsn
from pgrecall.model.ranges import PathRuns, Placed, Run, SegmentNames
from pgrecall.model.targets import RecoveryTarget, ToLsn, ToName, ToTime, ToXid
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile
from pgrecall.model.wal_index import RestorePoint, datetime_of, microseconds_of
from pgrecall.repository.recoverable import ArchiveSnapshot, RunRows
from pgrecall.repository.segment_rows import HAS_MORE_POINTS, MAY_CROSS, NO_TIME
from pgrecall.restore.replay import ReplayPath
from pgrecall.restore.stops import StopFinder

# How often an end of a transaction inside of a backup may lie behind the end of the backup.
_CLOCK_JUMPS = 16
_SMALLEST = timedelta(microseconds=1)


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """What a run grants. All bounds are targets that can be reached (inclusive).

    ``from_at`` and ``to_at`` are None where no time is granted, ``to_lsn`` is None
    where no LSN behind the end of the first backup is (``--immediate`` always
    works). On an open run, times after ``to_at`` mean all there is.
    ``newest_commit_at`` is of the last commit in WAL order behind the backup;
    ``end_lsn`` is the end of the last whole record.
    """

    from_lsn: Lsn
    to_lsn: Lsn | None
    end_lsn: Lsn
    from_at: datetime | None
    to_at: datetime | None
    newest_commit_at: datetime | None


def reach_of(
    snapshot: ArchiveSnapshot, history: TimelineHistory, run: Run, *, is_open: bool
) -> Reach:
    """How far ``run`` reaches from its first backup; it must have one.

    ``is_open``: no gap lies behind it. Raises StoreError, CorruptObjectError.
    """
    first = run.backups[0]
    known = snapshot.rows_of(run, first.start)
    rows = known.rows
    has_records = rows["last_record"] > 0
    records = rows["last_record"][rows["last_record"] >= max(first.stop, 1)]
    end = max([first.stop, *_greatest(rows["end_lsn"][has_records])])
    exact = _ends_behind(snapshot, known, first)
    behind = rows[known.starts >= first.stop]
    ended = exact[0] + _greatest(_times(behind["greatest_end"]))
    commits = exact[1] + _times(behind["last_commit"])[-1:].tolist()
    from_at = _consistent_at(snapshot, history, known.names, first)
    newest = datetime_of(max(ended)) if ended else None
    if from_at is None:
        to_at = None
    elif is_open:
        to_at = max(from_at, newest) if newest else from_at
    else:
        # PostgreSQL ends at a time only by seeing a later commit.
        to_at = newest - _SMALLEST if newest else None
    if to_at is None or from_at is None or to_at < from_at:
        from_at = to_at = None
    return Reach(
        from_lsn=Lsn(first.stop),
        to_lsn=Lsn(int(records.max())) if len(records) else None,
        end_lsn=Lsn(end),
        from_at=from_at,
        to_at=to_at,
        newest_commit_at=datetime_of(commits[-1]) if commits else None,
    )


def likely_backups(path: PathRuns, snapshot: ArchiveSnapshot, target: RecoveryTarget) -> list[str]:
    """Ids of the backups from which the target may be reached, without a walk for each.

    What is left out is certain to refuse; what is named is for ``choice`` to decide.
    """
    found = [backup.backup_id for backup in path.alone]
    for run in path.runs:
        if not run.backups:
            continue
        is_open = run is path.runs[-1]
        end = run.end
        if not (is_open and isinstance(target, ToTime)) and isinstance(
            target, ToTime | ToXid | ToName
        ):
            end = _last_match(run, snapshot, target)
        elif isinstance(target, ToLsn) and not run.start <= target.lsn < run.end:
            bridged = min(backup.stop for backup in run.backups)
            end = run.end if bridged <= target.lsn < run.end else Lsn(0)
        found += [
            backup.backup_id
            for backup in run.backups
            if backup.start < end and not _is_too_new(backup, target)
        ]
    return found


def _is_too_new(backup: Placed, target: RecoveryTarget) -> bool:
    if isinstance(target, ToTime):
        return target.at < backup.started_at
    return isinstance(target, ToLsn) and target.lsn < backup.stop


def _last_match(run: Run, snapshot: ArchiveSnapshot, target: RecoveryTarget) -> Lsn:
    """The end of the last segment that may hold the target; 0 for none."""
    known = snapshot.rows_of(run, min(backup.start for backup in run.backups))
    may = np.flatnonzero(known.rows["flags"] & MAY_CROSS | _may_hold(known, snapshot, target))
    if not len(may):
        return Lsn(0)
    return Lsn(int(known.starts[may[-1]]) + snapshot.segment_bytes)


def _may_hold(
    known: RunRows, snapshot: ArchiveSnapshot, target: RecoveryTarget
) -> NDArray[np.bool_]:
    rows = known.rows
    if isinstance(target, ToTime):
        least = max(microseconds_of(target.at), NO_TIME + 1)
        return np.asarray(rows["greatest_end"] >= least, np.bool_)
    if isinstance(target, ToXid):
        return np.asarray(
            (rows["least_xid"] <= target.xid) & (target.xid <= rows["greatest_xid"]), np.bool_
        )
    found = np.asarray(rows["flags"] & HAS_MORE_POINTS, np.bool_)
    if isinstance(target, ToName):
        for at, name in snapshot.points_in(known):
            found[at] |= name == target.name
    return found


def _greatest(values: NDArray[Any]) -> list[int]:
    """The greatest of ``values``, if there is any."""
    return [int(values.max())] if len(values) else []


def _times(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The times among ``values``, in their order."""
    return np.asarray(values[values != NO_TIME], np.int64)


def _ends_behind(
    snapshot: ArchiveSnapshot, known: RunRows, first: Placed
) -> tuple[list[int], list[int]]:
    """Times of the ends, and of the commits, in the segment where ``first`` is consistent."""
    if not len(known.rows) or first.stop % snapshot.segment_bytes == 0:
        return [], []
    at = (first.stop - int(known.starts[0])) // snapshot.segment_bytes
    if not 0 <= at < len(known.rows) or known.rows["greatest_end"][at] == NO_TIME:
        return [], []
    ended = read_transactions(snapshot.read(known.names[at]), int(known.starts[at]))[0]
    behind = [found for found in ended if found.lsn >= first.stop]
    return [found.time for found in behind], [found.time for found in behind if found.is_commit]


def _consistent_at(
    snapshot: ArchiveSnapshot, history: TimelineHistory, names: SegmentNames, first: Placed
) -> datetime | None:
    """The first time from which on ``first`` serves; None: the clock jumped too much to tell.

    As a rule that is when the backup ended. Where the server's clock went back
    meanwhile, it is later: a commit inside of the backup must not end recovery,
    also where the target is exclusive.
    """
    size = snapshot.segment_bytes
    inside = list(itertools.takewhile(lambda name: WalFile(name).start(size) < first.stop, names))
    # The clock may have gone back while the backup was taken.
    moment = max(first.started_at, first.stopped_at)
    if not inside:
        return moment
    path = ReplayPath(history, inside, Lsn(WalFile(inside[-1]).start(size) + size))
    for _ in range(_CLOCK_JUMPS):
        stop = StopFinder(snapshot, path, Lsn(first.start)).by_time(moment, inclusive=False)
        if stop is None or stop.lsn >= first.stop or stop.at is None:
            return moment
        moment = stop.at + _SMALLEST
    return None


def restore_points(snapshot: ArchiveSnapshot, history: TimelineHistory) -> list[RestorePoint]:
    """Every restore point that is archived along a path, in WAL order, gaps or not."""
    found: list[RestorePoint] = []
    for run in snapshot.path_runs(history, ()).runs:
        path = ReplayPath(history, list(run.names), run.end)
        found += StopFinder(snapshot, path, run.start).restore_points()
    return found
