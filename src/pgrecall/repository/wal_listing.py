"""The segments of an archive as columns: a million of them in memory, listed once.

Nothing is read but names, sizes and times, and the history files. Retention decides
from that; the ranges that a restore would use come from the indexes (recoverable.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from pgrecall.model.catalog_items import WalSpan
from pgrecall.model.timelines import TimelineHistory
from pgrecall.repository import layout
from pgrecall.repository.identity import Generation
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.store.base import ObjectInfo, Store

Numbers = NDArray[np.uint64]
_HEX = frozenset("0123456789ABCDEF")


class SegmentTable:
    """Segments of one timeline by ascending number (LSN / segment size).

    ``stored_bytes`` are the sizes of their objects, ``stored_at`` seconds since 1970 by
    the store's clock.
    """

    __slots__ = ("numbers", "stored_at", "stored_bytes")

    def __init__(
        self, numbers: Iterable[int], stored_bytes: Iterable[int], stored_at: Iterable[float]
    ) -> None:
        unsorted = np.asarray(numbers, np.uint64)
        order = np.argsort(unsorted, kind="stable")
        self.numbers: Numbers = unsorted[order]
        self.stored_bytes = np.asarray(stored_bytes, np.int64)[order]
        self.stored_at = np.asarray(stored_at, np.float64)[order]

    def __len__(self) -> int:
        return len(self.numbers)

    def chosen(self, mask: NDArray[np.bool_]) -> SegmentTable:
        """The rows where ``mask`` is true."""
        return SegmentTable(self.numbers[mask], self.stored_bytes[mask], self.stored_at[mask])


class WalListing:
    """One generation: its tables by timeline, and the histories that are archived."""

    def __init__(
        self,
        generation: int,
        segment_bytes: int,
        tables: Mapping[int, SegmentTable],
        histories: Mapping[int, TimelineHistory],
    ) -> None:
        self.generation = generation
        self.segment_bytes = segment_bytes
        self.tables = dict(tables)
        self.histories = dict(histories)

    def without(self, spans: Iterable[WalSpan]) -> WalListing:
        """The same less the segments that lie wholly in ``spans``."""
        tables = dict(self.tables)
        size = self.segment_bytes
        by_timeline: dict[int, list[WalSpan]] = {}
        for span in spans:
            if span.generation == self.generation and span.timeline in tables:
                by_timeline.setdefault(span.timeline, []).append(span)
        for timeline, found in by_timeline.items():
            table = tables[timeline]
            stays = np.ones(len(table), np.bool_)
            for span in found:
                low = np.searchsorted(table.numbers, -(-span.start // size))
                high = np.searchsorted(table.numbers, span.end // size)
                stays[low:high] = False
            tables[timeline] = table.chosen(stays)
        return WalListing(self.generation, size, tables, self.histories)


def list_wal(store: Store, server: str, generation: Generation) -> WalListing:
    """List one generation's archive. Raises StoreError: an error is no empty archive."""
    archive = WalArchive(store, server, generation)
    tables = {}
    for timeline in archive.timelines():
        prefix = layout.wal_prefix(server, generation.number, timeline)
        table = _table(store.list(prefix), generation.segment_bytes)
        if len(table):
            tables[timeline] = table
    return WalListing(generation.number, generation.segment_bytes, tables, archive.histories())


def _table(infos: Iterable[ObjectInfo], segment_bytes: int) -> SegmentTable:
    per_log = (1 << 32) // segment_bytes
    numbers, sizes, times = array("Q"), array("q"), array("d")
    for info in infos:
        name = info.key[-24:]
        if info.key[-25:-24] != "/" or not _HEX.issuperset(name):
            layout.parse_wal_key(info.key)  # refuses what is none of ours
            continue
        numbers.append(int(name[8:16], 16) * per_log + int(name[16:], 16))
        sizes.append(info.size)
        times.append(info.stored_at.timestamp())
    return SegmentTable(
        np.frombuffer(numbers, np.uint64) if numbers else [],
        np.frombuffer(sizes, np.int64) if sizes else [],
        np.frombuffer(times, np.float64) if times else [],
    )


def moment_of(seconds: float) -> datetime:
    """An aware moment from seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)


def keys_in(
    store: Store, server: str, generation: Generation, spans: Iterable[WalSpan]
) -> list[tuple[str, int]]:
    """Key and size of every archived file whose bytes lie in ``spans``, history files never.

    Segments, partial ones and backup history files of those segments. Raises StoreError.
    """
    size = generation.segment_bytes
    by_timeline: dict[int, list[WalSpan]] = {}
    for span in spans:
        by_timeline.setdefault(span.timeline, []).append(span)
    found = []
    for timeline, wanted in by_timeline.items():
        bounds = sorted((span.start, span.end) for span in wanted)
        starts = [start for start, _ in bounds]
        prefix = layout.wal_prefix(server, generation.number, timeline)
        for child in store.children(prefix):
            stem = child.rstrip("/")
            if stem == child or len(stem) != 8 or not _touches(bounds, int(stem, 16)):
                continue
            for info in store.list(prefix + child):
                file = layout.parse_wal_key(info.key)[2]
                start = int(file.start(size))
                at = int(np.searchsorted(starts, start, side="right")) - 1
                if at >= 0 and start + size <= bounds[at][1]:
                    found.append((info.key, info.size))
    return found


def _touches(bounds: list[tuple[int, int]], log: int) -> bool:
    return any(start < (log + 1) << 32 and end > log << 32 for start, end in bounds)
