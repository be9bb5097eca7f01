"""Purge: delete the bytes of what expired longer ago than the grace.

In this order, so that it may be killed anywhere: the record that says so (from then on there
is no way back); a second look at leases and references; then, of each item, the completion
record, the packs that nobody needs, the manifest; WAL; leases that ended long ago. What is
left over is found by the next purge. A delete that the store refuses is reported by object,
and the rest goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import msgspec

from pgrecall.errors import ClockJumpError, StoreRefusedError
from pgrecall.model.catalog_items import spans_without
from pgrecall.model.findings import Finding
from pgrecall.model.ids import CAPTURE, DUMP, kind_of
from pgrecall.repository import name_layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.repository.identity import generations
from pgrecall.repository.leases import ended_lease_keys
from pgrecall.repository.references import needed_of
from pgrecall.repository.set_catalog import SetCatalog
from pgrecall.repository.wal_companions import companion_keys
from pgrecall.repository.wal_listing import keys_in, moment_of
from pgrecall.retention.gathering import Gathered, gather
from pgrecall.retention.purge_plan import (
    Candidate,
    KeptItem,
    PurgeItem,
    PurgePlan,
    WaitingItem,
    candidates,
    deletions,
    newest_evidence,
    purgeable_spans,
)
from pgrecall.retention.run import Author, append
from pgrecall.store.base import ObjectInfo, Store
from pgrecall.system.faults import reached

_DELETERS = 8
# So many refused objects are named; the rest is counted.
_MOST_NAMED = 20


class PurgeTask(msgspec.Struct, frozen=True, kw_only=True):
    """What one purge is about."""

    server: str
    repository: str
    grace: timedelta
    longest_pause: timedelta


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """What was deleted, and what the store refused to delete."""

    objects: int
    stored_bytes: int
    refused: int
    findings: tuple[Finding, ...]


class _Doomed(msgspec.Struct, frozen=True):
    """One item's objects in the stages of their deletion; what ``needed_by`` others need of it."""

    candidate: Candidate
    stages: list[list[ObjectInfo]]
    kept: list[ObjectInfo]
    needed_by: int


class PurgeRun:
    """One purge in one repository."""

    def __init__(self, store: Store, task: PurgeTask, author: Author) -> None:
        self._store = store
        self._task = task
        self._author = author
        self._gathered: Gathered | None = None
        self._objects = 0
        self._bytes = 0
        self._refused: list[str] = []

    def plan(self) -> PurgePlan:
        """What would be deleted; reads only. Raises StoreError, RepositoryError."""
        self._gathered = gather(self._store, self._task.server)
        return self._plan(self._gathered)

    def carry_out(self, plan: PurgePlan, *, trust_clock: bool = False) -> Purged:
        """Delete what ``plan`` names, less what is needed since it was made.

        Raises ClockJumpError, ConcurrentChangeError: then nothing was deleted. StoreError:
        some of it was; the next purge goes on.
        """
        assert self._gathered is not None
        if not trust_clock:
            self._require_credible_clock(self._gathered)
        self._record(plan, self._gathered)
        reached("purge.recorded")
        # Whoever took a lease before the record was written is seen now; whoever comes
        # later sees the record.
        gathered = gather(self._store, self._task.server)
        planned = {item.item_id for item in plan.items}
        for doomed in self._doomed(gathered):
            if doomed.candidate.item_id in planned:
                self._delete_item(doomed)
        self._delete_wal(gathered)
        self._delete(
            ended_lease_keys(
                self._store, self._task.server, self._author.store_now, self._task.grace
            )
        )
        return Purged(
            objects=self._objects,
            stored_bytes=self._bytes,
            refused=len(self._refused),
            findings=tuple(self._findings()),
        )

    # --- planning ---------------------------------------------------------------------

    def _plan(self, gathered: Gathered) -> PurgePlan:
        task, now = self._task, self._author.store_now
        doomed = self._doomed(gathered)
        _, waiting = self._candidates(gathered)
        items = tuple(
            PurgeItem(
                item_id=one.candidate.item_id,
                what=one.candidate.what,
                objects=sum(len(stage) for stage in one.stages),
                stored_bytes=sum(info.size for stage in one.stages for info in stage),
                kept_objects=len(one.kept),
                why=one.candidate.why,
            )
            for one in doomed
            if one.stages
        )
        kept = tuple(
            KeptItem(
                item_id=one.candidate.item_id,
                objects=len(one.kept),
                stored_bytes=sum(info.size for info in one.kept),
                needed_by=one.needed_by,
            )
            for one in doomed
            if one.kept
        )
        spans = purgeable_spans(gathered, now=now, grace=task.grace)
        wal = self._wal_keys(gathered)
        stale = ended_lease_keys(self._store, task.server, now, task.grace)
        wal_bytes = sum(size for _, size in wal)
        return PurgePlan(
            server=task.server,
            repository=task.repository,
            purged_before_at=now - task.grace,
            items=items,
            waiting=tuple(waiting),
            wal_files=len(wal),
            wal_bytes=wal_bytes,
            stale_leases=len(stale),
            won_bytes=sum(item.stored_bytes for item in items) + wal_bytes,
            kept_bytes=sum(one.stored_bytes for one in kept),
            kept=kept,
            spans=tuple(span for span in spans if not span.is_purged),
            findings=tuple(
                Finding(
                    severity="warn",
                    code="item-unreadable",
                    subject=item_id,
                    message=f"no pack is deleted: what it refers to is not known ({problem})",
                    hint="heal it from another repository, or give it up: pgrecall expire "
                    f"{item_id}, and purge after the grace",
                )
                for item_id, problem in self._blocking(gathered).items()
            ),
        )

    def _candidates(self, gathered: Gathered) -> tuple[list[Candidate], list[WaitingItem]]:
        catalog = Catalog(self._store, self._task.server)
        dumps = DumpCatalog(self._store, self._task.server)
        sets = SetCatalog(self._store, self._task.server)
        existing = [*catalog.ids(), *dumps.ids(), *sets.ids(), *gathered.captures]
        return candidates(
            gathered,
            [*catalog.unfinished(), *dumps.unfinished()],
            [item_id for item_id in existing if item_id in gathered.state.purging],
            now=self._author.store_now,
            grace=self._task.grace,
        )

    def _blocking(self, gathered: Gathered) -> dict[str, str]:
        """Unreadable backups that nobody has given up: they may need any pack of an older one."""
        return {
            item_id: problem
            for item_id, problem in gathered.unknown.items()
            if gathered.state.is_listed(item_id) and kind_of(item_id) != DUMP
        }

    def _doomed(self, gathered: Gathered) -> list[_Doomed]:
        found, _ = self._candidates(gathered)
        going = {one.item_id for one in found}
        if not going:
            return []
        referrers = [backup for item_id, backup in gathered.backups.items() if item_id not in going]
        needed = needed_of(Catalog(self._store, self._task.server), going, referrers)
        referred = Counter(owner for backup in referrers for owner in backup.references)
        is_blocked = bool(self._blocking(gathered))
        doomed = []
        for one in found:
            is_alone = kind_of(one.item_id) in {DUMP, CAPTURE}
            if is_blocked and one.what != "unfinished" and not is_alone:
                continue
            prefix = name_layout.item_prefix(self._task.server, one.item_id)
            objects = list(self._store.list(prefix))
            wanted = needed.get(one.item_id, {}) if one.item_id in referred else None
            stages, kept = deletions(objects, wanted)
            doomed.append(_Doomed(one, stages, kept, referred[one.item_id]))
        return doomed

    def _wal_keys(self, gathered: Gathered) -> list[tuple[str, int]]:
        """Archived files that go, then what belongs to them."""
        task = self._task
        spans = purgeable_spans(gathered, now=self._author.store_now, grace=task.grace)
        found: list[tuple[str, int]] = []
        for generation in generations(self._store, task.server):
            own = [span for span in spans if span.generation == generation.number]
            if own:
                found += keys_in(self._store, task.server, generation, own)
                found += companion_keys(self._store, task.server, generation, own)
        return found

    # --- acting -----------------------------------------------------------------------

    def _require_credible_clock(self, gathered: Gathered) -> None:
        newest = newest_evidence(gathered)
        now = self._author.store_now
        if newest and now - moment_of(newest) > self._task.longest_pause:
            raise ClockJumpError(
                f"the newest that {self._store.name} holds was stored at"
                f" {moment_of(newest):%Y-%m-%d %H:%M} UTC, and its clock says"
                f" {now:%Y-%m-%d %H:%M} UTC: if a clock jumped, every grace would be over",
                hint="if the clock is right, say --trust-clock; retention.longest_pause_days is"
                " the bound",
            )

    def _record(self, plan: PurgePlan, gathered: Gathered) -> None:
        """Say what will be deleted; nothing is written when all that was said before."""
        new = {item.item_id: item.why for item in plan.items if item.what != "remains"}
        if not new and not plan.spans:
            return
        marked = tuple(msgspec.structs.replace(span, is_purged=True) for span in plan.spans)
        record = self._author.record(
            number=gathered.state.number + 1,
            kind="purge",
            items=new,
            wal=(*spans_without(gathered.state.wal, plan.spans), *marked),
        )
        append(self._store, self._task.server, record)

    def _delete_item(self, doomed: _Doomed) -> None:
        for stage in doomed.stages:
            self._delete([info.key for info in stage], sum(info.size for info in stage))
            reached("purge.stage-deleted")
            refused = set(self._refused)
            if any(info.key in refused for info in stage):
                return  # what the store keeps stays together with what describes it

    def _delete_wal(self, gathered: Gathered) -> None:
        keys = self._wal_keys(gathered)
        self._delete([key for key, _ in keys], sum(size for _, size in keys))
        reached("purge.wal-deleted")

    def _delete(self, keys: Sequence[str], stored_bytes: int = 0) -> None:
        with ThreadPoolExecutor(_DELETERS, thread_name_prefix="purge") as pool:
            refused = [key for key in pool.map(self._delete_one, keys) if key]
        self._refused += refused
        self._objects += len(keys) - len(refused)
        if keys:
            self._bytes += stored_bytes * (len(keys) - len(refused)) // len(keys)

    def _delete_one(self, key: str) -> str:
        """Empty: it is gone. The key: the store refuses."""
        try:
            self._store.delete(key)
        except StoreRefusedError:
            return key
        reached("purge.object-deleted")
        return ""

    def _findings(self) -> list[Finding]:
        named = [
            Finding(
                severity="fail",
                code="delete-refused",
                subject=key,
                message=f"{self._store.name} refuses to delete it",
                hint="object lock or missing rights: try again after the lock has ended, or run"
                " purge with credentials that may delete",
            )
            for key in self._refused[:_MOST_NAMED]
        ]
        more = len(self._refused) - len(named)
        if more:
            named.append(
                Finding(
                    severity="fail",
                    code="delete-refused",
                    message=f"{more} more objects were not deleted for the same reason",
                )
            )
        return named
