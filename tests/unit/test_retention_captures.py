"""Captures expire by a rule of their own, and keep nothing else from staying or going."""

from __future__ import annotations

from datetime import timedelta

from pgrecall.model.catalog_items import CatalogItem
from pgrecall.model.policies import Policy
from pgrecall.retention.plan import ExpiryWishes, RetentionFacts, plan_expiry
from tests.unit.test_retention_plan import at, backup

DAY = 24
KEEP_ALL = Policy(keep_last=100)


def capture(day: int) -> CatalogItem:
    return CatalogItem(kind="capture", item_id=f"m-{day}", made_at=at(day * DAY), stored_bytes=10)


def stays(
    items: list[CatalogItem],
    *,
    policy: Policy = KEEP_ALL,
    days: int = 90,
    chosen: tuple[str, ...] = (),
    holds: dict[str, str] | None = None,
) -> set[str]:
    plan = plan_expiry(
        RetentionFacts(
            server="main", repository="one", items=items, listings=[], holds=holds or {}
        ),
        ExpiryWishes(
            policy=policy,
            now=at(100_000),
            longest_pause=timedelta(days=4000),
            captures_days=days,
            chosen=frozenset(chosen),
        ),
    )
    return {item.item_id for item in plan.items if item.fate == "stays"}


def backup_of(day: int, capture_id: str = "") -> CatalogItem:
    return backup(day * DAY, capture_id=capture_id)


def test_days_are_counted_and_the_one_that_was_current_before_leads_in() -> None:
    captures = [capture(day) for day in (1, 5, 9, 50, 99)]
    kept = stays([*captures, backup_of(100)])
    assert kept == {"m-9", "m-50", "m-99", "b-1-2400"}
    assert {"m-1", "m-5"} <= stays([*captures, backup_of(100)], days=0)


def test_the_newest_stays_however_old() -> None:
    assert "m-1" in stays([capture(1), backup_of(500)])
    assert stays([capture(1), capture(2), backup_of(500)]) == {"m-2", "b-1-12000"}


def test_what_a_kept_backup_names_stays_and_goes_with_it() -> None:
    items = [capture(1), capture(2), capture(300), backup_of(3, "m-1"), backup_of(500, "m-300")]
    assert stays(items, days=1) == {"m-1", "m-300", "b-1-72", "b-1-12000"}
    assert stays(items, days=1, policy=Policy(keep_last=1)) == {"m-300", "b-1-12000"}
    assert "m-1" in stays(items, days=1, policy=Policy(keep_last=1), holds={"b-1-72": "hold"})


def test_a_younger_capture_lets_no_backup_go() -> None:
    items = [backup_of(1), backup_of(2), capture(400)]
    policy = Policy(keep_days=10)
    assert {"b-1-24", "b-1-48"} <= stays(items, policy=policy)


def test_without_a_policy_or_a_backup_all_stay() -> None:
    items = [capture(1), capture(2), capture(300)]
    assert stays(items) == {"m-1", "m-2", "m-300"}
    assert stays([*items, backup_of(500)], policy=Policy()) == {"m-1", "m-2", "m-300", "b-1-12000"}


def test_one_can_be_named_but_not_the_newest_nor_one_that_is_needed() -> None:
    items = [capture(1), capture(2), capture(3), backup_of(4, "m-1")]
    assert stays(items, chosen=("m-1", "m-2", "m-3")) == {"m-1", "m-3", "b-1-96"}
