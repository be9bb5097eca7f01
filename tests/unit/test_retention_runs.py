"""Expire, undo, purge, holds and leases on a repository in memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgrecall.errors import (
    BackupNotFoundError,
    ClockJumpError,
    ConcurrentChangeError,
    RetentionError,
    StoreRefusedError,
)
from pgrecall.model.damage import DamagedObject
from pgrecall.model.lsn import Lsn
from pgrecall.model.policies import Policy
from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.repository import layout, name_layout
from pgrecall.repository.leases import Lease, leased, new_lease, read_leases
from pgrecall.repository.retention_log import append_any, read_state
from pgrecall.retention.fates import ExpiryPlan
from pgrecall.retention.purge_plan import KeptItem
from pgrecall.store.faulty import Fault, FaultyStore
from tests.support.retention_scene import GRACE, PACK_BYTES, SIZE, RetentionScene

ONE = Policy(keep_last=1)
TWO = Policy(keep_last=2)


@pytest.fixture
def scene() -> RetentionScene:
    return RetentionScene()


def why_of(plan: ExpiryPlan, item_id: str) -> tuple[str, ...]:
    return next(item.why for item in plan.items if item.item_id == item_id)


def test_expired_is_not_listed_and_comes_back_until_it_is_purged(scene: RetentionScene) -> None:
    ids = scene.days(4)
    before = scene.visible_segments()
    plan = scene.expire(TWO)
    assert [item.item_id for item in plan.going] == ids[:2]
    assert scene.listed() == ids[2:]
    # Nothing was deleted.
    assert scene.segments() == before
    assert scene.visible_segments() == set(range(48, 96))
    with pytest.raises(BackupNotFoundError, match="has expired") as caught:
        scene.catalog.get(ids[0])
    assert f"expire --undo {ids[0]}" in caught.value.hint
    assert [one.backup_id for one in scene.catalog.survey(with_expired=True)[0]] == ids

    scene.undo(ids[1])
    assert scene.listed() == ids[1:]
    assert scene.visible_segments() == set(range(24, 96))
    scene.require_sealed()
    scene.undo(read_state(scene.store, "main").expired[ids[0]].run_id)
    assert scene.listed() == ids
    assert scene.visible_segments() == before
    with pytest.raises(RetentionError, match="has not expired"):
        scene.undo(ids[0])


def test_a_plan_is_carried_out_exactly_and_not_after_another_decision(
    scene: RetentionScene,
) -> None:
    ids = scene.days(3)
    run = scene.expire_run()
    plan = run.plan(scene.wishes(ONE))
    scene.hold(ids[0])  # by somebody on another host
    with pytest.raises(ConcurrentChangeError) as caught:
        run.carry_out(plan)
    assert caught.value.retryable
    assert scene.listed() == ids
    again = scene.expire(ONE)
    assert [item.item_id for item in again.going] == [ids[1]]
    assert not scene.expire(ONE).changes


def test_purge_waits_for_the_grace_then_deletes_what_nobody_needs(scene: RetentionScene) -> None:
    ids = scene.days(4)
    won = scene.expire(TWO).won_bytes
    plan, done = scene.purge()
    assert not plan.changes
    assert done is None
    assert {one.item_id for one in plan.waiting} == set(ids[:2])
    scene.wait(GRACE)
    plan, done = scene.purge()
    assert {item.item_id for item in plan.items} == set(ids[:2])
    assert done is not None
    assert done.refused == 0
    # Manifests come on top of what the completion record counts.
    assert plan.won_bytes >= won
    assert done.stored_bytes == plan.won_bytes
    assert scene.objects_of(ids[0]) == scene.objects_of(ids[1]) == []
    assert scene.segments() == set(range(48, 96))
    assert scene.listed() == ids[2:]
    scene.require_sealed()
    with pytest.raises(RetentionError, match="was purged"):
        scene.undo(ids[0])
    assert not scene.purge()[0].changes


def test_packs_that_a_kept_backup_refers_to_stay_until_it_goes(scene: RetentionScene) -> None:
    full = scene.backup(packs=3)
    scene.work(23)
    child = scene.backup({full: [2]})
    scene.work(23)
    last = scene.backup()
    plan = scene.expire(TWO)
    (gone,) = plan.going
    assert gone.item_id == full
    assert gone.won_bytes == 2 * PACK_BYTES
    scene.wait(GRACE)
    purge, _ = scene.purge()
    assert purge.items[0].kept_objects == 1
    assert scene.objects_of(full) == ["pack-0002"]
    # What that holds is told, by the purge and by every later one.
    again, _ = scene.purge()
    assert not again.changes
    held = KeptItem(item_id=full, objects=1, stored_bytes=PACK_BYTES, needed_by=1)
    for plan in (purge, again):
        assert (plan.kept, plan.kept_bytes) == ((held,), PACK_BYTES)
    assert scene.listed() == [child, last]
    assert scene.catalog.unfinished() == []
    scene.require_sealed()
    scene.expire(ONE)
    scene.wait(GRACE)
    scene.purge()
    assert scene.purge()[0].kept == ()
    assert scene.objects_of(full) == scene.objects_of(child) == []
    assert scene.listed() == [last]


def test_a_record_that_cannot_be_read_keeps_every_pack(scene: RetentionScene) -> None:
    """Nor is it known what a damaged completion record refers to."""
    ids = scene.days(3)
    key = layout.complete_key("main", ids[1])
    scene.memory.objects[key] = (b"rubbish", scene.now)
    plan = scene.expire(ONE)
    assert [item.item_id for item in plan.going] == [ids[0]]
    assert not plan.spans
    assert why_of(plan, ids[1]) == ("its records cannot be read",)
    scene.wait(GRACE)
    purge, _ = scene.purge()
    assert not purge.items
    assert [finding.code for finding in purge.findings] == ["item-unreadable"]
    # Given up by name, it blocks nothing.
    scene.expire(ONE, ids[1])
    scene.wait(GRACE)
    purge, _ = scene.purge()
    assert {item.item_id for item in purge.items} == set(ids[:2])
    assert scene.catalog.ids() == [ids[2]]


def test_holds_and_their_end(scene: RetentionScene) -> None:
    ids = scene.days(3)
    scene.hold(ids[0])
    scene.hold(ids[1], until=scene.now + timedelta(hours=30))
    scene.expire(ONE)
    assert scene.listed() == ids
    scene.work(40)
    newest = scene.backup()
    scene.expire(ONE)
    assert scene.listed() == [ids[0], newest]
    scene.require_sealed()
    scene.release(ids[0])
    scene.expire(ONE)
    assert scene.listed() == [newest]


def test_a_hold_does_not_end_because_a_clock_jumped(scene: RetentionScene) -> None:
    ids = scene.days(3)
    scene.hold(ids[0], until=scene.now + timedelta(days=30))
    scene.wait(timedelta(days=3650))
    scene.expire(ONE)
    assert ids[0] in scene.listed()


def test_a_hold_on_what_expired_keeps_its_bytes(scene: RetentionScene) -> None:
    """The two crossed: the record of the hold came after that of the expiry."""
    ids = scene.days(2)
    scene.expire(ONE, ids[0])

    append_any(scene.store, "main", scene.author().record(kind="hold", items={ids[0]: "late"}))
    scene.wait(GRACE)
    plan, _ = scene.purge()
    assert not plan.items
    assert plan.waiting[0].why == "hold: late"


# --- leases ---------------------------------------------------------------------------------


def test_a_lease_keeps_what_it_names_and_ends_by_itself(scene: RetentionScene) -> None:
    ids = scene.days(3)
    scene.lease("restore", ids[0])
    plan = scene.expire(ONE)
    assert [item.item_id for item in plan.going] == [ids[1]]
    assert "in use: restore run r-other" in plan.items[0].why[0]
    scene.wait(timedelta(minutes=30))
    assert [item.item_id for item in scene.expire(ONE).going] == [ids[0]]


def test_a_restore_that_began_before_the_expiry_keeps_the_bytes(scene: RetentionScene) -> None:
    ids = scene.days(3)
    scene.expire(ONE)
    scene.wait(GRACE)
    scene.lease("restore", ids[1])
    plan, _ = scene.purge()
    assert [item.item_id for item in plan.items] == [ids[0]]
    assert scene.objects_of(ids[1]) != []
    # WAL from there on stays, too; that before it went.
    assert scene.segments() == set(range(24, 72))
    scene.wait(timedelta(minutes=30))
    scene.purge()
    assert scene.objects_of(ids[1]) == []


def test_a_lease_that_comes_after_the_plan_is_heeded(scene: RetentionScene) -> None:
    ids = scene.days(3)
    scene.expire(ONE)
    scene.wait(GRACE)
    run = scene.purge_run()
    plan = run.plan()
    scene.lease("restore", ids[1])
    run.carry_out(plan)
    assert scene.objects_of(ids[0]) == []
    assert scene.objects_of(ids[1]) != []
    assert scene.listed() == [ids[2]]


def test_while_a_backup_runs_nothing_is_purged_that_it_may_refer_to(scene: RetentionScene) -> None:
    """Garbage collection against in-flight deduplication (pg_hardstorage)."""
    ids = scene.days(3)
    scene.expire(ONE)
    scene.wait(GRACE)
    scene.lease("backup")
    plan, _ = scene.purge()
    assert not plan.items
    assert scene.objects_of(ids[0]) != []


def test_what_a_backup_refers_to_that_ended_meanwhile_stays(scene: RetentionScene) -> None:
    ids = scene.days(3)
    scene.expire(ONE)
    scene.wait(GRACE)
    run = scene.purge_run()
    plan = run.plan()
    child = scene.backup({ids[0]: [1]})
    run.carry_out(plan)
    assert scene.objects_of(ids[0]) == ["pack-0001"]
    assert child in scene.listed()
    scene.require_sealed()


def test_our_own_lease_is_renewed_and_released(scene: RetentionScene) -> None:
    scene.now = scene.now.replace(microsecond=1)
    with leased(scene.store, "main", "restore", ["b-x"], lasts_seconds=0.03, run_id="r-1") as lease:
        first = lease.record.lease_id
        number = 1
        while number < 4:  # renewals happen
            names = [info.key for info in scene.memory.list(layout.leases_prefix("main", first))]
            number = max([layout.record_number(one.rpartition("/")[2]) for one in names], default=1)
        assert [one.record.items for one in read_leases(scene.store, "main")] == [("b-x",)]
    assert read_leases(scene.store, "main") == []


def test_a_store_that_deletes_nothing_is_told_of_the_release(scene: RetentionScene) -> None:
    refuses = Fault(
        "before", method="delete", is_lasting=True, error=lambda: StoreRefusedError("no")
    )
    store = FaultyStore(scene.store, [refuses])
    lease = Lease(store, "main", new_lease("verify", [], lasts_seconds=900, run_id="r-1"))
    assert read_leases(store, "main")[0].is_alive(scene.now)
    lease.release()
    (one,) = read_leases(store, "main")
    assert not one.is_alive(scene.now)
    # It is litter, which a purge with the right to delete removes.
    scene.wait(GRACE)
    scene.work(1)
    plan, done = scene.purge()
    assert plan.stale_leases == 2
    assert done is not None
    assert list(scene.memory.list(layout.leases_prefix("main"))) == []


# --- clocks ---------------------------------------------------------------------------------


def test_purge_does_not_believe_a_clock_that_jumped(scene: RetentionScene) -> None:
    ids = scene.days(3)
    scene.expire(ONE)
    scene.wait(timedelta(days=3650))
    with pytest.raises(ClockJumpError, match="if a clock jumped"):
        scene.purge()
    assert scene.objects_of(ids[0]) != []
    run = scene.purge_run()
    run.carry_out(run.plan(), trust_clock=True)
    assert scene.objects_of(ids[0]) == []


def test_expire_does_not_believe_backups_of_a_clock_that_jumped(scene: RetentionScene) -> None:
    ids = scene.days(3)
    scene.wait(timedelta(days=3650))
    newest = scene.backup()
    policy = Policy(keep_days=7)
    run = scene.expire_run()
    plan = run.plan(scene.wishes(policy))
    assert plan.items_going == 3
    with pytest.raises(ClockJumpError, match="after the one before it"):
        run.carry_out(plan)
    assert scene.listed() == [*ids, newest]
    run.carry_out(plan, trust_clock=True)
    assert scene.listed() == [newest]


# --- leftovers and companions -----------------------------------------------------------------


def test_leftovers_of_killed_backups_go_when_they_are_old(scene: RetentionScene) -> None:
    good = scene.backup()
    begun = scene.backup(completes=False)
    plan, _ = scene.purge()
    assert not plan.items
    scene.wait(GRACE)
    scene.lease("backup")
    assert not scene.purge()[0].items
    scene.wait(timedelta(hours=1))
    plan, _ = scene.purge()
    assert [(item.item_id, item.what) for item in plan.items] == [(begun, "unfinished")]
    assert scene.objects_of(begun) == []
    assert scene.listed() == [good]


def test_what_lies_beside_segments_goes_with_them_and_histories_stay(
    scene: RetentionScene,
) -> None:
    scene.days(3)
    name = segment_name(1, 5 * SIZE, SIZE)
    kept = segment_name(1, 60 * SIZE, SIZE)
    keys = {
        layout.wal_index_key("main", 1, WalFile(name)): True,
        layout.wal_index_key("main", 1, WalFile(kept)): False,
        layout.tail_key("main", 1, name, layout.tail_name(5 * SIZE, 5 * SIZE + 8)): True,
        layout.wal_key("main", 1, WalFile(f"{name}.partial")): True,
        layout.wal_key("main", 1, WalFile(f"{name}.00000028.backup")): True,
        layout.wal_key("main", 1, WalFile("00000002.history")): False,
        layout.rollup_key("main", 1, 1, "00000000"): False,
        name_layout.name_record_key("main", 1, 1, Lsn(3 * SIZE), "n-1"): True,
        name_layout.name_record_key("main", 1, 1, Lsn(9 * SIZE), "n-2"): False,
        name_layout.name_record_key("main", 1, 1, Lsn(60 * SIZE), "n-3"): False,
        name_layout.name_map_key("main", 1, "ab" * 32): False,
    }
    for key in keys:
        scene.store.put(key, [b"x"])
    # Not a history, for listing's sake: timeline 2 has a file of its own.
    scene.memory.objects.pop(layout.wal_key("main", 1, WalFile("00000002.history")))
    keys.pop(layout.wal_key("main", 1, WalFile("00000002.history")))
    scene.expire(ONE)
    scene.wait(GRACE)
    scene.purge()
    assert {key: scene.memory.head(key) is None for key in keys} == keys


def test_a_backup_that_is_marked_as_damaged_is_not_the_last_good_one(scene: RetentionScene) -> None:
    """The newest counts for no rule while it is damaged; healed, it does again."""
    ids = scene.days(3)
    catalog, now = scene.catalog, datetime(2026, 11, 27, tzinfo=UTC)
    found = DamagedObject(key="pack", code="pack-damaged", message="frame 3")
    catalog.damage.settle(ids[2], [found], "stored", run_id="r-1", now=now)
    going = [item.item_id for item in scene.expire_run().plan(scene.wishes(ONE)).going]
    assert ids[1] not in going
    assert ids[0] in going
    catalog.damage.settle(ids[2], [], "stored", run_id="r-2", now=now)
    going = [item.item_id for item in scene.expire_run().plan(scene.wishes(ONE)).going]
    assert going == ids[:2]
