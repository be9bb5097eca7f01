"""What purge deletes: of what has expired, what is older than the grace and nobody needs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from pgrecall.errors import RepositoryError
from pgrecall.model.catalog_items import WalSpan, spans_without
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.repository import layout
from pgrecall.repository.catalog import Unfinished
from pgrecall.repository.leases import HeldLease
from pgrecall.retention.gathering import Gathered
from pgrecall.store.base import ObjectInfo

_DIGESTS = "digests"

What = Literal["expired", "unfinished", "remains"]


class PurgeItem(msgspec.Struct, frozen=True, kw_only=True):
    """One item that is deleted. ``kept_objects``: those that others still need."""

    item_id: str
    what: What
    objects: int
    stored_bytes: int
    kept_objects: int
    why: str


class KeptItem(msgspec.Struct, frozen=True, kw_only=True):
    """Packs and digests of an item that is gone, or goes: others need them. Whole objects stay.

    ``needed_by``: how many backups that stay refer to it; with the last of them it goes.
    """

    item_id: str
    objects: int
    stored_bytes: int
    needed_by: int


class WaitingItem(msgspec.Struct, frozen=True, kw_only=True):
    """What is not purged yet, and why."""

    item_id: str
    why: str


class PurgePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``purge`` does. ``purged_before_at``: what expired before that goes.

    ``kept``: what stays of purged items, these and earlier ones; ``kept_bytes``: all of it.
    """

    server: str
    repository: str
    purged_before_at: datetime
    items: tuple[PurgeItem, ...]
    waiting: tuple[WaitingItem, ...]
    wal_files: int
    wal_bytes: int
    stale_leases: int
    won_bytes: int
    kept_bytes: int = 0
    kept: tuple[KeptItem, ...] = ()
    spans: tuple[WalSpan, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether there is anything to delete."""
        return bool(self.items or self.wal_files or self.stale_leases)


class Candidate(msgspec.Struct, frozen=True):
    """An item whose deletion may begin (or has begun: ``remains``), and why."""

    item_id: str
    what: What
    why: str


def candidates(
    gathered: Gathered,
    unfinished: Sequence[Unfinished],
    remains: Sequence[str],
    *,
    now: datetime,
    grace: timedelta,
) -> tuple[list[Candidate], list[WaitingItem]]:
    """What may be deleted at ``now`` (by the store's clock), and what has to wait.

    ``remains``: ids whose deletion has begun and that still have objects.
    """
    found: list[Candidate] = []
    waiting: list[WaitingItem] = []
    held = gathered.state.active_holds(now)
    before = now - grace
    alive = gathered.alive(now)
    for item_id, expired in sorted(gathered.state.expired.items()):
        used = _user(alive, item_id)
        if item_id in held:
            waiting.append(WaitingItem(item_id=item_id, why=f"hold: {held[item_id].reason}"))
        elif expired.expired_at > before:
            until = expired.expired_at + grace
            waiting.append(
                WaitingItem(item_id=item_id, why=f"not before {until:%Y-%m-%d %H:%M} UTC")
            )
        elif used:
            waiting.append(WaitingItem(item_id=item_id, why=used))
        else:
            found.append(Candidate(item_id, "expired", f"expired {expired.expired_at:%Y-%m-%d}"))
    for one in unfinished:
        used = _user(alive, one.backup_id)
        if one.newest_at > before:
            continue  # it may be running, or have failed just now
        if used:
            waiting.append(WaitingItem(item_id=one.backup_id, why=used))
        else:
            found.append(Candidate(one.backup_id, "unfinished", "never completed"))
    for item_id in remains:
        used = _user(alive, item_id)
        if used:
            waiting.append(WaitingItem(item_id=item_id, why=used))
        else:
            found.append(Candidate(item_id, "remains", "its purge had begun"))
    return found, waiting


def _user(alive: Sequence[HeldLease], item_id: str) -> str:
    """The run that may use an item. A lease on nothing in particular is one on everything."""
    for lease in alive:
        if lease.record.kind in ("expire", "purge"):
            continue
        if not lease.record.items or item_id in lease.record.items:
            return f"in use: {lease}"
    return ""


def purgeable_spans(gathered: Gathered, *, now: datetime, grace: timedelta) -> list[WalSpan]:
    """Expired WAL that may be deleted, and what a purge that was killed has left of it.

    WAL behind the beginning of a backup that is in use stays.
    """
    state = gathered.state
    old = tuple(
        span
        for span in state.wal
        if span.is_purged or state.recorded.get(span.since, now) <= now - grace
    )
    used = []
    for lease in gathered.alive(now):
        if lease.record.kind == "verify" and not lease.record.items:
            return []  # it reads all there is
        for item_id in lease.record.items:
            backup = gathered.backups.get(item_id)
            if backup is not None:
                used += [
                    WalSpan(backup.generation, timeline, int(Lsn.parse(backup.start_lsn)), 1 << 64)
                    for timeline in {span.timeline for span in old}
                ]
    return list(spans_without(old, tuple(used)))


def deletions(
    objects: Sequence[ObjectInfo], needed: Mapping[str, int] | None
) -> tuple[list[list[ObjectInfo]], list[ObjectInfo]]:
    """Objects of an item in stages, to be deleted one stage after the other; and those that stay.

    The completion record goes first: from then on nobody takes what is left for a backup.
    ``needed``: keys that others need; None: nobody refers to this item. What is of no kind
    known here stays as long as anybody refers to it.
    """
    stages: dict[str, list[ObjectInfo]] = {
        layout.COMPLETE: [], layout.PACK: [], _DIGESTS: [], "": [], layout.MANIFEST_PART: [],
        layout.MANIFEST: [],
    }  # fmt: skip
    kept = []
    for info in objects:
        kind = _kind_of(info.key)
        if needed is not None and (info.key in needed or not kind):
            kept.append(info)
        else:
            stages[kind].append(info)
    return [stage for stage in stages.values() if stage], kept


def _kind_of(key: str) -> str:
    if key.rpartition("/")[2].startswith("digests-"):
        return _DIGESTS
    try:
        return layout.parse_backup_key(key).kind
    except RepositoryError:
        return ""


def newest_evidence(gathered: Gathered) -> float:
    """When the newest WAL or retention record was stored, in seconds since 1970; 0: never."""
    found = [at.timestamp() for at in gathered.state.recorded.values()]
    found += [
        float(table.stored_at.max())
        for listing in gathered.listings
        for table in listing.tables.values()
        if len(table)
    ]
    return max(found, default=0.0)
