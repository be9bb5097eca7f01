"""Expire: plan, show, and record what was decided. Nothing is deleted here."""

from __future__ import annotations

import socket
from datetime import datetime

import msgspec

from pgrecall.errors import (
    BackupNotFoundError,
    ClockJumpError,
    ConcurrentChangeError,
    RetentionError,
)
from pgrecall.model.catalog_items import WalNeed, WalSpan, spans_without
from pgrecall.repository.retention_log import (
    ExpiredItem,
    RetentionRecord,
    append_record,
)
from pgrecall.retention.fates import ExpiryPlan
from pgrecall.retention.gathering import (
    Gathered,
    gather,
    item_of,
    item_of_set,
    shared_bytes,
)
from pgrecall.retention.plan import CLOCK_JUMP, ExpiryWishes, plan_expiry
from pgrecall.store.base import Store
from pgrecall.system.faults import reached


class Author(msgspec.Struct, frozen=True):
    """Who decides: the run, and when by the clocks of the host and of the store."""

    run_id: str
    now: datetime
    store_now: datetime

    def record(self, **fields: object) -> RetentionRecord:
        """A record of this run."""
        return RetentionRecord(
            recorded_at=self.now,
            run_id=self.run_id,
            host=socket.gethostname(),
            **fields,  # type: ignore[arg-type]
        )


class ExpireRun:
    """One expiry in one repository."""

    def __init__(self, store: Store, server: str, repository: str, author: Author) -> None:
        self._store = store
        self._server = server
        self._repository = repository
        self._author = author
        self._gathered: Gathered | None = None

    def plan(self, wishes: ExpiryWishes) -> ExpiryPlan:
        """What would go; reads only. Raises BackupNotFoundError for a wish that is not there."""
        gathered = self._gathered = gather(self._store, self._server)
        facts = gathered.facts(self._repository, self._author.now, self._author.store_now)
        known = {item.item_id for item in facts.items} | set(facts.unknown)
        for item_id in sorted(wishes.chosen - known):
            raise BackupNotFoundError(
                f"there is no backup, dump, set or capture {item_id} of server {self._server!r} to"
                " expire",
                hint="'pgrecall backups list --expired' and 'pgrecall dumps list --expired' show"
                " what there is",
            )
        plan = plan_expiry(facts, wishes)
        going = frozenset(item.item_id for item in plan.going)
        staying = frozenset(item.item_id for item in facts.items) - going
        shared = shared_bytes(self._store, gathered, going, staying) if going else {}
        reached("expire.planned")
        if shared:
            plan = plan_expiry(msgspec.structs.replace(facts, shared_bytes=shared), wishes)
        return plan

    def carry_out(self, plan: ExpiryPlan, *, trust_clock: bool = False) -> RetentionRecord:
        """Record exactly that plan; durable when it returns.

        Raises ClockJumpError, ConcurrentChangeError: then nothing was changed.
        """
        assert self._gathered is not None
        for finding in plan.findings:
            if finding.code == CLOCK_JUMP and not trust_clock:
                raise ClockJumpError(f"{finding.subject}: {finding.message}", hint=finding.hint)
        number = self._gathered.state.number + 1
        new = tuple(msgspec.structs.replace(span, since=number) for span in plan.spans)
        record = self._author.record(
            number=number,
            kind="expire",
            items={item.item_id: "; ".join(item.why) for item in plan.going},
            wal=(*self._gathered.state.wal, *new),
        )
        append(self._store, self._server, record)
        reached("expire.recorded")
        return record


def bring_back(store: Store, server: str, wanted: str, author: Author) -> RetentionRecord:
    """Undo the expiry of a backup, or of all that the run ``wanted`` expired.

    The WAL that expired with it comes back, too. Raises RetentionError when it is too
    late or there is nothing to undo, ConcurrentChangeError.
    """
    gathered = gather(store, server)
    state = gathered.state
    if wanted.startswith("r-"):
        items = [one for one in state.expired.values() if one.run_id == wanted]
        numbers = {number for number, run in state.expiries.items() if run == wanted}
    else:
        items = [state.expired[wanted]] if wanted in state.expired else []
        numbers = set()
    items += _expired_parts(gathered, items)
    if not items and not numbers:
        reason = "was purged" if wanted in state.purging else "has not expired"
        raise RetentionError(
            f"{wanted} {reason}: there is nothing to undo",
            hint="'pgrecall backups list --expired' shows what can be brought back",
        )
    back = tuple(span for span in state.wal if span.since in numbers and not span.is_purged)
    if not items and not back:
        raise RetentionError(f"all that {wanted} expired was purged or brought back already")
    for one in items:
        back += _wal_brought_back(gathered, one)
    record = author.record(
        number=state.number + 1,
        kind="unexpire",
        items={one.item_id: f"undo of {one.run_id}" for one in items},
        wal=spans_without(state.wal, back),
    )
    append(store, server, record)
    reached("unexpire.recorded")
    return record


def _expired_parts(gathered: Gathered, items: list[ExpiredItem]) -> list[ExpiredItem]:
    """The parts of sets that come back, where they have expired; raises RetentionError."""
    state, found = gathered.state, {one.item_id for one in items}
    more = []
    for one in items:
        record = gathered.sets.get(one.item_id)
        for part in (*record.parts, record.capture_id) if record is not None else ():
            if part in state.purging:
                raise RetentionError(
                    f"{part}, a part of the set {one.item_id}, was purged: it is lost",
                    hint="another set may serve: pgrecall sets list",
                )
            if part in state.expired and part not in found:
                found.add(part)
                more.append(state.expired[part])
    return more


def _wal_brought_back(gathered: Gathered, one: ExpiredItem) -> tuple[WalSpan, ...]:
    """The WAL that expired with an item, or later; raises RetentionError when it is lost."""
    state, need = gathered.state, _need_of(gathered, one.item_id)
    if need is None:
        return ()
    size = next(
        listing.segment_bytes
        for listing in gathered.listings
        if listing.generation == need.generation
    )
    first = need.start - need.start % size
    own = WalSpan(need.generation, need.timeline, first, max(need.stop, first + 1))
    purged = tuple(span for span in state.wal if span.is_purged)
    if not need.is_own and spans_without((own,), purged) != (own,):
        raise RetentionError(
            f"WAL that {one.item_id} needs to be consistent was purged: it is lost",
            hint="an older or younger backup may serve",
        )
    return tuple(
        msgspec.structs.replace(span, start=max(span.start, first))
        for span in state.wal
        if not span.is_purged
        and span.since >= one.number
        and span.generation == need.generation
        and span.end > first
    )


def _need_of(gathered: Gathered, item_id: str) -> WalNeed | None:
    """The WAL that an item needs; raises RetentionError when its record cannot be read."""
    if item_id in gathered.dumps or item_id in gathered.captures:
        return None
    if item_id in gathered.sets:
        return item_of_set(gathered.sets[item_id], is_good=True).leads_to
    backup = gathered.backups.get(item_id)
    if backup is None:
        raise RetentionError(
            f"the record of {item_id} cannot be read: "
            + gathered.unknown.get(item_id, "it is gone"),
            hint="heal it from another repository first",
        )
    return item_of(backup, is_good=True).wal


def append(store: Store, server: str, record: RetentionRecord) -> None:
    """Write a record that is right only if nothing was decided since its writer looked."""
    if not append_record(store, server, record):
        raise ConcurrentChangeError(
            f"something else was held, expired or purged on {server!r} meanwhile: nothing was"
            " changed by this run",
            hint="run it again: it will make a new plan",
        )
