"""The plan of expire: rules and their reasons, and what must hold for any catalog."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from pgrecall.model.catalog_items import (
    CatalogItem,
    WalNeed,
    WalSpan,
    merged_spans,
    spans_without,
)
from pgrecall.model.lsn import Lsn
from pgrecall.model.policies import KEEP_RULES, PROFILES, Policy
from pgrecall.model.timelines import TimelineHistory, TimelineSwitch
from pgrecall.repository.wal_listing import SegmentTable, WalListing
from pgrecall.retention.fates import ExpiryPlan
from pgrecall.retention.plan import CLOCK_JUMP, ExpiryWishes, RetentionFacts, plan_expiry

SIZE = 16 << 20
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class World(NamedTuple):
    """A server that writes one segment in each hour; segments by timeline, by the hour."""

    items: list[CatalogItem]
    segments: dict[int, set[int]]
    histories: dict[int, TimelineHistory]

    def facts(self, **more: Any) -> RetentionFacts:
        tables = {
            timeline: SegmentTable(
                sorted(hours),
                [100] * len(hours),
                [(BEGIN + hour * HOUR + HOUR).timestamp() for hour in sorted(hours)],
            )
            for timeline, hours in self.segments.items()
        }
        listing = WalListing(1, SIZE, tables, self.histories)
        return RetentionFacts(
            server="main", repository="one", items=self.items, listings=[listing], **more
        )

    def until(self, hour: int) -> World:
        """As it was at that hour."""
        return World(
            [item for item in self.items if item.made_at <= at(hour)],
            {tl: {one for one in hours if one < hour} for tl, hours in self.segments.items()},
            self.histories,
        )

    def after(self, plan: ExpiryPlan) -> World:
        """What is left."""
        gone = {item.item_id for item in plan.going}
        return World(
            [item for item in self.items if item.item_id not in gone],
            {
                tl: {
                    hour
                    for hour in hours
                    if not any(
                        span.timeline == tl and span.start <= hour * SIZE < span.end
                        for span in plan.spans
                    )
                }
                for tl, hours in self.segments.items()
            },
            self.histories,
        )

    def both(self, other: World) -> World:
        """What is in either."""
        known = {item.item_id for item in self.items}
        return World(
            [*self.items, *(item for item in other.items if item.item_id not in known)],
            {tl: hours | other.segments.get(tl, set()) for tl, hours in self.segments.items()},
            self.histories,
        )

    def reaches(self, timeline: int, hour: int) -> bool:
        """Whether the end of that hour's segment can be reached along a timeline's path."""
        history = self.histories[timeline]
        for item in self.items:
            need = item.wal
            assert need is not None
            if item.state == "damaged" or need.stop > hour * SIZE or not is_on(history, need):
                continue
            # The segments that a backup holds itself bridge what is missing there.
            first = need.stop // SIZE + 1 if need.is_own else need.start // SIZE
            if all(self.has(history, one) for one in range(first, hour + 1)):
                return True
        return False

    def has(self, history: TimelineHistory, hour: int) -> bool:
        return hour in self.segments.get(history.timeline_at(hour * SIZE + SIZE - 1), ())


def is_on(history: TimelineHistory, need: WalNeed) -> bool:
    left = history.end_of(need.timeline)
    return history.is_ancestor_or_self(need.timeline) and (left is None or need.stop <= left)


def at(hour: float) -> datetime:
    return BEGIN + hour * HOUR


def backup(hour: int, *, timeline: int = 1, **changes: Any) -> CatalogItem:
    """Made in the middle of an hour."""
    start = hour * SIZE + 1000
    fields: dict[str, Any] = {
        "kind": "backup",
        "item_id": f"b-{timeline}-{hour}",
        "made_at": at(hour + 0.5),
        "stored_bytes": 1000,
        "wal": WalNeed(1, timeline, start, start + 5000),
    }
    return CatalogItem(**{**fields, **changes})


def straight(hours: Iterable[int], length: int, **changes: Any) -> World:
    items = [backup(hour, **changes) for hour in hours]
    return World(items, {1: set(range(length))}, {1: TimelineHistory(1)})


def plan(world: World, policy: Policy, *, now: datetime | None = None, **more: Any) -> ExpiryPlan:
    wishes = {key: more.pop(key) for key in ("longest_pause", "chosen") if key in more}
    wishes.setdefault("longest_pause", timedelta(days=4000))
    return plan_expiry(
        world.facts(**more), ExpiryWishes(policy=policy, now=now or at(10_000_000), **wishes)
    )


def kept(planned: ExpiryPlan) -> list[str]:
    return [item.item_id for item in planned.items if item.fate == "stays"]


def why(planned: ExpiryPlan, item_id: str) -> str:
    return "; ".join(next(item.why for item in planned.items if item.item_id == item_id))


# --- rules -------------------------------------------------------------------------------


def test_each_thing_says_every_rule_that_keeps_it() -> None:
    world = straight(range(0, 24 * 70, 24), 24 * 70)
    policy = Policy(keep_last=2, keep_daily=3, keep_weekly=2, keep_monthly=2, pitr_window_hours=30)
    planned = plan(world, policy)
    assert kept(planned) == ["b-1-1392", "b-1-1584", "b-1-1608", "b-1-1632", "b-1-1656"]
    assert why(planned, "b-1-1656") == (
        "it is the newest good backup; keep_last: 1 of 2; keep_daily: newest of the day 2026-03-11"
        " (1 of 3); keep_weekly: newest of the week 2026-W11 (1 of 2); keep_monthly: newest of the"
        " month 2026-03 (1 of 2); pitr_window: made within 30 hours"
    )
    assert why(planned, "b-1-1392") == "keep_monthly: newest of the month 2026-02 (2 of 2)"
    assert why(planned, "b-1-1608").endswith("pitr_window: leads into the 30 hours")
    assert why(planned, "b-1-0") == "no rule keeps it"


def test_wal_between_archive_only_backups_goes_and_that_of_the_window_stays() -> None:
    world = straight(range(0, 240, 24), 250)
    planned = plan(world, Policy(keep_daily=10, pitr_window_hours=36))
    assert planned.items_going == 0
    left = world.after(planned).segments[1]
    assert left == {0, 24, 48, 72, 96, 120, 144, *range(168, 250)}
    assert planned.segments_going == 250 - len(left)
    assert planned.won_bytes == planned.segments_going * 100
    first = planned.wal[0]
    assert (first.segments, first.fate, first.why) == (
        1, "stays", ("b-1-0 is not consistent without it",)
    )  # fmt: skip
    last = planned.wal[-1]
    assert last.fate == "stays"
    assert last.why == ("any moment since b-1-168 (timeline 1)",)
    assert len(planned.reachable_before) == 1
    # Each archive-only backup is a moment of its own; the window is one range.
    assert [one.backups for one in planned.reachable_after] == [1] * 7 + [3]
    assert planned.reachable_after[-1].to_lsn == str(Lsn(250 * SIZE))


def test_without_a_window_any_moment_since_the_oldest_kept_backup() -> None:
    planned = plan(straight(range(0, 240, 24), 250), Policy(keep_last=3))
    assert kept(planned) == ["b-1-168", "b-1-192", "b-1-216"]
    (gone,) = [one for one in planned.wal if one.fate == "goes"]
    assert gone.segments == 168
    assert planned.reachable_after[0].from_at == at(168.5)


def test_no_policy_lets_nothing_go() -> None:
    planned = plan(straight([0, 24], 300), Policy())
    assert not planned.changes
    assert [finding.code for finding in planned.findings] == ["policy-none"]


def test_ages_are_counted_from_the_newest_backup_and_never_from_a_clock_alone() -> None:
    """When no backups are made any more, and when the host believes it is the year 2056."""
    world = straight(range(0, 24 * 60, 24), 24 * 60)
    policy = Policy(keep_days=30, pitr_window_hours=48)
    soon = plan(world, policy, now=at(24 * 60))
    late = plan(world, policy, now=at(24 * 365 * 30))
    assert kept(soon) == kept(late)
    assert soon.spans == late.spans
    assert len(kept(late)) == 31


def test_a_step_of_years_between_the_newest_backups_is_not_believed() -> None:
    """The server's clock jumped as well, and dated a backup."""
    world = straight([*range(0, 24 * 40, 24), 24 * 365 * 20], 24 * 40)
    policy = Policy(keep_days=30, keep_last=1)
    planned = plan(world, policy, longest_pause=timedelta(days=45))
    (finding,) = [one for one in planned.findings if one.code == CLOCK_JUMP]
    assert finding.severity == "fail"
    assert finding.subject == f"b-1-{24 * 365 * 20}"
    assert "--trust-clock" in finding.hint
    # Yearly archives that were thinned out long ago are no jump.
    old = straight([*range(0, 24 * 1000, 24 * 300), *range(24 * 1000, 24 * 1010, 24)], 10)
    assert not plan(old, policy, longest_pause=timedelta(days=45)).findings


def test_a_backup_from_the_future_makes_no_other_old() -> None:
    world = straight([0, 24, 48], 60)
    future = backup(24 * 365, wal=WalNeed(1, 1, 49 * SIZE + 10, 49 * SIZE + 20))
    planned = plan(World([*world.items, future], *world[1:]), Policy(keep_days=1), now=at(50))
    assert kept(planned) == ["b-1-48", "b-1-8760"]


# --- the failures of others (peers.md) ------------------------------------------------------


def test_what_cannot_be_restored_does_not_count() -> None:
    """minimum_redundancy that counted what was no backup left none (Barman BAR-707)."""
    world = straight([0], 100)
    broken = [backup(hour, state="damaged") for hour in (24, 48, 72)]
    planned = plan(World([*world.items, *broken], *world[1:]), Policy(keep_last=1))
    assert kept(planned) == ["b-1-0", "b-1-24", "b-1-48", "b-1-72"]
    newer = plan(World([*world.items, *broken, backup(96)], *world[1:]), Policy(keep_last=1))
    assert kept(newer) == ["b-1-96"]
    only_broken = plan(World(broken, *world[1:]), Policy(keep_last=1))
    assert not only_broken.changes


def test_the_newest_is_told_by_time_and_not_by_timeline_or_name() -> None:
    """After pg_upgrade the timeline is 1 again, and the newest was deleted (WAL-G #636)."""
    old = backup(0, item_id="b-z", wal=WalNeed(1, 7, 1000, 2000))
    new = backup(48, item_id="b-a", wal=WalNeed(2, 1, 1000, 2000))
    histories = {1: TimelineHistory(1), 7: TimelineHistory(7, (TimelineSwitch(1, Lsn(500)),))}
    listings = [
        WalListing(1, SIZE, {7: SegmentTable([0], [9], [at(1).timestamp()])}, histories),
        WalListing(2, SIZE, {1: SegmentTable([0], [9], [at(49).timestamp()])}, histories),
    ]
    facts = RetentionFacts(server="main", repository="one", items=[old, new], listings=listings)
    planned = plan_expiry(facts, ExpiryWishes(policy=Policy(keep_last=1), now=at(50)))
    assert kept(planned) == ["b-a"]


def test_wal_of_a_repository_without_a_backup_stays() -> None:
    """The first backup in a new repository removed earlier WAL (pgBackRest #680)."""
    world = World([], {1: set(range(300))}, {1: TimelineHistory(1)})
    assert not plan(world, PROFILES["small-production"]).changes
    # With the first backup, what was stored within the window stays.
    first = World([backup(299)], *world[1:])
    assert first.after(plan(first, Policy(keep_last=1, pitr_window_hours=100))).segments[1] == set(
        range(199, 300)
    )


def test_a_hold_stops_nothing_but_what_it_holds() -> None:
    """A hold stopped all rotation (pg_hardstorage)."""
    world = straight(range(0, 240, 24), 250)
    policy = Policy(keep_last=2)
    planned = plan(world, policy, holds={"b-1-48": "hold: case 4711"})
    assert kept(planned) == ["b-1-48", "b-1-192", "b-1-216"]
    assert why(planned, "b-1-48") == "hold: case 4711"
    held = next(item for item in planned.items if item.item_id == "b-1-48")
    assert held.state == "held"
    for hours in (0, 1):
        policy = Policy(keep_last=2, pitr_window_hours=hours)
        left = world.after(plan(world, policy, holds={"b-1-48": "hold: x"}))
        assert left.segments[1] == {48, *range(192, 250)}


def test_what_is_in_use_stays_with_the_wal_behind_it() -> None:
    world = straight(range(0, 240, 24), 250)
    planned = plan(world, Policy(keep_last=1, pitr_window_hours=1), in_use={"b-1-48": "in use: x"})
    assert kept(planned) == ["b-1-48", "b-1-192", "b-1-216"]
    assert world.after(planned).segments[1] == set(range(48, 250))


def test_a_timeline_of_unknown_descent_stays() -> None:
    world = straight([0, 24, 48], 60)
    stray = backup(1, timeline=5)
    items = [*world.items, stray]
    segments = {**world.segments, 5: {1, 2, 3}}
    planned = plan(World(items, segments, world.histories), Policy(keep_last=1))
    assert kept(planned) == ["b-5-1", "b-1-48"]
    assert {one.fate for one in planned.wal if one.timeline == 5} == {"stays"}


def test_a_parents_segment_reaches_to_the_switch_only() -> None:
    """The child's own segment of that position is missing: there its path ends."""
    switch = 5 * SIZE + SIZE // 2
    histories = {1: TimelineHistory(1), 2: TimelineHistory(2, (TimelineSwitch(1, Lsn(switch)),))}
    world = World([backup(1)], {1: set(range(6)), 2: {6, 7}}, histories)
    one, two = plan(world, Policy(keep_last=1)).reachable_before
    assert (one.timeline, one.to_lsn) == (1, str(Lsn(6 * SIZE)))
    assert (two.timeline, two.to_lsn) == (2, str(Lsn(switch)))


def test_a_record_that_cannot_be_read_keeps_all_wal() -> None:
    planned = plan(straight([0, 24], 60), Policy(keep_last=1), unknown={"b-x": "is damaged"})
    assert kept(planned) == ["b-1-24"]
    assert not planned.spans
    assert [finding.code for finding in planned.findings] == ["item-unreadable"]


def test_named_ones_go_and_nothing_else() -> None:
    world = straight([0, 24, 48], 60)
    chosen = frozenset({"b-1-0", "b-1-48"})
    planned = plan(world, Policy(), chosen=chosen, holds={})
    assert [item.item_id for item in planned.going] == ["b-1-0"]
    assert why(planned, "b-1-48") == "it is the newest good backup"
    assert not planned.spans


def test_what_others_refer_to_is_not_won() -> None:
    planned = plan(straight([0, 24], 30), Policy(keep_last=1), shared_bytes={"b-1-0": 600})
    (gone,) = planned.going
    assert gone.won_bytes == 400


# --- for any catalog ------------------------------------------------------------------------


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Backups at any hour of some weeks, gaps in the WAL, and maybe a fork."""
    length = draw(st.integers(10, 200))
    hours = draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=12, unique=True))
    lost = draw(st.sets(st.integers(0, length - 1), max_size=4))
    fork = draw(st.none() | st.integers(1, length - 1))
    histories = {1: TimelineHistory(1)}
    segments = {1: set(range(length)) - lost}
    items = []
    if fork is not None:
        switch = fork * SIZE + draw(st.sampled_from([0, SIZE // 2]))
        histories[2] = TimelineHistory(2, (TimelineSwitch(1, Lsn(switch)),))
        segments[2] = set(range(fork, length)) - draw(st.sampled_from([lost, {fork}]))
    for hour in hours:
        timeline = 2 if fork is not None and hour > fork and draw(st.booleans()) else 1
        is_own = draw(st.integers(0, 5)) == 0
        start = hour * SIZE + 1000
        items.append(
            backup(hour, timeline=timeline, wal=WalNeed(1, timeline, start, start + 5000, is_own))
        )
    return World(sorted(items, key=lambda item: item.made_at), segments, histories)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    rules = {rule: draw(st.integers(0, 6)) for rule in KEEP_RULES}
    policy = Policy(**rules, pitr_window_hours=draw(st.sampled_from([0, 1, 24, 48, 100])))  # type: ignore[arg-type]
    return policy if not policy.keeps_everything else Policy(keep_last=1)


_QUICK = settings(deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@settings(_QUICK, max_examples=60)
@given(worlds(), policies(), st.data())
def test_promises_hold_for_any_catalog(world: World, policy: Policy, data: st.DataObject) -> None:
    ids = [item.item_id for item in world.items]
    holds = dict.fromkeys(data.draw(st.sets(st.sampled_from(ids), max_size=2)), "hold: x")
    planned = plan(world, policy, holds=holds)
    left = world.after(planned)
    names = {item.item_id for item in left.items}
    assert world.items[-1].item_id in names
    assert set(holds) <= names
    for item in left.items:  # what is kept is as consistent as before
        need = item.wal
        assert need is not None
        if not need.is_own:
            first = need.start // SIZE
            assert (first in left.segments[need.timeline]) == (
                first in world.segments[need.timeline]
            )
    newest = world.items[-1].made_at
    # What only leads into the moments that another one promises adds no moments of its own.
    apart = ("hold", "without it moments since")
    ruled = [i for i in planned.items if any(not one.startswith(apart) for one in i.why)]
    oldest = min(item.made_at for item in ruled if item.fate == "stays")
    hours = policy.pitr_window_hours
    promised_from = newest - hours * HOUR if hours else oldest
    for timeline in world.histories:
        for hour in range(max(map(max, filter(None, world.segments.values())), default=0) + 1):
            if at(hour) >= promised_from and world.reaches(timeline, hour):
                assert left.reaches(timeline, hour), (timeline, hour)
    # Once more changes nothing.
    again = plan(left, policy, holds=holds)
    assert not again.changes, [item for item in again.items if item.fate == "goes"]


@settings(_QUICK, max_examples=30)
@given(worlds(), policies(), st.integers(6, 100))
def test_running_often_comes_to_the_same_as_running_once(
    world: World, policy: Policy, step: int
) -> None:
    # Without a window, which backup leads to moments behind a gap depends on those there are.
    assume(policy.pitr_window_hours)
    end = max(map(max, filter(None, world.segments.values())), default=0) + 1
    left = World([], {timeline: set() for timeline in world.segments}, world.histories)
    seen = left
    for hour in [*range(step, end, step), end]:
        so_far = world.until(hour) if hour < end else world
        added = World(
            [item for item in so_far.items if item not in seen.items],
            {tl: hours - seen.segments[tl] for tl, hours in so_far.segments.items()},
            world.histories,
        )
        seen = so_far
        left = left.both(added)
        left = left.after(plan(left, policy))
    once = world.after(plan(world, policy))
    assert {item.item_id for item in left.items} == {item.item_id for item in once.items}
    for timeline, hours in once.segments.items():
        assert left.segments[timeline] == hours


def spans_of(points: Sequence[tuple[int, int]]) -> tuple[WalSpan, ...]:
    return tuple(WalSpan(1, 1, min(pair), max(pair) + 1) for pair in points)


def bytes_of(spans: Iterable[WalSpan]) -> set[int]:
    return {at for span in spans for at in range(span.start, span.end)}


_PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5)


@given(_PAIRS, _PAIRS)
def test_arithmetic_of_spans(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    left = spans_without(spans_of(one), spans_of(other))
    assert bytes_of(left) == bytes_of(spans_of(one)) - bytes_of(spans_of(other))
    merged = merged_spans(spans_of(one))
    assert bytes_of(merged) == bytes_of(spans_of(one))
    assert all(a.end < b.start for a, b in itertools.pairwise(merged))


@pytest.mark.parametrize("name", list(PROFILES))
def test_profiles_keep_what_the_guide_says(name: str) -> None:
    profile = PROFILES[name]
    assert profile.profile == name
    assert not profile.keeps_everything
    assert profile.rpo_seconds > 0
    if name != "development":
        assert (profile.keep_daily, profile.keep_weekly, profile.keep_monthly) == (30, 13, 12)
