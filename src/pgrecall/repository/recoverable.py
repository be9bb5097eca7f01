"""A WAL archive seen at one moment: listed once, every index read once, as the ranges need it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from pgrecall.codec.wal_records import may_matter
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.ranges import PathRuns, Placed, Run, place_backups, runs_along
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, history_name
from pgrecall.model.wal_index import STOPPED_AT_INVALID, WalIndex
from pgrecall.repository.wal_archive import StoredSegment, WalArchive


class SegmentSummary(msgspec.Struct, frozen=True):
    """What the ranges keep of an index. LSNs as numbers; times in microseconds since 2000 UTC.

    ``greatest_end`` is the latest time of a commit or abort, ``first_end`` the
    time of the first, ``last_commit`` that of the last commit in WAL order.
    ``may_cross``: a record that leads into the next segment may be one that a
    recovery target asks for. ``points`` names restore points, not all of them
    with ``has_more_points``.
    """

    name: str
    start: int
    end_lsn: int
    last_record: int | None
    first_end: int | None
    greatest_end: int | None
    last_commit: int | None
    least_xid: int
    greatest_xid: int
    may_cross: bool
    is_damaged: bool
    points: tuple[str, ...] = ()
    has_more_points: bool = False


class ArchiveSnapshot:
    """The segments of one generation as one listing found them.

    It answers what planning asks of an archive (restore.replay.ArchiveView),
    from memory where that is possible: 65,536 segments (a terabyte) take some
    ten megabytes. Not thread-safe.
    """

    def __init__(self, archive: WalArchive) -> None:
        """List everything; raises StoreError: what cannot be listed is not called absent."""
        self.archive = archive
        self.segment_bytes = archive.segment_bytes
        self._histories = archive.histories()
        self._segments = {
            timeline: list(archive.segments(timeline)) for timeline in archive.timelines()
        }
        self._sizes = {
            segment.name: segment.stored_bytes
            for segments in self._segments.values()
            for segment in segments
        }
        self._summaries: dict[str, SegmentSummary] = {}

    # --- what planning asks --------------------------------------------------------

    def histories(self) -> dict[int, TimelineHistory]:
        """Every archived history by timeline, as WalArchive.histories."""
        return self._histories

    def segments(self, timeline: int, first: str | None = None) -> Iterable[StoredSegment]:
        """Whole segments of a timeline from the position of ``first`` on."""
        found = self._segments.get(timeline, [])
        if first is None:
            return found
        low = WalFile(first).segment[8:]
        return [segment for segment in found if segment.name[8:] >= low]

    def candidates(self, history: TimelineHistory, lsn: int) -> list[str]:
        """As WalArchive.candidates."""
        return self.archive.candidates(history, lsn)

    def indexes(self, names: Iterable[str]) -> Iterator[tuple[str, WalIndex]]:
        """As WalArchive.indexes."""
        return self.archive.indexes(names)

    def index(self, name: str) -> WalIndex:
        """As WalArchive.index."""
        return self.archive.index(name)

    def read(self, name: str) -> bytes:
        """As WalArchive.read."""
        return self.archive.read(name)

    def tail_end(self, name: str) -> Lsn | None:
        """As WalArchive.tail_end."""
        return self.archive.tail_end(name)

    def newest_segments(self) -> Mapping[int, StoredSegment]:
        """The newest segment of every timeline that has any."""
        return {timeline: found[-1] for timeline, found in self._segments.items() if found}

    # --- what the ranges ask -------------------------------------------------------

    def stored_bytes(self, names: Iterable[str]) -> int:
        """What the objects of these segments take; names that are not archived count nothing."""
        return sum(self._sizes.get(name, 0) for name in names)

    def summaries(self, names: Sequence[str]) -> list[SegmentSummary]:
        """A summary of each segment; an index that was read before is not read again.

        Raises CorruptObjectError, StoreError, WalMissingError.
        """
        unread = [name for name in names if name not in self._summaries]
        for name, index in self.archive.indexes(unread):
            self._summaries[name] = _summary(name, index)
        return [self._summaries[name] for name in names]

    def path_runs(self, history: TimelineHistory, backups: Sequence[Completion]) -> PathRuns:
        """The runs of a path with the backups that they serve.

        Reads the indexes from the oldest backup of the path on: in older WAL
        nothing can be reached.
        """
        own = {*(switch.timeline for switch in history.switches), history.timeline}
        placed = [_placed(backup) for backup in backups if backup.timeline in own]
        size = self.segment_bytes
        oldest = min((backup.start for backup in placed), default=None)
        present = {
            timeline: [segment.name for segment in self._segments.get(timeline, ())]
            for timeline in own
        }
        first = runs_along(history, size, present, {})
        needed = [
            name
            for run in first.runs
            for name in run.names
            if oldest is not None and WalFile(name).start(size) + size > oldest
        ]
        ends_in = {
            summary.name: Lsn(summary.end_lsn)
            for summary in self.summaries(needed)
            if summary.is_damaged
        }
        path = runs_along(history, size, present, ends_in) if ends_in else first
        for run in path.runs:
            self._end_in_tail(run, history)
        place_backups(path, placed)
        return path

    def _end_in_tail(self, run: Run, history: TimelineHistory) -> None:
        """As restore/replay.py ends a path in the tail of its next segment, if there is one."""
        if run.damaged:
            return
        for name in self.candidates(history, run.end):
            if name == run.names[-1]:
                return
            end = self.tail_end(name)
            left = history.end_of(WalFile(name).timeline)
            if end is not None and min(end, left or end) > run.end:
                run.end_in_tail(name, min(end, left or end))
                return

    def used_timelines(self, backups: Sequence[Completion]) -> list[int]:
        """Timelines with a known history that have segments or backups; the last is the newest.

        A history file without a segment is a promise that nobody kept (fact 2).
        """
        used = {*self.newest_segments(), *(backup.timeline for backup in backups)}
        return sorted(used & self._histories.keys())

    def findings(self, backups: Sequence[Completion]) -> list[Finding]:
        """Timelines that cannot be followed, because their history file is not archived."""
        used = {*self.newest_segments(), *(backup.timeline for backup in backups)}
        return [
            Finding(
                severity="fail",
                code="history-missing",
                subject=f"timeline {timeline}",
                message=f"{history_name(timeline)} is not in the archive: where the timeline"
                " begins is not known, and nothing on it can be reached",
                hint=f"push pg_wal/{history_name(timeline)} of the server that was promoted",
            )
            for timeline in sorted(used - self._histories.keys())
        ]


def _placed(backup: Completion) -> Placed:
    return Placed(
        backup_id=backup.backup_id,
        timeline=backup.timeline,
        start=Lsn.parse(backup.start_lsn),
        stop=Lsn.parse(backup.stop_lsn),
        started_at=backup.started_at,
        stopped_at=backup.stopped_at,
        has_wal=backup.has_wal,
    )


def _summary(name: str, index: WalIndex) -> SegmentSummary:
    ended, commits = index.end_times, index.commit_times
    return SegmentSummary(
        name=name,
        start=index.start_lsn,
        end_lsn=index.end_lsn,
        last_record=index.last_record_lsn,
        first_end=ended.first if ended else None,
        greatest_end=ended.greatest if ended else None,
        last_commit=commits.last if commits else None,
        least_xid=index.least_xid,
        greatest_xid=index.greatest_xid,
        may_cross=index.unfinished is not None and may_matter(index.unfinished.head),
        is_damaged=index.stopped_at == STOPPED_AT_INVALID,
        points=tuple(point.name for point in index.restore_points),
        has_more_points=index.has_more_restore_points,
    )
