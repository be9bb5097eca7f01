"""Which WAL follows which along a timeline path, by numbers of segments. Pure.

The same rules as model/ranges.py, for a million segments: columns instead of names.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from pgrecall.model.catalog_items import CatalogItem, WalNeed
from pgrecall.model.timelines import TimelineHistory
from pgrecall.repository.wal_listing import WalListing


class PathRun:
    """Segments that follow each other: ``start`` to ``end`` (LSNs), the newest's time."""

    __slots__ = ("end", "items", "start", "stored_at")

    def __init__(self, start: int, end: int, stored_at: float) -> None:
        self.start = start
        self.end = end
        self.stored_at = stored_at
        self.items: list[CatalogItem] = []


def parts_of(history: TimelineHistory) -> Iterator[tuple[int, int, int | None]]:
    """Timeline, where the path enters it, and where it leaves it (None: never)."""
    begin = 0
    for switch in history.switches:
        yield switch.timeline, begin, switch.end
        begin = switch.end
    yield history.timeline, begin, None


def is_on_path(history: TimelineHistory, need: WalNeed) -> bool:
    """Whether recovery along ``history`` can begin with an item that needs that WAL."""
    if not history.is_ancestor_or_self(need.timeline):
        return False
    left = history.end_of(need.timeline)
    return left is None or need.stop <= left


def paths_of(listing: WalListing, items: Sequence[CatalogItem]) -> list[TimelineHistory]:
    """Histories of all timelines that have segments or items, where they are known."""
    used = {timeline for timeline, table in listing.tables.items() if len(table)}
    used |= {item.wal.timeline for item in items if item.wal is not None}
    return [listing.histories[timeline] for timeline in sorted(used & listing.histories.keys())]


def runs_of(
    listing: WalListing, history: TimelineHistory, items: Sequence[CatalogItem]
) -> list[PathRun]:
    """The runs of a path, oldest first, each with the items that it serves by position.

    An item that holds its own WAL where the archive lacks it is given to the run that
    goes on behind it, if there is one.
    """
    runs = list(_runs(listing, history))
    starts = [run.start for run in runs]
    size = listing.segment_bytes
    on_path = [
        (item.wal.stop, item.item_id, item)
        for item in items
        if item.wal is not None and is_on_path(history, item.wal)
    ]
    for stop, _, item in sorted(on_path, key=lambda one: one[:2]):
        assert item.wal is not None
        run = _run_at(runs, starts, item.wal.start)
        if (run is None or run.end < stop) and item.wal.is_own:
            run = _run_at(runs, starts, -(-stop // size) * size)
        if run is not None and run.end >= stop:
            run.items.append(item)
    return runs


def _run_at(runs: Sequence[PathRun], starts: Sequence[int], lsn: int) -> PathRun | None:
    at = bisect_right(starts, lsn) - 1
    return runs[at] if at >= 0 and lsn < runs[at].end else None


def _runs(listing: WalListing, history: TimelineHistory) -> Iterator[PathRun]:
    size = listing.segment_bytes
    numbers, ends, times = [], [], []
    for timeline, begin, left in parts_of(history):
        table = listing.tables.get(timeline)
        if table is None:
            continue
        low = np.searchsorted(table.numbers, begin // size)
        high = len(table) if left is None else np.searchsorted(table.numbers, -(-left // size))
        found = table.numbers[low:high]
        numbers.append(found)
        reach = (found + np.uint64(1)) * np.uint64(size)
        ends.append(reach if left is None else np.minimum(reach, np.uint64(left)))
        times.append(table.stored_at[low:high])
    if not numbers:
        return
    # Of two files for one position recovery reads the younger timeline's.
    every = np.concatenate(numbers)[::-1]
    unique, place = np.unique(every, return_index=True)
    end = np.concatenate(ends)[::-1][place]
    stored = np.concatenate(times)[::-1][place]
    breaks = np.flatnonzero(end[:-1] != unique[1:] * np.uint64(size)) + 1
    bounds = [0, *breaks.tolist(), len(unique)]
    for first, behind in itertools.pairwise(bounds):
        if behind > first:
            yield PathRun(
                int(unique[first]) * size, int(end[behind - 1]), float(stored[first:behind].max())
            )
