"""What lies beside segments and goes with them: later indexes, roll-ups, tails, name maps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from pgrecall.model.catalog_items import WalSpan
from pgrecall.model.wal_files import WalFile
from pgrecall.repository import layout, name_layout
from pgrecall.repository.identity import Generation
from pgrecall.store.base import Store


def companion_keys(
    store: Store, server: str, generation: Generation, spans: Sequence[WalSpan]
) -> list[tuple[str, int]]:
    """Key and size of every object that belongs to WAL in ``spans`` of one generation.

    A roll-up goes when all of its log directory does. Of the records of name maps in a
    span the last stays: it says what tables were called where the WAL goes on. Maps, which
    records share, stay, and so do records of gaps. Raises StoreError.
    """
    found: list[tuple[str, int]] = []
    for timeline in sorted({span.timeline for span in spans}):
        own = [span for span in spans if span.timeline == timeline]
        found += _indexes(store, server, generation, own)
        found += _rollups(store, server, generation, own)
        found += _tails(store, server, generation, own)
        found += _names(store, server, generation, own)
    return found


def _indexes(
    store: Store, server: str, generation: Generation, spans: Sequence[WalSpan]
) -> Iterator[tuple[str, int]]:
    size = generation.segment_bytes
    prefix = layout.wal_index_prefix(server, generation.number, spans[0].timeline)
    for info in store.list(prefix):
        start = WalFile(info.key.rpartition("/")[2]).start(size)
        if _covers(spans, start, start + size):
            yield info.key, info.size


def _rollups(
    store: Store, server: str, generation: Generation, spans: Sequence[WalSpan]
) -> Iterator[tuple[str, int]]:
    for info in store.list(layout.rollups_prefix(server, generation.number, spans[0].timeline)):
        log = int(info.key.rpartition("/")[2], 16)
        if _covers(spans, log << 32, (log + 1) << 32):
            yield info.key, info.size


def _tails(
    store: Store, server: str, generation: Generation, spans: Sequence[WalSpan]
) -> Iterator[tuple[str, int]]:
    size = generation.segment_bytes
    timeline = f"{spans[0].timeline:08X}/"
    for info in store.list(layout.tails_prefix(server, generation.number) + timeline):
        start = WalFile(info.key.split("/")[-2]).start(size)
        if _covers(spans, start, start + size):
            yield info.key, info.size


def _names(
    store: Store, server: str, generation: Generation, spans: Sequence[WalSpan]
) -> Iterator[tuple[str, int]]:
    prefix = name_layout.names_prefix(server, generation.number, spans[0].timeline)
    records = [(int(info.key.removeprefix(prefix)[:16], 16), info) for info in store.list(prefix)]
    for (at, info), (following, _) in itertools.pairwise(records):
        if _covers(spans, at, following + 1):
            yield info.key, info.size


def _covers(spans: Sequence[WalSpan], start: int, end: int) -> bool:
    """Whether all bytes from ``start`` to ``end`` lie in spans (which may touch)."""
    at = start
    for span in sorted(spans):
        if span.start <= at < span.end:
            at = span.end
    return at >= end
