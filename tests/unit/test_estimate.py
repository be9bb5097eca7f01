"""What policies come to, reckoned by the rules themselves."""

from __future__ import annotations

import msgspec
import pytest

from pgrecall.model.policies import PROFILES, Policy
from pgrecall.retention.estimate import Measured, estimate

GB = 1_000_000_000
DAY = 86_400.0
MEASURED = Measured(
    backup_raw_bytes=100 * GB,
    backup_stored_bytes=25 * GB,
    consistency_wal_bytes=GB // 10,
    wal_bytes_per_day=8 * GB,
    segments_per_day=1000,
    restore_bytes_per_second=GB,
)


def test_the_guides_table_for_a_server_of_100_gb() -> None:
    found = estimate(PROFILES["small-production"], MEASURED)
    # 30 days, of the weeks 8 or 9 more that are no day of these, of the months 9 or 10 more.
    assert 45 <= found.backups <= 50
    assert 330 * DAY < found.oldest_seconds < 366 * DAY
    assert found.backup_bytes == found.backups * 25 * GB
    # Three days of all WAL (two, and what leads into them), and a little for each backup behind.
    assert 24 * GB < found.wal_bytes < 30 * GB
    assert found.total_bytes == found.backup_bytes + found.wal_bytes
    assert found.total_bytes == (
        found.standard_bytes + found.infrequent_bytes + found.archive_bytes
    )
    assert found.archive_bytes > 7 * 25 * GB
    assert found.restore_seconds == 100
    assert found.rto_target_seconds == 1800
    assert found.replay_bytes == 1000 << 24


def test_without_a_window_all_wal_counts() -> None:
    found = estimate(Policy(keep_last=10), MEASURED)
    assert found.backups == 10
    assert found.wal_bytes == 10 * 8 * GB


def test_what_was_not_measured_is_not_made_up() -> None:
    unknown = msgspec.structs.replace(MEASURED, restore_bytes_per_second=0)
    assert estimate(Policy(keep_last=1), unknown).restore_seconds is None


@pytest.mark.parametrize(("segments", "rate"), [(50, "low"), (200, "medium"), (2000, "high")])
def test_rates_of_transactions(segments: float, rate: str) -> None:
    assert msgspec.structs.replace(MEASURED, segments_per_day=segments).transaction_rate == rate


def test_often_and_long_stays_bounded() -> None:
    often = msgspec.structs.replace(MEASURED, backup_interval_seconds=900.0)
    assert estimate(Policy(keep_hourly=48, keep_yearly=10), often).backups >= 48
