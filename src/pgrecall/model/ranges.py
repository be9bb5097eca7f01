"""Which positions of the WAL can be replayed from which backups. Pure.

Along one timeline path the archive falls into *runs* of segments without a gap.
A backup lies in a run when recovery from it can become consistent; the run then
reaches from where its first backup is consistent to the run's end. Between runs
are gaps. The rules are those by which restore follows a path (restore/replay.py).

A segment is its number here (LSN / segment size): of a million of them, columns are
kept, and a name is made where one is asked for.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, segment_name

Numbers = NDArray[np.uint64]


class Placed(msgspec.Struct, frozen=True):
    """What the ranges need of a backup; ``own`` are segments that it holds itself."""

    backup_id: str
    timeline: int
    start: int
    stop: int
    started_at: datetime
    stopped_at: datetime
    has_wal: bool = False


class Piece(msgspec.Struct, frozen=True):
    """Segments ``first`` up to ``behind`` (exclusive) of one timeline, by number."""

    timeline: int
    first: int
    behind: int


class SegmentNames(Sequence[str]):
    """The names of segments that follow each other, made when they are asked for."""

    __slots__ = ("_pieces", "_size")

    def __init__(self, pieces: Sequence[Piece], segment_bytes: int) -> None:
        self._pieces = pieces
        self._size = segment_bytes

    def __len__(self) -> int:
        return self._pieces[-1].behind - self._pieces[0].first if self._pieces else 0

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        place = at + len(self) if at < 0 else at
        if not 0 <= place < len(self):
            raise IndexError(at)
        number = self._pieces[0].first + place
        piece = next(one for one in self._pieces if number < one.behind)
        return segment_name(piece.timeline, number * self._size, self._size)

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            for number in range(piece.first, piece.behind):
                yield segment_name(piece.timeline, number * self._size, self._size)


class Run:
    """Segments that follow each other along a path.

    ``pieces`` are those segments, each with the number behind the one before.
    ``start`` and ``end`` (exclusive) are LSNs; ``damaged`` names the segment in
    whose middle the WAL ends although others follow, ``missing`` the first one
    that is not there behind the run. ``tail`` is its last name when only a tail
    of that segment is there. ``backups`` are those that it serves, by the position
    where they are consistent.
    """

    __slots__ = (
        "backups",
        "damaged",
        "end",
        "missing",
        "pieces",
        "segment_bytes",
        "start",
        "tail",
    )

    def __init__(self, pieces: Sequence[Piece], segment_bytes: int, end: Lsn) -> None:
        self.pieces = list(pieces)
        self.segment_bytes = segment_bytes
        self.start = Lsn(pieces[0].first * segment_bytes)
        self.end = end
        self.missing = ""
        self.damaged = ""
        self.tail = ""
        self.backups: list[Placed] = []

    @property
    def names(self) -> SegmentNames:
        """The names of its segments, in the order of replay."""
        return SegmentNames(self.pieces, self.segment_bytes)

    def end_in_tail(self, name: str, end: Lsn) -> None:
        """Let the run go on into the beginning of a segment that is not whole.

        A name of a parent timeline for the same segment gives way to it.
        """
        file = WalFile(name)
        number = file.start(self.segment_bytes) // self.segment_bytes
        self.pieces = list(pieces_from(self.pieces, 0, behind=number))
        self.pieces.append(Piece(file.timeline, number, number + 1))
        self.end = end
        self.tail = name


def pieces_from(
    pieces: Iterable[Piece], first: int, *, behind: int | None = None
) -> Iterator[Piece]:
    """What of ``pieces`` lies at the number ``first`` or behind it, and before ``behind``."""
    for piece in pieces:
        low = max(piece.first, first)
        high = piece.behind if behind is None else min(piece.behind, behind)
        if low < high:
            yield Piece(piece.timeline, low, high)


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
    present: Mapping[int, Numbers],
    ends_in: Mapping[str, Lsn],
) -> PathRuns:
    """The runs of a path; ``present`` are the archived segments by timeline, ascending.

    ``ends_in`` tells where the WAL ends inside a segment whose rest is no WAL;
    that is the end of the archive when nothing follows, and a gap otherwise.
    """
    found = PathRuns(history, segment_bytes)
    numbers, timelines, ends = _chosen(history, segment_bytes, present)
    if not len(numbers):
        return found
    damaged: dict[int, str] = {}
    for name, end in ends_in.items():
        file = WalFile(name)
        number = int(file.start(segment_bytes)) // segment_bytes
        at = int(np.searchsorted(numbers, np.uint64(number)))
        if at < len(numbers) and numbers[at] == number and timelines[at] == file.timeline:
            ends[at] = end
            damaged[at] = name
    parts = ends[:-1] != numbers[1:] * np.uint64(segment_bytes)
    parts[[at for at in damaged if at < len(parts)]] = True
    bounds = [0, *(np.flatnonzero(parts) + 1).tolist(), len(numbers)]
    for low, high in itertools.pairwise(bounds):
        run = Run(
            _pieces(numbers[low:high], timelines[low:high]), segment_bytes, Lsn(ends[high - 1])
        )
        left = history.end_of(int(timelines[high - 1]))
        last = int(numbers[high - 1])
        if left is not None and left < (last + 1) * segment_bytes:
            run.missing = segment_name(history.timeline, last * segment_bytes, segment_bytes)
        if high < len(numbers):  # otherwise nothing follows: there the archive ends
            run.damaged = damaged.get(high - 1, "")
        _close(run, history, segment_bytes)
        found.runs.append(run)
    return found


def _pieces(numbers: Numbers, timelines: NDArray[np.uint32]) -> list[Piece]:
    """Segments that follow each other, parted where their timeline changes."""
    bounds = [0, *(np.flatnonzero(np.diff(timelines)) + 1).tolist(), len(numbers)]
    return [
        Piece(int(timelines[low]), int(numbers[low]), int(numbers[high - 1]) + 1)
        for low, high in itertools.pairwise(bounds)
    ]


def _close(run: Run, history: TimelineHistory, segment_bytes: int) -> None:
    if not run.missing and not run.damaged:
        begins = [switch.end for switch in history.switches]
        timelines = [*(switch.timeline for switch in history.switches), history.timeline]
        segment_end = run.end - run.end % segment_bytes + segment_bytes
        reached = sum(begin < segment_end for begin in begins)
        run.missing = segment_name(timelines[reached], run.end, segment_bytes)


def _chosen(
    history: TimelineHistory, segment_bytes: int, present: Mapping[int, Numbers]
) -> tuple[Numbers, NDArray[np.uint32], Numbers]:
    """The segments that recovery reads, ascending: numbers, timelines, and where each ends.

    Of two files for one number it reads the younger timeline's.
    """
    every, whose, ends = [], [], []
    begin = 0
    for timeline, left in (
        *((switch.timeline, switch.end) for switch in history.switches),
        (history.timeline, None),
    ):
        numbers = np.asarray(present.get(timeline, ()), np.uint64)
        low = np.searchsorted(numbers, np.uint64(begin // segment_bytes))
        numbers = numbers[low:]
        if left is not None:
            numbers = numbers[: np.searchsorted(numbers, np.uint64(-(-left // segment_bytes)))]
        reach = (numbers + np.uint64(1)) * np.uint64(segment_bytes)
        every.append(numbers)
        whose.append(np.full(len(numbers), timeline, np.uint32))
        ends.append(reach if left is None else np.minimum(reach, np.uint64(left)))
        begin = left or 0
    unique, place = np.unique(np.concatenate(every)[::-1], return_index=True)
    return unique, np.concatenate(whose)[::-1][place], np.concatenate(ends)[::-1][place]


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
