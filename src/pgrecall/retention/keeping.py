"""Which items the rules of a policy keep, and why. Pure.

Rules count good items only: what is damaged keeps nothing from going. The newest of a
period is kept, not the oldest: whatever was kept once as the newest of all stays the
newest of its period, so that it makes no difference how often expire is run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from pgrecall.model.catalog_items import CatalogItem
from pgrecall.model.policies import Policy

Reasons = dict[str, list[str]]


def _iso_week(at: datetime) -> str:
    year, week, _ = at.isocalendar()
    return f"{year}-W{week:02d}"


_PERIODS: tuple[tuple[str, str, Callable[[datetime], str]], ...] = (
    ("keep_hourly", "hour", lambda at: f"{at:%Y-%m-%d %H}:00"),
    ("keep_daily", "day", lambda at: f"{at:%Y-%m-%d}"),
    ("keep_weekly", "week", _iso_week),
    ("keep_monthly", "month", lambda at: f"{at:%Y-%m}"),
    ("keep_yearly", "year", lambda at: f"{at:%Y}"),
)


def kept_by_rules(good: Sequence[CatalogItem], policy: Policy, counted_from: datetime) -> Reasons:
    """Reasons by id, for items of one kind; ``good`` is sorted, oldest first."""
    reasons: Reasons = {}
    newest_first = list(reversed(good))
    for item in newest_first[:1]:
        _add(reasons, item, f"it is the newest good {item.kind}")
    for number, item in enumerate(newest_first[: policy.keep_last], start=1):
        _add(reasons, item, f"keep_last: {number} of {policy.keep_last}")
    if policy.keep_days:
        oldest = counted_from - timedelta(days=policy.keep_days)
        for item in good:
            if item.made_at >= oldest:
                _add(reasons, item, f"keep_days: not older than {policy.keep_days} days")
    for rule, word, period_of in _PERIODS:
        _keep_periods(reasons, newest_first, (rule, word, getattr(policy, rule)), period_of)
    return reasons


def _keep_periods(
    reasons: Reasons,
    newest_first: Sequence[CatalogItem],
    rule: tuple[str, str, int],
    period_of: Callable[[datetime], str],
) -> None:
    name, word, count = rule
    seen: set[str] = set()
    for item in newest_first:
        if len(seen) >= count:
            return
        period = period_of(item.made_at.astimezone(UTC))
        if period not in seen:
            seen.add(period)
            _add(reasons, item, f"{name}: newest of the {word} {period} ({len(seen)} of {count})")


def _add(reasons: Reasons, item: CatalogItem, reason: str) -> None:
    reasons.setdefault(item.item_id, []).append(reason)


def suspicious_step(
    good: Sequence[CatalogItem], longest_pause: timedelta
) -> tuple[CatalogItem, CatalogItem] | None:
    """Two neighbours among the newest items that lie too far apart; None: there are none.

    A clock that jumps ahead dates the next items years behind the others, and every
    rule that counts time would let the others go at once.
    """
    newest = good[-_LOOKED_AT:]
    for before, after in itertools.pairwise(newest):
        if after.made_at - before.made_at > longest_pause:
            return before, after
    return None


_LOOKED_AT = 4
