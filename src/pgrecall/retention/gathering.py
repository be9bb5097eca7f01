"""What a server's repository holds, as retention sees it; reads, and writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from pgrecall.errors import ObjectMissingError, RepositoryError
from pgrecall.model.catalog_items import CatalogItem, ItemKind, WalNeed
from pgrecall.model.dumps import DumpCompletion
from pgrecall.model.ids import DUMP, SET, created_at, kind_of
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.sets import SetRecord
from pgrecall.repository.capture_log import CaptureLog
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.repository.identity import generations
from pgrecall.repository.leases import HeldLease, read_leases
from pgrecall.repository.references import Referred, needed_of
from pgrecall.repository.retention_log import RetentionState, read_state
from pgrecall.repository.set_catalog import SetCatalog
from pgrecall.repository.wal_listing import WalListing, list_wal
from pgrecall.retention.plan import RetentionFacts
from pgrecall.store.base import Store

_ALL = 1 << 62
_KINDS: dict[str, ItemKind] = {DUMP: "dump", SET: "set"}


class Gathered(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that plans are made from, seen once.

    ``backups``, ``dumps`` and ``sets`` are those that have not been purged, by id, expired ones
    too; ``captures`` likewise, with their sizes. ``marked``: those that a verification found
    damaged. ``unknown``: ids whose records cannot be read, with what is wrong. ``listings`` have
    all WAL.
    """

    server: str
    state: RetentionState
    backups: Mapping[str, Completion]
    dumps: Mapping[str, DumpCompletion]
    captures: Mapping[str, int]
    sets: Mapping[str, SetRecord]
    marked: frozenset[str]
    unknown: Mapping[str, str]
    listings: tuple[WalListing, ...]
    leases: tuple[HeldLease, ...]

    def facts(self, repository: str, now: datetime, store_now: datetime) -> RetentionFacts:
        """For a plan of expiry; ``now`` by the host's clock, ``store_now`` by the store's."""
        listed = [one for one in self.backups.values() if self.state.is_listed(one.backup_id)]
        # A hold ends when a good backup is younger than its end: a clock that jumps ends none.
        good = [one.stopped_at for one in listed if self._is_good(one)]
        holds = {
            item_id: f"hold: {hold.reason}" + (f" (until {hold.until})" if hold.until else "")
            for item_id, hold in self.state.active_holds(min([now, *good[-1:]])).items()
        }
        in_use = {
            item_id: f"in use: {lease}"
            for lease in self.alive(store_now)
            for item_id in lease.record.items
        }
        return RetentionFacts(
            server=self.server,
            repository=repository,
            items=[
                *(item_of(one, is_good=self._is_good(one)) for one in listed),
                *(
                    item_of_dump(one)
                    for one in self.dumps.values()
                    if self.state.is_listed(one.backup_id)
                ),
                *(
                    CatalogItem(
                        kind="capture",
                        item_id=item_id,
                        made_at=created_at(item_id),
                        stored_bytes=stored_bytes,
                    )
                    for item_id, stored_bytes in self.captures.items()
                    if self.state.is_listed(item_id)
                ),
                *(
                    item_of_set(one, is_good=self._has_good_parts(one))
                    for one in self.sets.values()
                    if self.state.is_listed(one.set_id)
                ),
                *self._unreadable(),
            ],
            listings=[
                listing.without(self.state.hidden_wal(listing.generation))
                for listing in self.listings
            ],
            holds=holds,
            in_use=in_use,
            unknown={
                item_id: problem
                for item_id, problem in self.unknown.items()
                if self.state.is_listed(item_id)
            },
        )

    def _is_good(self, backup: Completion) -> bool:
        return backup.worst != "fail" and backup.backup_id not in self.marked

    def _has_good_parts(self, record: SetRecord) -> bool:
        backup = self.backups.get(record.backup_id)
        return all(
            self.state.is_listed(one) and (one in self.backups or one in self.dumps)
            for one in record.parts
        ) and (backup is None or self._is_good(backup))

    def _unreadable(self) -> list[CatalogItem]:
        """Those of which just the id is known."""
        return [
            CatalogItem(
                kind=_KINDS.get(kind_of(item_id), "backup"),
                item_id=item_id,
                made_at=created_at(item_id),
                stored_bytes=0,
                state="damaged",
            )
            for item_id in self.unknown
            if item_id not in self.backups
            and item_id not in self.dumps
            and item_id not in self.sets
            and self.state.is_listed(item_id)
        ]

    def alive(self, store_now: datetime) -> list[HeldLease]:
        """The leases that count, by the store's clock."""
        return [lease for lease in self.leases if lease.is_alive(store_now)]


def gather(store: Store, server: str) -> Gathered:
    """Read records and list WAL. Raises StoreError, RepositoryError: unknown is not empty."""
    catalog = Catalog(store, server)
    # Before the backups: a record that comes in between is found by the number of the next.
    state = read_state(store, server)
    backups, damaged = catalog.survey(with_expired=True, state=state)
    dumps, damaged_dumps = DumpCatalog(store, server).survey(with_expired=True, state=state)
    sets, damaged_sets = SetCatalog(store, server).survey(with_expired=True, state=state)
    unknown = {
        finding.subject: finding.message for finding in (*damaged, *damaged_dumps, *damaged_sets)
    }
    return Gathered(
        server=server,
        state=state,
        backups={backup.backup_id: backup for backup in backups},
        dumps={dump.backup_id: dump for dump in dumps},
        captures=CaptureLog(store, server).sizes(),
        sets={one.set_id: one for one in sets},
        marked=frozenset(catalog.damage.damaged()),
        unknown=unknown,
        listings=tuple(list_wal(store, server, one) for one in generations(store, server)),
        leases=tuple(read_leases(store, server)),
    )


def shared_bytes(
    store: Store, gathered: Gathered, going: frozenset[str], staying: frozenset[str]
) -> dict[str, int]:
    """Of each that goes, the bytes of the packs that those which stay refer to.

    Where a manifest cannot be read, all that it may refer to counts as shared.
    """
    catalog = Catalog(store, gathered.server)
    shared: Referred = {}
    for item_id in sorted(staying & gathered.backups.keys()):
        backup = gathered.backups[item_id]
        try:
            found = needed_of(catalog, going, [backup])
        except (RepositoryError, ObjectMissingError):
            found = {owner: {"": _ALL} for owner in going.intersection(backup.references)}
        for owner, keys in found.items():
            shared.setdefault(owner, {}).update(keys)
    return {owner: sum(keys.values()) for owner, keys in shared.items()}


def item_of_dump(dump: DumpCompletion) -> CatalogItem:
    """A dump as an item of the catalog: it needs no WAL, and nothing of other items."""
    return CatalogItem(
        kind="dump",
        item_id=dump.backup_id,
        made_at=dump.snapshot_at,
        stored_bytes=dump.totals.stored_bytes,
    )


def item_of_set(record: SetRecord, *, is_good: bool) -> CatalogItem:
    """A set as an item of the catalog: its parts stay with it, and the WAL up to its moment."""
    point = record.point
    return CatalogItem(
        kind="set",
        item_id=record.set_id,
        made_at=record.made_at,
        stored_bytes=0,
        parts=record.parts,
        capture_id=record.capture_id,
        leads_to=None
        if point is None
        else WalNeed(
            generation=record.generation,
            timeline=point.timeline,
            start=int(Lsn.parse(point.start_lsn)),
            stop=int(Lsn.parse(point.lsn)),
        ),
        state="complete" if is_good else "damaged",
    )


def item_of(backup: Completion, *, is_good: bool) -> CatalogItem:
    """A backup as an item of the catalog; one that is not good counts as damaged."""
    return CatalogItem(
        kind="backup",
        item_id=backup.backup_id,
        made_at=backup.stopped_at,
        stored_bytes=backup.totals.stored_bytes,
        wal=WalNeed(
            generation=backup.generation,
            timeline=backup.timeline,
            start=int(Lsn.parse(backup.start_lsn)),
            stop=int(Lsn.parse(backup.stop_lsn)),
            is_own=backup.has_wal,
        ),
        refers_to=backup.references,
        capture_id=backup.capture_id,
        state="complete" if is_good else "damaged",
    )
