"""What expire would do, and why: facts and a policy in, a plan out. Pure.

Ages are counted from the newest good item, or from now if that is earlier, and never from
the clock alone: when no new backups are made, nothing more expires.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from pgrecall.model.catalog_items import CatalogItem, WalSpan
from pgrecall.model.findings import Finding
from pgrecall.model.ids import DUMP, kind_of
from pgrecall.model.lsn import Lsn
from pgrecall.model.policies import Policy
from pgrecall.model.timelines import TimelineHistory
from pgrecall.repository.wal_listing import WalListing, moment_of
from pgrecall.retention.fates import ExpiryPlan, ItemFate, Reachable, WalFate
from pgrecall.retention.keeping import Reasons, kept_by_rules, suspicious_step
from pgrecall.retention.paths import PathRun, is_on_path, paths_of, runs_of
from pgrecall.retention.wal_needs import (
    Need,
    consistency_needs,
    fates_of_wal,
    moment_needs,
    path_needs,
)

CLOCK_JUMP = "clock-jump"


class RetentionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a server in one repository.

    ``items``: those that have not expired. ``listings``: the WAL that has not. ``holds``
    and ``in_use``: reasons by id. ``shared_bytes``: of an item that goes, what
    those that stay refer to. ``unknown``: ids whose records cannot be read, with what is wrong.
    """

    server: str
    repository: str
    items: Sequence[CatalogItem]
    listings: Sequence[WalListing]
    holds: Mapping[str, str] = {}
    in_use: Mapping[str, str] = {}
    shared_bytes: Mapping[str, int] = {}
    unknown: Mapping[str, str] = {}


class ExpiryWishes(msgspec.Struct, frozen=True, kw_only=True):
    """``chosen``: expire just these, whatever the policy says. ``now`` by the host's clock.

    ``captures_days``: how long captures are kept, 0: for ever.
    """

    policy: Policy
    now: datetime
    longest_pause: timedelta = timedelta(days=45)
    chosen: frozenset[str] = frozenset()
    captures_days: int = 0


def plan_expiry(facts: RetentionFacts, wishes: ExpiryWishes) -> ExpiryPlan:
    """Decide what stays and what goes."""
    return _Planning(facts, wishes).plan()


class _Planning:
    def __init__(self, facts: RetentionFacts, wishes: ExpiryWishes) -> None:
        self._facts = facts
        self._policy = wishes.policy
        self._wishes = wishes
        self._items = sorted(facts.items, key=lambda item: (item.made_at, item.item_id))
        # Captures have rules of their own: they come whenever something changes, and a younger
        # one must not let backups go while no new ones are made.
        self._captures = [item for item in self._items if item.kind == "capture"]
        self._good = [
            item for item in self._items if item.state != "damaged" and item.kind != "capture"
        ]
        newest = self._good[-1].made_at if self._good else None
        self._counted_from = min(newest, wishes.now) if newest is not None else None
        self._reasons: Reasons = {}
        self._is_idle = wishes.policy.keeps_everything and not wishes.chosen

    def plan(self) -> ExpiryPlan:
        self._keep_items()
        items = tuple(self._fate(item) for item in self._items)
        kept = [item for item in self._items if item.item_id in self._reasons]
        wal, spans = self._wal(kept)
        good_kept = [item for item in kept if item.state != "damaged"]
        after = [listing.without(spans) for listing in self._facts.listings]
        going = [item for item in items if item.fate == "goes"]
        return ExpiryPlan(
            server=self._facts.server,
            repository=self._facts.repository,
            policy=self._policy,
            counted_from_at=self._counted_from,
            window_from_at=self._window_from(),
            items=items,
            wal=tuple(wal),
            reachable_before=tuple(reachable(self._facts.listings, self._good)),
            reachable_after=tuple(reachable(after, good_kept)),
            items_going=len(going),
            segments_going=sum(one.segments for one in wal if one.fate == "goes"),
            won_bytes=sum(item.won_bytes for item in going)
            + sum(one.stored_bytes for one in wal if one.fate == "goes"),
            spans=tuple(spans),
            findings=tuple(self._findings(bool(going or spans))),
        )

    # --- items -----------------------------------------------------------------------

    def _keep_items(self) -> None:
        if self._is_idle:
            self._keep_all(self._items, "there is no retention policy")
        elif self._wishes.chosen:
            others = [i for i in self._items if i.item_id not in self._wishes.chosen]
            self._keep_all(others, "it was not named")
            for kind in {item.kind for item in self._good}:
                newest = [item for item in self._good if item.kind == kind][-1]
                self._keep(newest, f"it is the newest good {kind}")
        else:
            self._apply_policy()
        for item in self._items:
            for known in (self._facts.holds, self._facts.in_use):
                if item.item_id in known:
                    self._keep(item, known[item.item_id])
        self._keep_parts()
        if self._captures and not self._is_idle:
            self._keep_captures()

    def _keep_parts(self) -> None:
        """What belongs to a set that stays, stays with it."""
        by_id = {item.item_id: item for item in self._items}
        for item in self._items:
            if item.item_id not in self._reasons:
                continue
            for part in item.parts:
                if part in by_id:
                    self._keep(by_id[part], f"part of the {item.kind} {item.item_id}")

    def _keep_captures(self) -> None:
        """The newest, those of the last days with the one that was current before, and those
        that belong to what is kept."""
        self._keep(self._captures[-1], "it is the newest capture")
        named = {
            item.capture_id: item.item_id
            for item in self._items
            if item.capture_id and item.item_id in self._reasons
        }
        for one in self._captures:
            if one.item_id in named:
                self._keep(one, f"{named[one.item_id]} names it")
        if self._wishes.chosen or self._counted_from is None:
            return
        days = self._wishes.captures_days
        if not days:
            self._keep_all(self._captures, "captures_days is 0")
            return
        oldest = self._counted_from - timedelta(days=days)
        for one in self._captures:
            if one.made_at >= oldest:
                self._keep(one, f"captures_days: not older than {days} days")
        before = [one for one in self._captures if one.made_at < oldest]
        if before:
            self._keep(before[-1], f"captures_days: it was current {days} days ago")

    def _apply_policy(self) -> None:
        counted_from = self._counted_from
        if counted_from is None:  # nothing good is there: the damaged ones may be all there is
            self._keep_all(self._items, "there is no good item")
            return
        for kind in sorted({item.kind for item in self._good}):
            of_kind = [item for item in self._good if item.kind == kind]
            for item_id, reasons in kept_by_rules(of_kind, self._policy, counted_from).items():
                self._reasons.setdefault(item_id, []).extend(reasons)
        self._keep_window()
        oldest = min(item.made_at for item in self._good if item.item_id in self._reasons)
        for item in self._items:
            if item.item_id in self._facts.unknown:
                self._keep(item, "its records cannot be read")
            elif item.state == "damaged" and item.made_at >= oldest:
                self._keep(item, "damaged, and not older than every kept one: it may be repaired")
            elif item.wal is not None and item.wal.timeline not in self._histories(item):
                self._keep(item, f"the history of timeline {item.wal.timeline} is not archived")

    def _histories(self, item: CatalogItem) -> Mapping[int, TimelineHistory]:
        assert item.wal is not None
        for listing in self._facts.listings:
            if listing.generation == item.wal.generation:
                return listing.histories
        return {1: TimelineHistory(1)}

    def _keep_window(self) -> None:
        """What any moment of the window needs: all from its beginning on, and what leads into it.

        What leads into it is, on each path and in each stretch of WAL without a gap that
        reaches into the window, the newest item before it.
        """
        window_from = self._window_from()
        hours = self._policy.pitr_window_hours
        if window_from is None:
            self._keep_since_oldest()
            return
        for item in self._good:
            if item.wal is not None and item.made_at > window_from:
                self._keep(item, f"pitr_window: made within {hours} hours")
        for run in self._runs():
            before = [item for item in run.items if item.made_at <= window_from]
            if before and run.stored_at >= window_from.timestamp():
                self._keep(before[-1], f"pitr_window: leads into the {hours} hours")

    def _keep_since_oldest(self) -> None:
        """Without a window any moment since the oldest kept item is promised, behind gaps too.

        The stretch of WAL in which that item lies is served by it; any other needs the
        newest item before that moment, or else its own first one.
        """
        kept = [item for item in self._good if item.wal and item.item_id in self._reasons]
        if not kept:
            return
        since = kept[0].made_at
        for run in self._runs():
            if not run.items or kept[0] in run.items or run.stored_at < since.timestamp():
                continue
            before = [item for item in run.items if item.made_at <= since]
            leading = before[-1] if before else run.items[0]
            self._keep(leading, f"without it moments since {kept[0].item_id} cannot be reached")

    def _runs(self) -> Iterator[PathRun]:
        for listing in self._facts.listings:
            own = self._of(listing)
            for history in paths_of(listing, own):
                yield from runs_of(listing, history, own)

    def _fate(self, item: CatalogItem) -> ItemFate:
        reasons = self._reasons.get(item.item_id)
        shared = self._facts.shared_bytes.get(item.item_id, 0)
        return ItemFate(
            item_id=item.item_id,
            kind=item.kind,
            made_at=item.made_at,
            state="held" if item.item_id in self._facts.holds else item.state,
            fate="stays" if reasons else "goes",
            stored_bytes=item.stored_bytes,
            won_bytes=0 if reasons else max(0, item.stored_bytes - shared),
            why=tuple(reasons or [self._why_it_goes(item)]),
        )

    def _why_it_goes(self, item: CatalogItem) -> str:
        if self._wishes.chosen:
            return "it was named"
        if item.state == "damaged":
            return "damaged, and older than every kept one"
        return "no rule keeps it"

    # --- WAL -------------------------------------------------------------------------

    def _wal(self, kept: Sequence[CatalogItem]) -> tuple[list[WalFate], list[WalSpan]]:
        fates, spans = [], []
        for listing in self._facts.listings:
            found, going = fates_of_wal(
                listing,
                self._needs(listing, kept),
                self._stored_since(kept),
                all_stays=self._why_all_wal_stays(listing),
            )
            fates += found
            spans += going
        return fates, spans

    def _why_all_wal_stays(self, listing: WalListing) -> str:
        if self._is_idle:
            return "there is no retention policy"
        if self._wishes.chosen:
            return "the next expire by the policy decides"
        if any(kind_of(item_id) != DUMP for item_id in self._facts.unknown):
            return "what damaged records need is not known"
        if not self._of(listing):
            return "no good backup of this generation is in this repository yet"
        return ""

    def _needs(self, listing: WalListing, kept: Sequence[CatalogItem]) -> list[Need]:
        own = [item for item in kept if item.wal and item.wal.generation == listing.generation]
        size = listing.segment_bytes
        needs = consistency_needs(own, size) + moment_needs(kept, listing.generation, size)
        window_from = self._window_from()
        for history in paths_of(listing, own):
            on_path = [item for item in own if item.wal and is_on_path(history, item.wal)]
            starts = [
                (item.wal.start, item.item_id)
                for item in on_path
                if item.wal and self._leads_on(item, window_from)
            ]
            if starts:
                start, item_id = min(starts)
                needs += path_needs(
                    history,
                    start,
                    size,
                    f"any moment since {item_id} (timeline {history.timeline})",
                )
            for item in on_path:
                if item.wal and item.item_id in self._facts.in_use:
                    used = self._facts.in_use[item.item_id]
                    needs += path_needs(history, item.wal.start, size, used)
        return needs

    def _leads_on(self, item: CatalogItem, window_from: datetime | None) -> bool:
        """Whether the moments behind an item are promised, too.

        A hold keeps just the item, and a set just its parts.
        """
        reasons = self._reasons.get(item.item_id, ())
        if window_from is None:
            return any(not reason.startswith(("hold:", "part of ")) for reason in reasons)
        return any(
            reason.startswith(("pitr_window", "it is the newest good")) for reason in reasons
        )

    def _stored_since(self, kept: Sequence[CatalogItem]) -> float:
        window_from = self._window_from()
        if window_from is None:
            made = [
                item.made_at
                for item in kept
                if item.state != "damaged"
                and item.kind not in ("set", "capture")
                and self._leads_on(item, None)
            ]
            window_from = min(made, default=None)
        return window_from.timestamp() if window_from is not None else 0.0

    # --- parts -----------------------------------------------------------------------

    def _of(self, listing: WalListing) -> list[CatalogItem]:
        return [i for i in self._good if i.wal and i.wal.generation == listing.generation]

    def _window_from(self) -> datetime | None:
        hours = self._policy.pitr_window_hours
        if not hours or self._counted_from is None:
            return None
        return self._counted_from - timedelta(hours=hours)

    def _keep(self, item: CatalogItem, reason: str) -> None:
        reasons = self._reasons.setdefault(item.item_id, [])
        if reason not in reasons:
            reasons.append(reason)

    def _keep_all(self, items: Sequence[CatalogItem], reason: str) -> None:
        for item in items:
            self._keep(item, reason)

    def _findings(self, changes: bool) -> list[Finding]:
        findings = [
            Finding(
                severity="warn",
                code="item-unreadable",
                subject=item_id,
                message=(
                    f"it is left alone: {problem}"
                    if kind_of(item_id) == DUMP
                    else f"it is left alone, and so is all WAL: {problem}"
                ),
                hint=f"heal it from another repository, or give it up: pgrecall expire {item_id}",
            )
            for item_id, problem in self._facts.unknown.items()
        ]
        if self._is_idle:
            findings.append(
                Finding(
                    severity="warn",
                    code="policy-none",
                    message="no policy says that anything may go: everything stays",
                    hint="set retention.policy, for example to small-production; see"
                    " docs/retention.md",
                )
            )
        step = suspicious_step(self._good, self._wishes.longest_pause)
        if step is not None and changes and not self._wishes.chosen:
            findings.append(_jump(*step))
        return findings


def reachable(listings: Sequence[WalListing], items: Sequence[CatalogItem]) -> list[Reachable]:
    """The ranges that items and WAL make together, for every path."""
    found = []
    for listing in listings:
        own = [item for item in items if item.wal and item.wal.generation == listing.generation]
        for history in paths_of(listing, own):
            for run in runs_of(listing, history, own):
                if not run.items:
                    continue
                first = run.items[0]
                assert first.wal is not None
                found.append(
                    Reachable(
                        generation=listing.generation,
                        timeline=history.timeline,
                        from_at=first.made_at,
                        from_lsn=str(Lsn(first.wal.stop)),
                        to_at=max(moment_of(run.stored_at), run.items[-1].made_at),
                        to_lsn=str(Lsn(run.end)),
                        backups=len(run.items),
                    )
                )
    return found


def _jump(before: CatalogItem, after: CatalogItem) -> Finding:
    return Finding(
        severity="fail",
        code=CLOCK_JUMP,
        subject=after.item_id,
        message=f"it is dated {(after.made_at - before.made_at).days} days after the one before it"
        f" ({before.item_id}): if a clock jumped, what is good would expire",
        hint="if the dates are right, say --trust-clock; retention.longest_pause_days is the bound",
    )
