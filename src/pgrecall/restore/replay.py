"""The WAL that recovery will read: which segments there are along a timeline path, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.model.wal_index import WalIndex


class SegmentView(Protocol):
    """A segment that the archive holds."""

    @property
    def name(self) -> str: ...


class ArchiveView(Protocol):
    """What planning asks of a WAL archive (repository.wal_archive.WalArchive)."""

    segment_bytes: int

    def histories(self) -> dict[int, TimelineHistory]: ...

    def segments(self, timeline: int, first: str | None = None) -> Iterable[SegmentView]: ...

    def candidates(self, history: TimelineHistory, lsn: int) -> list[str]: ...

    def indexes(self, names: Iterable[str]) -> Iterator[tuple[str, WalIndex]]: ...

    def index(self, name: str) -> WalIndex: ...

    def read(self, name: str) -> bytes: ...

    def newest_segments(self) -> Mapping[int, SegmentView]: ...

    def tail_end(self, name: str) -> Lsn | None: ...


class ReplayPath:
    """Segments from a position along one timeline path, up to the first that is missing.

    ``names`` are in the order of replay. ``end`` is the first byte that cannot
    be read. ``missing`` names the segment there, be it absent or damaged in its
    middle; ``beyond`` the newest segment of the path after it (empty: the
    archive simply ends). ``unarchived`` are segments that only the backup
    itself holds. ``tail`` is the last name when only a receiver's tail of it is
    there (empty: it is not so); ``end`` then lies in it.
    """

    def __init__(self, history: TimelineHistory, names: list[str], end: Lsn) -> None:
        self.history = history
        self.names = names
        self.end = end
        self.missing = ""
        self.unarchived: frozenset[str] = frozenset()
        self.beyond = ""
        self.tail = ""

    @property
    def has_gap(self) -> bool:
        """True when the archive goes on behind what is missing."""
        return bool(self.beyond)

    def end_inside(self, name: str, end: Lsn) -> None:
        """Nothing behind ``end`` in the segment ``name`` can be replayed: it is no WAL there."""
        self.beyond = self.beyond or self.names[-1]
        self.end = end
        self.missing = name
        del self.names[self.names.index(name) + 1 :]


def replay_path(
    archive: ArchiveView, history: TimelineHistory, start: Lsn, present: Iterable[str] = ()
) -> ReplayPath:
    """Follow ``history`` from the segment that holds ``start``.

    ``present`` are segments that need not be archived because the backup itself
    holds them. Lists each timeline of the path once.
    """
    size = archive.segment_bytes
    at = Lsn(start - start % size)
    have: set[str] = set()
    lowest = segment_name(1, at, size)
    for timeline in (*(switch.timeline for switch in history.switches), history.timeline):
        end = history.end_of(timeline)
        if end is None or end > at:
            have.update(segment.name for segment in archive.segments(timeline, lowest))
    path = ReplayPath(history, [], at)
    path.unarchived = frozenset(present) - have
    have |= path.unarchived
    while True:
        wanted = archive.candidates(history, at)
        # Behind the switch a parent's segments are another history, however long it went on.
        serving = (
            name for name in wanted if (history.end_of(WalFile(name).timeline) or at + 1) > at
        )
        found = next((name for name in serving if name in have), None)
        if found is None:
            path.missing = wanted[0]
            _end_in_tail(archive, path, wanted)
            break
        path.names.append(found)
        left = history.end_of(WalFile(found).timeline)
        if left is not None and left < at + size:
            # Only the parent's copy is there: it serves up to the switch, and no further.
            path.end = left
            path.missing = wanted[0]
            _end_in_tail(archive, path, wanted[: wanted.index(found)])
            break
        at = Lsn(at + size)
        path.end = at
    position = WalFile(path.missing).name[8:]
    own = f"{history.timeline:08X}"
    later = [name for name in have if name[8:] > position and name.startswith(own)]
    path.beyond = max(later, default="")
    return path


def _end_in_tail(archive: ArchiveView, path: ReplayPath, wanted: Iterable[str]) -> None:
    """Let the path end in the tail of a segment that is not whole, if there is one.

    ``wanted`` are its names in PostgreSQL's order. A name of the path that holds
    the same segment of a parent gives way: recovery asks for the child's first.
    """
    for name in wanted:
        end = archive.tail_end(name)
        left = path.history.end_of(WalFile(name).timeline)
        if end is None or min(end, left or end) <= path.end:
            continue
        if path.names and path.names[-1][8:] == name[8:]:
            del path.names[-1]
        path.names.append(name)
        path.end = min(end, left or end)
        path.tail = name
        return
