"""What policies come to: backups kept, bytes, and what a restore reads. Pure.

Reckoned by the rules themselves: a policy is applied to a year and more of backups as large
and as frequent as those that were measured.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from pgrecall.model.catalog_items import CatalogItem
from pgrecall.model.policies import Policy
from pgrecall.retention.keeping import kept_by_rules

_DAY = 86_400.0
_MB = 1_000_000
# The guide's table: S3 Standard for 30 days, Infrequent Access to 90, Glacier beyond.
_STANDARD_DAYS = 30
_INFREQUENT_DAYS = 90
# At most so many backups are reckoned one by one.
_MOST_BACKUPS = 20_000
_SLACK_DAYS = 32

TransactionRate = Literal["low", "medium", "high"]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the repository tells. 0: not measured.

    Of the newest backup ``backup_raw_bytes``, ``backup_stored_bytes`` and
    ``consistency_wal_bytes``, the WAL that just it needs. ``wal_bytes_per_day`` as stored.
    ``restore_bytes_per_second``: raw bytes of the last restores by their time.
    """

    backup_raw_bytes: int = 0
    backup_stored_bytes: int = 0
    consistency_wal_bytes: int = 0
    backup_interval_seconds: float = _DAY
    wal_bytes_per_day: int = 0
    segments_per_day: float = 0.0
    segment_bytes: int = 1 << 24
    restore_bytes_per_second: int = 0

    @property
    def transaction_rate(self) -> TransactionRate:
        """The guide's class: 48 MB of WAL in an hour and 480 MB are its bounds."""
        hourly = self.segments_per_day * self.segment_bytes / 24
        return "low" if hourly < 48 * _MB else "medium" if hourly < 480 * _MB else "high"


class PolicyEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """One policy in its steady state. Sizes as stored.

    ``standard_bytes``, ``infrequent_bytes`` and ``archive_bytes`` are ``total_bytes`` by age:
    up to 30 days, up to 90, and older. ``replay_bytes``: raw WAL between two backups, which a
    recovery replays at most. ``restore_seconds`` is without that; null: no restore was measured.
    """

    policy: str
    backups: int
    oldest_seconds: float
    backup_bytes: int
    wal_bytes: int
    total_bytes: int
    standard_bytes: int
    infrequent_bytes: int
    archive_bytes: int
    replay_bytes: int
    restore_seconds: float | None
    rto_target_seconds: float


def estimate(policy: Policy, measured: Measured) -> PolicyEstimate:
    """Reckon one policy; one that keeps everything is reckoned for a year."""
    ages = _kept_ages(policy, measured)
    oldest = max(ages, default=0.0)
    window = policy.pitr_window_hours * 3600.0 if policy.pitr_window_hours else oldest
    # The window begins in the middle between two backups, and leads from the one before.
    window += measured.backup_interval_seconds
    wal_window = int(measured.wal_bytes_per_day * window / _DAY)
    tiers = [0, 0, 0]
    consistency = 0
    for age in ages:
        needs = measured.consistency_wal_bytes if age > window else 0
        consistency += needs
        days = age / _DAY
        tier = 0 if days <= _STANDARD_DAYS else 1 if days <= _INFREQUENT_DAYS else 2
        tiers[tier] += measured.backup_stored_bytes + needs
    tiers[0] += wal_window
    replay = measured.segments_per_day * measured.segment_bytes
    restore = None
    if measured.restore_bytes_per_second:
        restore = measured.backup_raw_bytes / measured.restore_bytes_per_second
    return PolicyEstimate(
        policy=policy.name or policy.profile or "keeps everything",
        backups=len(ages),
        oldest_seconds=oldest,
        backup_bytes=len(ages) * measured.backup_stored_bytes,
        wal_bytes=wal_window + consistency,
        total_bytes=sum(tiers),
        standard_bytes=tiers[0],
        infrequent_bytes=tiers[1],
        archive_bytes=tiers[2],
        replay_bytes=int(replay * measured.backup_interval_seconds / _DAY),
        restore_seconds=restore,
        rto_target_seconds=policy.rto_seconds,
    )


def _kept_ages(policy: Policy, measured: Measured) -> list[float]:
    """Ages in seconds of the backups that are kept, when that no longer changes."""
    interval = max(measured.backup_interval_seconds, 1.0)
    count = min(_MOST_BACKUPS, int(_horizon_days(policy) * _DAY / interval) + 1)
    now = datetime(2026, 12, 30, tzinfo=UTC)
    items = [
        CatalogItem(
            kind="backup",
            item_id=str(number),
            made_at=now - timedelta(seconds=interval * number),
            stored_bytes=0,
        )
        for number in reversed(range(count))
    ]
    if policy.keeps_everything:
        return [(now - item.made_at).total_seconds() for item in items]
    kept = kept_by_rules(items, policy, now)
    window = timedelta(hours=policy.pitr_window_hours)
    return [
        (now - item.made_at).total_seconds()
        for item in items
        if item.item_id in kept or (window and now - item.made_at <= window)
    ]


def _horizon_days(policy: Policy) -> float:
    if policy.keeps_everything:
        return 365.0
    spans = (
        policy.keep_days, policy.keep_hourly / 24, policy.keep_daily, 7 * policy.keep_weekly,
        31 * policy.keep_monthly, 366 * policy.keep_yearly, policy.pitr_window_hours / 24,
        policy.keep_last,
    )  # fmt: skip
    return max(spans) + _SLACK_DAYS
