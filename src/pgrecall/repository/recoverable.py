"""A WAL archive seen at one moment: listed once, every index read once, as the ranges need it.

Segments are rows of columns (wal_listing.py, wal_summaries.py); names are made for the few
that somebody asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.ranges import (
    PathRuns,
    Piece,
    Placed,
    Run,
    SegmentNames,
    pieces_from,
    place_backups,
    runs_along,
)
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, history_name, segment_name
from pgrecall.model.wal_index import WalIndex
from pgrecall.repository.segment_rows import IS_DAMAGED, row_of
from pgrecall.repository.wal_archive import StoredSegment, WalArchive
from pgrecall.repository.wal_listing import list_wal, moment_of
from pgrecall.repository.wal_summaries import ROW, Rows, Summaries


class RunRows:
    """The segments of a run from one position on, as columns (wal_summaries.ROW)."""

    def __init__(self, pieces: Sequence[Piece], parts: Sequence[Rows], size: int) -> None:
        self.pieces = pieces
        self.names = SegmentNames(pieces, size)
        self.rows: Rows = np.concatenate(parts) if parts else np.zeros(0, ROW)
        first = pieces[0].first if pieces else 0
        #: First bytes of the segments, as LSNs.
        self.starts = np.arange(first, first + len(self.rows), dtype=np.uint64) * np.uint64(size)


class ArchiveSnapshot:
    """The segments of one generation as one listing found them.

    It answers what planning asks of an archive (restore.replay.ArchiveView),
    from memory where that is possible: a million segments take about 150
    megabytes. Not thread-safe.
    """

    def __init__(self, archive: WalArchive) -> None:
        """List everything; raises StoreError: what cannot be listed is not called absent."""
        self.archive = archive
        self.segment_bytes = archive.segment_bytes
        listing = list_wal(archive.store, archive.server, archive.generation)
        self._histories = listing.histories
        self._tables = {
            timeline: table
            for timeline, table in listing.without(archive.hidden).tables.items()
            if len(table)
        }
        self._summaries = {
            timeline: Summaries(archive, timeline, table)
            for timeline, table in self._tables.items()
        }
        self._tail_rows: dict[str, tuple[Rows, tuple[str, ...]]] = {}

    # --- what planning asks --------------------------------------------------------

    def histories(self) -> dict[int, TimelineHistory]:
        """Every archived history by timeline, as WalArchive.histories."""
        return self._histories

    def segments(self, timeline: int, first: str | None = None) -> Iterable[StoredSegment]:
        """Whole segments of a timeline from the position of ``first`` on."""
        table = self._tables.get(timeline)
        if table is None:
            return ()
        low = 0
        if first is not None:
            start = WalFile(first).start(self.segment_bytes) // self.segment_bytes
            low = int(np.searchsorted(table.numbers, np.uint64(start)))
        return (self._segment(timeline, row) for row in range(low, len(table)))

    def _segment(self, timeline: int, row: int) -> StoredSegment:
        table, size = self._tables[timeline], self.segment_bytes
        name = segment_name(timeline, int(table.numbers[row]) * size, size)
        return StoredSegment(name, int(table.stored_bytes[row]))

    def candidates(self, history: TimelineHistory, lsn: int) -> list[str]:
        """As WalArchive.candidates."""
        return self.archive.candidates(history, lsn)

    def indexes(self, names: Iterable[str]) -> Iterator[tuple[str, WalIndex]]:
        """As WalArchive.indexes."""
        return self.archive.indexes(self._noted(name) for name in names)

    def index(self, name: str) -> WalIndex:
        """As WalArchive.index."""
        return self.archive.index(self._noted(name))

    def read(self, name: str) -> bytes:
        """As WalArchive.read."""
        return self.archive.read(name)

    def tail_end(self, name: str) -> Lsn | None:
        """As WalArchive.tail_end."""
        return self.archive.tail_end(name)

    def newest_segments(self) -> Mapping[int, StoredSegment]:
        """The newest segment of every timeline that has any."""
        return {
            timeline: self._segment(timeline, len(table) - 1)
            for timeline, table in self._tables.items()
        }

    def _noted(self, name: str) -> str:
        """The same name; the archive knows what the listing said of it (roll-ups need that)."""
        file = WalFile(name)
        row = self._row(file.timeline, int(file.start(self.segment_bytes)) // self.segment_bytes)
        if row is not None:
            table = self._tables[file.timeline]
            stored_at = moment_of(float(table.stored_at[row]))
            self.archive.note_listed([(name, int(table.stored_bytes[row]), stored_at)])
        return name

    def _row(self, timeline: int, number: int) -> int | None:
        """Where a segment is in the table of its timeline; None: it was not listed."""
        table = self._tables.get(timeline)
        if table is None:
            return None
        row = int(np.searchsorted(table.numbers, np.uint64(number)))
        return row if row < len(table) and int(table.numbers[row]) == number else None

    # --- what the ranges ask -------------------------------------------------------

    def stored_bytes(self, names: Iterable[str]) -> int:
        """What the objects of these segments take; names that are not archived count nothing."""
        found = 0
        for name in names:
            file = WalFile(name)
            number = int(file.start(self.segment_bytes)) // self.segment_bytes
            found += self.stored_bytes_of(Piece(file.timeline, number, number + 1))
        return found

    def stored_bytes_of(self, piece: Piece) -> int:
        """The same for segments that follow each other."""
        table = self._tables.get(piece.timeline)
        if table is None:
            return 0
        bounds = np.array([piece.first, piece.behind], np.uint64)
        low, high = np.searchsorted(table.numbers, bounds)
        return int(table.stored_bytes[low:high].sum())

    def rows_of(self, run: Run, start: int = 0) -> RunRows:
        """What is known of the segments of ``run`` that reach behind the LSN ``start``.

        An index that was read before is not read again. Raises CorruptObjectError,
        StoreError, WalMissingError.
        """
        pieces = list(pieces_from(run.pieces, start // self.segment_bytes))
        return RunRows(pieces, [self._rows(run, piece) for piece in pieces], self.segment_bytes)

    def first_row(self, run: Run) -> Rows:
        """What is known of the first segment of ``run``; raises as ``rows_of``."""
        piece = run.pieces[0]
        return self._rows(run, Piece(piece.timeline, piece.first, piece.first + 1))

    def points_in(self, known: RunRows) -> Iterator[tuple[int, str]]:
        """The restore points that ``known`` names: the row of the segment, and the name."""
        at = 0
        for piece in known.pieces:
            tail = self._tail_rows.get(known.names[at]) if piece.behind - piece.first == 1 else None
            if tail is not None:
                yield from ((at, point) for point in tail[1])
            else:
                points = self._summaries[piece.timeline].points(piece.first, piece.behind)
                yield from ((at + number - piece.first, point) for number, point in points)
            at += piece.behind - piece.first

    def _rows(self, run: Run, piece: Piece) -> Rows:
        if not run.tail or piece.behind != run.pieces[-1].behind:
            return self._summaries[piece.timeline].rows(piece.first, piece.behind)
        if run.tail not in self._tail_rows:
            row, points = row_of(self.archive.index(run.tail))
            self._tail_rows[run.tail] = (np.array([row], ROW), points)
        return self._tail_rows[run.tail][0]

    def path_runs(self, history: TimelineHistory, backups: Sequence[Completion]) -> PathRuns:
        """The runs of a path with the backups that they serve.

        Reads the indexes from the oldest backup of the path on: in older WAL
        nothing can be reached.
        """
        own = {*(switch.timeline for switch in history.switches), history.timeline}
        placed = [_placed(backup) for backup in backups if backup.timeline in own]
        size = self.segment_bytes
        present = {
            timeline: table.numbers for timeline, table in self._tables.items() if timeline in own
        }
        path = runs_along(history, size, present, {})
        if placed:
            oldest = min(backup.start for backup in placed)
            ends_in = dict(end for run in path.runs for end in self._inner_ends(run, oldest))
            if ends_in:
                path = runs_along(history, size, present, ends_in)
        for run in path.runs:
            self._end_in_tail(run, history)
        place_backups(path, placed)
        return path

    def _inner_ends(self, run: Run, oldest: int) -> Iterator[tuple[str, Lsn]]:
        """Of each segment in whose middle the WAL ends, from an LSN on, where that is."""
        if run.pieces[-1].behind * self.segment_bytes <= oldest:
            return
        known = self.rows_of(run, oldest)
        for at in np.flatnonzero(known.rows["flags"] & IS_DAMAGED).tolist():
            yield known.names[at], Lsn(int(known.rows["end_lsn"][at]))

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
