"""What retention sees of a backup, dump or set, and later of a capture or snapshot."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

ItemKind = Literal["backup", "dump", "capture", "set", "snapshot"]
ItemState = Literal["complete", "damaged", "held", "expired"]


class WalNeed(msgspec.Struct, frozen=True):
    """WAL without which an item is not consistent: bytes ``start`` to ``stop`` of a timeline.

    ``is_own``: the item holds that WAL itself, and needs none of the archive's.
    """

    generation: int
    timeline: int
    start: int
    stop: int
    is_own: bool = False


class CatalogItem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing in a catalog. ``made_at``: the moment that it restores to.

    ``wal`` None: it needs no WAL, and no recovery begins with it. ``refers_to`` are
    ids of other items whose objects it needs. ``stored_bytes`` are its own. ``parts`` (of a set)
    stay as long as it does, and so does the WAL ``leads_to`` its moment. ``capture_id``: the
    capture that belongs to it, or empty.
    """

    kind: ItemKind
    item_id: str
    made_at: datetime
    stored_bytes: int
    wal: WalNeed | None = None
    refers_to: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    leads_to: WalNeed | None = None
    state: ItemState = "complete"
    capture_id: str = ""


class WalSpan(msgspec.Struct, frozen=True, order=True):
    """Bytes ``start`` (included) to ``end`` (excluded) of one timeline of one generation.

    ``since``: the number of the retention record that expired them. ``is_purged``: a
    purge has begun to delete them.
    """

    generation: int
    timeline: int
    start: int
    end: int
    since: int = 0
    is_purged: bool = False


def spans_without(spans: tuple[WalSpan, ...], wanted: tuple[WalSpan, ...]) -> tuple[WalSpan, ...]:
    """``spans`` less the bytes of ``wanted``; what is cut keeps what it says of itself."""
    left = list(spans)
    for hole in wanted:
        cut: list[WalSpan] = []
        for span in left:
            if (
                (span.generation, span.timeline) != (hole.generation, hole.timeline)
                or span.end <= hole.start
                or span.start >= hole.end
            ):
                cut.append(span)
                continue
            if span.start < hole.start:
                cut.append(msgspec.structs.replace(span, end=hole.start))
            if span.end > hole.end:
                cut.append(msgspec.structs.replace(span, start=hole.end))
        left = cut
    return tuple(left)


def merged_spans(spans: tuple[WalSpan, ...]) -> tuple[WalSpan, ...]:
    """Sorted; neighbours that say the same of themselves become one."""
    found: list[WalSpan] = []
    for span in sorted(spans):
        last = found[-1] if found else None
        if last is not None and last.end >= span.start and _alike(last, span):
            found[-1] = msgspec.structs.replace(last, end=max(last.end, span.end))
        else:
            found.append(span)
    return tuple(found)


def _alike(one: WalSpan, other: WalSpan) -> bool:
    return (one.generation, one.timeline, one.since, one.is_purged) == (
        other.generation,
        other.timeline,
        other.since,
        other.is_purged,
    )
