"""Which positions of the WAL can be replayed from which backups. Pure.

Along one timeline path the archive falls into *runs* of segments without a gap.
A backup lies in a run when recovery from it can become consistent; the run then
reaches from where its first backup is consistent to the run's end. Between runs
are gaps. The rules are those by which restore follows a path (restore/replay.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, segment_name


class Placed(msgspec.Struct, frozen=True):
    """What the ranges need of a backup; ``own`` are segments that it holds itself."""

    backup_id: str
    timeline: int
    start: int
    stop: int
    started_at: datetime
    stopped_at: datetime
    has_wal: bool = False


class Run:
    """Segments that follow each other along a path.

    ``start`` and ``end`` (exclusive) are LSNs; ``damaged`` names the segment in
    whose middle the WAL ends although others follow, ``missing`` the first one
    that is not there behind the run. ``tail`` is its last name when only a tail
    of that segment is there. ``backups`` are those that it serves, by the position
    where they are consistent.
    """

    __slots__ = ("backups", "damaged", "end", "missing", "names", "start", "tail")

    def __init__(self, start: Lsn) -> None:
        self.start = start
        self.end = start
        self.names: list[str] = []
        self.missing = ""
        self.damaged = ""
        self.tail = ""
        self.backups: list[Placed] = []

    def end_in_tail(self, name: str, end: Lsn) -> None:
        """Let the run go on into the beginning of a segment that is not whole.

        A name of a parent timeline for the same segment gives way to it.
        """
        if self.names and self.names[-1][8:] == name[8:]:
            del self.names[-1]
        self.names.append(name)
        self.end = end
        self.tail = name


class PathRuns:
    """The runs of one timeline path, in order, with the backups that they serve.

    ``alone`` are backups that hold the WAL that they need themselves, where the
    archive lacks it and does not go on behind them. ``useless`` are backups that
    cannot become consistent, with the first segment that they lack.
    """

    def __init__(self, history: TimelineHistory, segment_bytes: int) -> None:
        self.history = history
        self.segment_bytes = segment_bytes
        self.runs: list[Run] = []
        self.alone: list[Placed] = []
        self.useless: list[tuple[Placed, str]] = []

    @property
    def last_usable(self) -> Run | None:
        """The newest run that a backup leads into."""
        return next((run for run in reversed(self.runs) if run.backups), None)

    @property
    def is_whole(self) -> bool:
        """True when the newest WAL of the path can be reached."""
        return bool(self.runs and self.runs[-1].backups)

    def run_of(self, backup: Placed) -> Run | None:
        """The run that serves a backup; None: it is alone, or useless."""
        return next((run for run in self.runs if backup in run.backups), None)


def runs_along(
    history: TimelineHistory,
    segment_bytes: int,
    present: Mapping[int, Sequence[str]],
    ends_in: Mapping[str, Lsn],
) -> PathRuns:
    """The runs of a path; ``present`` are the archived segments by timeline, in order.

    ``ends_in`` tells where the WAL ends inside a segment whose rest is no WAL;
    that is the end of the archive when nothing follows, and a gap otherwise.
    """
    found = PathRuns(history, segment_bytes)
    chosen = _chosen(history, segment_bytes, present)
    run: Run | None = None
    for number in sorted(chosen):
        start, name = Lsn(number * segment_bytes), chosen[number]
        if run is None or run.missing or run.end != start:
            _close(run, history, segment_bytes)
            run = Run(start)
            found.runs.append(run)
        if run.damaged:
            run = Run(start)
            found.runs.append(run)
        run.names.append(name)
        run.end = Lsn(start + segment_bytes)
        left = history.end_of(WalFile(name).timeline)
        if left is not None and left < run.end:
            run.end = left
            run.missing = segment_name(history.timeline, start, segment_bytes)
        if name in ends_in:
            run.end = ends_in[name]
            run.damaged = name
    if run is not None:
        run.damaged = ""  # nothing follows: there the archive ends
        _close(run, history, segment_bytes)
    return found


def _close(run: Run | None, history: TimelineHistory, segment_bytes: int) -> None:
    if run is not None and not run.missing and not run.damaged:
        begins = [switch.end for switch in history.switches]
        timelines = [*(switch.timeline for switch in history.switches), history.timeline]
        segment_end = run.end - run.end % segment_bytes + segment_bytes
        reached = sum(begin < segment_end for begin in begins)
        run.missing = segment_name(timelines[reached], run.end, segment_bytes)


def _chosen(
    history: TimelineHistory, segment_bytes: int, present: Mapping[int, Sequence[str]]
) -> dict[int, str]:
    """For each number of a segment (LSN / size) the file that recovery reads there."""
    chosen: dict[int, str] = {}
    begin = 0
    for timeline, left in (
        *((switch.timeline, switch.end) for switch in history.switches),
        (history.timeline, None),
    ):
        for name in present.get(timeline, ()):
            start = WalFile(name).start(segment_bytes)
            if start + segment_bytes > begin and (left is None or start < left):
                chosen[start // segment_bytes] = name
        begin = left or 0
    return chosen


def place_backups(path: PathRuns, backups: Iterable[Placed]) -> None:
    """Give each backup of the path to the run that serves it; nothing is walked for each."""
    size = path.segment_bytes
    starts = [run.start for run in path.runs]
    for backup in sorted(backups, key=lambda one: (one.stop, one.backup_id)):
        if not _is_on_path(path.history, backup):
            continue
        run = _run_at(path, starts, backup.start)
        if run is not None and run.end >= backup.stop:
            run.backups.append(backup)
        elif not backup.has_wal or (run is not None and run.damaged):
            path.useless.append((backup, _lacking(path, run, backup)))
        else:
            # Its own segments bridge what is missing; behind them the archive may go on.
            bridged = (max(backup.start, backup.stop - 1), -(-backup.stop // size) * size)
            run = next(filter(None, (_run_at(path, starts, lsn) for lsn in bridged)), None)
            if run is not None and run.end < backup.stop:
                path.useless.append((backup, _lacking(path, run, backup)))
            else:
                (run.backups if run is not None else path.alone).append(backup)
    for run in path.runs:
        run.backups.sort(key=lambda one: (one.stop, one.backup_id))


def _run_at(path: PathRuns, starts: Sequence[int], lsn: int) -> Run | None:
    at = bisect_right(starts, lsn) - 1
    return path.runs[at] if at >= 0 and lsn < path.runs[at].end else None


def _lacking(path: PathRuns, run: Run | None, backup: Placed) -> str:
    if run is not None:
        return run.damaged or run.missing
    return segment_name(path.history.timeline_at(backup.start), backup.start, path.segment_bytes)


def _is_on_path(history: TimelineHistory, backup: Placed) -> bool:
    if not history.is_ancestor_or_self(backup.timeline):
        return False
    left = history.end_of(backup.timeline)
    return left is None or backup.stop <= left
