"""What the ranges keep of WAL indexes, as columns: a million segments take a hundred megabytes.

Filled from the roll-ups of log directories where those serve (wal_rollups.py), and from the
segments' own ends where not; each object is read once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pgrecall.model.wal_files import segment_name
from pgrecall.repository.segment_rows import Points, Row, row_from, row_of
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.repository.wal_listing import SegmentTable, moment_of
from pgrecall.repository.wal_rollups import RollUp

_READERS = 16
_LOGS_AT_ONCE = 64

ROW = np.dtype(
    [
        ("end_lsn", np.uint64),
        ("last_record", np.uint64),
        ("first_end", np.int64),
        ("greatest_end", np.int64),
        ("last_commit", np.int64),
        ("least_xid", np.uint64),
        ("greatest_xid", np.uint64),
        ("flags", np.uint8),
    ]
)
"""A segment_rows.Row."""

Rows = NDArray[np.void]
_Places = NDArray[np.intp]


class Summaries:
    """The rows of one timeline's segments, in the order of ``table``. Not thread-safe."""

    def __init__(self, archive: WalArchive, timeline: int, table: SegmentTable) -> None:
        self._archive = archive
        self._timeline = timeline
        self._table = table
        self._rows: Rows = np.zeros(len(table), ROW)
        self._known = np.zeros(len(table), np.bool_)
        self._points: dict[int, Points] = {}

    def rows(self, first: int, behind: int) -> Rows:
        """Of the segments with the numbers ``first`` up to ``behind``, all of which are there.

        Raises CorruptObjectError, StoreError, WalMissingError.
        """
        low, high = np.searchsorted(self._table.numbers, np.array([first, behind], np.uint64))
        self._read(int(low), int(high))
        return self._rows[low:high]

    def points(self, first: int, behind: int) -> Iterator[tuple[int, str]]:
        """The restore points in those of these segments whose rows were asked for: number, name."""
        for number, names in self._points.items():
            if first <= number < behind:
                yield from ((number, name) for name in names)

    def _read(self, low: int, high: int) -> None:
        unknown = np.flatnonzero(~self._known[low:high]) + low
        if not len(unknown):
            return
        per_log = np.uint64((1 << 32) // self._archive.segment_bytes)
        logs = self._table.numbers[unknown] // per_log
        cuts = [0, *(np.flatnonzero(np.diff(logs)) + 1).tolist(), len(unknown)]
        groups = [
            (f"{logs[first]:08X}", unknown[first:behind])
            for first, behind in itertools.pairwise(cuts)
        ]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="wal-summary") as pool:
            for at in range(0, len(groups), _LOGS_AT_ONCE):
                batch = groups[at : at + _LOGS_AT_ONCE]
                rolled = pool.map(
                    lambda group: self._archive.rolled_up(self._timeline, group[0]), batch
                )
                for (_, places), rollup in zip(batch, rolled, strict=True):
                    if rollup is not None:
                        self._take(places, rollup)
        self._read_alone(unknown[~self._known[unknown]])

    def _take(self, places: _Places, rollup: RollUp) -> None:
        """Keep what a roll-up tells of segments whose objects are those that it was made of."""
        table, size = self._table, self._archive.segment_bytes
        numbers = table.numbers[places] % np.uint64((1 << 32) // size)
        found = np.minimum(np.searchsorted(rollup.parts, numbers), len(rollup.parts) - 1)
        is_same = rollup.parts[found] == numbers
        is_same &= rollup.stored_bytes[found] == table.stored_bytes[places]
        is_same &= table.stored_at[places] <= rollup.stored_at.timestamp()
        served, entries = places[is_same], found[is_same].tolist()
        known: list[tuple[Row, Points] | None] = []
        for place, at in zip(served.tolist(), entries, strict=True):
            entry = rollup.entries[at]
            if entry.row is not None:
                known.append((entry.row, entry.points))
            else:
                known.append(row_from(rollup.index(at), int(table.numbers[place]) * size))
        for place, summary in zip(served.tolist(), known, strict=True):
            if summary is not None and summary[1]:
                self._points[int(table.numbers[place])] = summary[1]
        plain = served[[summary is not None for summary in known]]
        self._rows[plain] = np.array([one[0] for one in known if one is not None], ROW)
        self._known[plain] = True

    def _read_alone(self, places: _Places) -> None:
        """Read the indexes of segments that no roll-up serves."""
        table, size = self._table, self._archive.segment_bytes
        names = {
            segment_name(self._timeline, int(table.numbers[place]) * size, size): place
            for place in places.tolist()
        }
        self._archive.note_listed(
            (name, int(table.stored_bytes[place]), moment_of(float(table.stored_at[place])))
            for name, place in names.items()
        )
        for name, index in self._archive.indexes(names):
            place = names[name]
            self._rows[place], points = row_of(index)
            self._known[place] = True
            if points:
                self._points[int(table.numbers[place])] = points
