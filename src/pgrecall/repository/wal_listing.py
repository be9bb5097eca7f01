"""The segments of an archive as columns: a million of them in memory, listed once.

Nothing is read but names, sizes and times, and the history files. Retention decides
from that; the ranges that a restore would use come from the indexes (recoverable.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
_PLACE_LENGTH = len("TTTTTTTT/LLLLLLLL/TTTTTTTTLLLLLLLLSSSSSSSS")
_SLASH = ord("/")
# The value of each hexadecimal digit as PostgreSQL writes them, 255 for any other byte.
_DIGITS = np.full(256, 255, np.uint8)
_DIGITS[np.frombuffer(b"0123456789ABCDEF", np.uint8)] = np.arange(16)
_WEIGHTS = np.uint64(16) ** np.arange(7, -1, -1, dtype=np.uint64)
# Their files are looked at together: some ten thousand.
_LOGS_AT_ONCE = 32
_LISTERS = 4
_REMOTE_LISTERS = 16


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
        table = _listed(store, prefix, generation.segment_bytes)
        if len(table):
            tables[timeline] = table
    return WalListing(generation.number, generation.segment_bytes, tables, archive.histories())


def _listed(store: Store, prefix: str, segment_bytes: int) -> SegmentTable:
    """All segments of one timeline.

    Log directories are listed side by side: a service of objects answers with a page of 1,000 at
    a time, and a disk reads what is not in memory.
    """
    children = store.children(prefix)
    for name in children:
        if not name.endswith("/"):
            layout.parse_wal_key(prefix + name)  # refuses what is none of ours
    logs = [name for name in children if name.endswith("/")]
    listers = _REMOTE_LISTERS if store.reads_whole else _LISTERS
    parts = [_columns([], segment_bytes)]
    with ThreadPoolExecutor(listers, thread_name_prefix="wal-listing") as pool:
        for at in range(0, len(logs), _LOGS_AT_ONCE):
            batch = logs[at : at + _LOGS_AT_ONCE]
            found = pool.map(lambda log: list(store.list(prefix + log)), batch)
            parts.append(_columns(list(itertools.chain.from_iterable(found)), segment_bytes))
    return SegmentTable(
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.stored_bytes for part in parts]),
        np.concatenate([part.stored_at for part in parts]),
    )


def _columns(infos: Sequence[ObjectInfo], segment_bytes: int) -> SegmentTable:
    """The segments among listed objects. A million are listed: nothing is done for each alone."""
    ends = [info.key[-_PLACE_LENGTH:].rjust(_PLACE_LENGTH) for info in infos]
    places = np.frombuffer("".join(ends).encode("ascii"), np.uint8).reshape(-1, _PLACE_LENGTH)
    # Timeline, log directory, name: what is plainly a segment in its place is taken at once.
    timelines, logs, names = places[:, :8], places[:, 9:17], places[:, 18:]
    digits = _DIGITS[names]
    is_segment = (digits < 16).all(axis=1) & (names[:, :8] == timelines).all(axis=1)
    is_segment &= (names[:, 8:16] == logs).all(axis=1)
    is_segment &= (places[:, 8] == _SLASH) & (places[:, 17] == _SLASH)
    for at in np.flatnonzero(~is_segment).tolist():
        layout.parse_wal_key(infos[at].key)  # refuses what is none of ours
    numbers = digits[is_segment].astype(np.uint64)
    return SegmentTable(
        numbers[:, 8:16] @ _WEIGHTS * np.uint64((1 << 32) // segment_bytes)
        + numbers[:, 16:] @ _WEIGHTS,
        np.fromiter((info.size for info in infos), np.int64, len(infos))[is_segment],
        np.fromiter((info.stored_seconds for info in infos), np.float64, len(infos))[is_segment],
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
