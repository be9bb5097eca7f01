"""Which WAL is needed, by whom, and what goes. Pure.

Needs are ranges of segment numbers on a timeline with a reason. Whatever no need covers
goes, unless it was stored within the window: then nobody knows yet what needs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from pgrecall.model.catalog_items import CatalogItem, WalSpan
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import segment_name
from pgrecall.repository.wal_listing import SegmentTable, WalListing
from pgrecall.retention.fates import WalFate
from pgrecall.retention.paths import parts_of

_NO_END = 1 << 63


class Need:
    """Segments ``low`` to ``high`` (excluded) of a timeline are needed, for ``reason``."""

    __slots__ = ("high", "low", "reason", "timeline")

    def __init__(self, timeline: int, low: int, high: int, reason: str) -> None:
        self.timeline = timeline
        self.low = low
        self.high = high
        self.reason = reason


def consistency_needs(kept: Sequence[CatalogItem], segment_bytes: int) -> list[Need]:
    """What each kept item needs to be consistent."""
    return [
        Need(
            item.wal.timeline,
            item.wal.start // segment_bytes,
            max(item.wal.start, item.wal.stop - 1) // segment_bytes + 1,
            f"{item.item_id} is not consistent without it",
        )
        for item in kept
        if item.wal is not None and not item.wal.is_own
    ]


def moment_needs(kept: Sequence[CatalogItem], generation: int, segment_bytes: int) -> list[Need]:
    """What each kept set needs to reach its moment."""
    return [
        Need(
            item.leads_to.timeline,
            item.leads_to.start // segment_bytes,
            max(item.leads_to.start, item.leads_to.stop - 1) // segment_bytes + 1,
            f"it leads to the moment of {item.item_id}",
        )
        for item in kept
        if item.leads_to is not None and item.leads_to.generation == generation
    ]


def path_needs(history: TimelineHistory, start: int, segment_bytes: int, reason: str) -> list[Need]:
    """Everything along a path from ``start`` on."""
    needs = []
    for timeline, begin, left in parts_of(history):
        if left is not None and left <= start:
            continue
        high = _NO_END if left is None else -(-left // segment_bytes)
        needs.append(Need(timeline, max(start, begin) // segment_bytes, high, reason))
    return needs


def fates_of_wal(
    listing: WalListing, needs: Sequence[Need], stored_since: float, *, all_stays: str = ""
) -> tuple[list[WalFate], list[WalSpan]]:
    """What stays and goes of one generation, and the spans that go.

    ``stored_since``: seconds since 1970; what was stored at that time or later stays.
    ``all_stays``: a reason for which nothing goes. A timeline whose history is not archived
    stays: what it belongs to is not known.
    """
    fates: list[WalFate] = []
    spans: list[WalSpan] = []
    for timeline in sorted(listing.tables):
        table = listing.tables[timeline]
        if not len(table):
            continue
        reason = all_stays
        if timeline not in listing.histories:
            reason = reason or f"the history of timeline {timeline} is not archived"
        if reason:
            own: list[Need] = [Need(timeline, 0, _NO_END, reason)]
        else:
            own = [need for need in needs if need.timeline == timeline]
        found, going = _fates(listing, timeline, own, stored_since)
        fates += found
        spans += going
    return fates, spans


def _fates(
    listing: WalListing, timeline: int, needs: Sequence[Need], stored_since: float
) -> tuple[list[WalFate], list[WalSpan]]:
    table = listing.tables[timeline]
    fates, spans = [], []
    for low, high, reasons in _pieces(table, needs):
        # Within a piece, only when it was stored can make a difference.
        young = table.stored_at[low:high] >= stored_since
        cuts = [0, *(np.flatnonzero(young[1:] != young[:-1]) + 1).tolist(), high - low]
        if reasons:
            cuts = [0, high - low]
        for first, behind in itertools.pairwise(cuts):
            why = reasons or (("stored within the window",) if young[first] else ())
            fate = _fate(listing, timeline, (low + first, low + behind), why)
            fates.append(fate)
            if not why:
                spans += _spans(listing, timeline, (low + first, low + behind))
    return fates, spans


def _fate(
    listing: WalListing, timeline: int, rows: tuple[int, int], why: tuple[str, ...]
) -> WalFate:
    table, size = listing.tables[timeline], listing.segment_bytes
    low, high = rows
    return WalFate(
        generation=listing.generation,
        timeline=timeline,
        first=segment_name(timeline, int(table.numbers[low]) * size, size),
        last=segment_name(timeline, int(table.numbers[high - 1]) * size, size),
        segments=high - low,
        stored_bytes=int(table.stored_bytes[low:high].sum()),
        fate="stays" if why else "goes",
        why=why or ("no kept backup needs it, and it is older than the window",),
    )


def _spans(listing: WalListing, timeline: int, rows: tuple[int, int]) -> list[WalSpan]:
    low, high = rows
    size = listing.segment_bytes
    numbers = listing.tables[timeline].numbers[low:high]
    cuts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), high - low]
    return [
        WalSpan(
            listing.generation,
            timeline,
            int(numbers[first]) * size,
            (int(numbers[behind - 1]) + 1) * size,
        )
        for first, behind in itertools.pairwise(cuts)
    ]


def _pieces(table: SegmentTable, needs: Sequence[Need]) -> list[tuple[int, int, tuple[str, ...]]]:
    """Rows that the same needs cover, in order: (first row, row behind the last, reasons)."""
    rows = np.searchsorted(
        table.numbers, np.array([[need.low, need.high] for need in needs], np.uint64).reshape(-1, 2)
    )
    opening: dict[int, list[str]] = {}
    closing: dict[int, list[str]] = {}
    for need, (low, high) in zip(needs, rows.tolist(), strict=True):
        if low < high:
            opening.setdefault(low, []).append(need.reason)
            closing.setdefault(high, []).append(need.reason)
    bounds = sorted({0, len(table), *opening, *closing})
    active: dict[str, int] = {}
    pieces: list[tuple[int, int, tuple[str, ...]]] = []
    for low, high in itertools.pairwise(bounds):
        for reason in closing.get(low, ()):
            active[reason] -= 1
            if not active[reason]:
                del active[reason]
        for reason in opening.get(low, ()):
            active[reason] = active.get(reason, 0) + 1
        reasons = tuple(active)
        if pieces and pieces[-1][2] == reasons:
            pieces[-1] = (pieces[-1][0], high, reasons)
        else:
            pieces.append((low, high, reasons))
    return pieces
