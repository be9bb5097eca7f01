"""What a retention plan says: each thing stays or goes, and why. Values."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from pgrecall.model.catalog_items import ItemKind, ItemState, WalSpan
from pgrecall.model.findings import Finding
from pgrecall.model.policies import Policy

Fate = Literal["stays", "goes"]


class ItemFate(msgspec.Struct, frozen=True, kw_only=True):
    """One item. ``why``: every rule that keeps it, or why none does. ``won_bytes``: what
    purging it would free, given what others share with it."""

    item_id: str
    kind: ItemKind
    made_at: datetime
    state: ItemState
    fate: Fate
    stored_bytes: int
    won_bytes: int
    why: tuple[str, ...]


class WalFate(msgspec.Struct, frozen=True, kw_only=True):
    """Segments of one timeline that follow each other and share their reasons."""

    generation: int
    timeline: int
    first: str
    last: str
    segments: int
    stored_bytes: int
    fate: Fate
    why: tuple[str, ...]


class Reachable(msgspec.Struct, frozen=True, kw_only=True):
    """Moments along one timeline's path, from where a backup is consistent on.

    ``to_lsn``: the end of the segments that follow without a gap; ``to_at``: when the
    last of them was stored.
    """

    generation: int
    timeline: int
    from_at: datetime
    from_lsn: str
    to_at: datetime
    to_lsn: str
    backups: int


class ExpiryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``expire`` does. ``counted_from_at``: the moment from which ages are counted.

    ``spans``: the WAL that goes. ``won_bytes``: what a purge will free.
    """

    server: str
    repository: str
    policy: Policy
    counted_from_at: datetime | None
    window_from_at: datetime | None
    items: tuple[ItemFate, ...]
    wal: tuple[WalFate, ...]
    reachable_before: tuple[Reachable, ...]
    reachable_after: tuple[Reachable, ...]
    items_going: int
    segments_going: int
    won_bytes: int
    spans: tuple[WalSpan, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def going(self) -> tuple[ItemFate, ...]:
        """Items that go."""
        return tuple(item for item in self.items if item.fate == "goes")

    @property
    def changes(self) -> bool:
        """Whether anything goes."""
        return bool(self.going or self.spans)
