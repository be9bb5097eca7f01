"""``estimate``: what the policy of a server, and the profiles beside it, will take."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta
from statistics import median

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.policies import named_profile, policy_from, policy_of
from pgrecall.errors import BackupNotFoundError
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.policies import PROFILES
from pgrecall.repository.identity import latest_generation
from pgrecall.repository.journal import Journal
from pgrecall.repository.wal_listing import WalListing, list_wal
from pgrecall.retention.estimate import Measured, PolicyEstimate, estimate
from pgrecall.system.clock import SystemClock

# How often backups are made, and how large they are, the newest ones say.
_LOOKED_AT_BACKUPS = 60
_LOOKED_BACK_SECONDS = 7 * 86_400.0
_RESTORES_SINCE = timedelta(days=365)
_DAY = 86_400.0
# The guide's sizing table: how long it would keep all WAL, by the rate of transactions.
_GUIDE_WAL_DAYS = {"low": 7, "medium": 3, "high": 1}


class EstimateResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``estimate`` prints: what was measured, and each policy; the server's own first.

    ``transaction_rate`` and ``guide_wal_days`` are the guide's sizing table.
    """

    server: str
    repository: str
    policy: str
    measured: Measured
    transaction_rate: str
    guide_wal_days: int
    policies: tuple[PolicyEstimate, ...]


def run_estimate(context: RunContext) -> EstimateResult:
    """Measure the main repository and reckon the policies; reads only.

    Raises BackupNotFoundError when there is no backup to measure, StoreError.
    """
    opened = main_repository(context)
    name = context.server.name
    backups = opened.catalog(name).newest(lambda found: len(found) >= _LOOKED_AT_BACKUPS)
    if not backups:
        raise BackupNotFoundError(
            f"there is no backup of server {name!r} to measure", hint="take one: pgrecall backup"
        )
    own = policy_of(context.settings, context.server, opened.settings)
    others = [policy_from(one) for one in context.settings.policies.values()]
    others += [named_profile(profile) for profile in PROFILES]
    measured = _measured(context, opened, backups)
    return EstimateResult(
        server=name,
        repository=opened.settings.name,
        policy=own.name or "none: everything is kept",
        measured=measured,
        transaction_rate=measured.transaction_rate,
        guide_wal_days=_GUIDE_WAL_DAYS[measured.transaction_rate],
        policies=tuple(
            estimate(policy, measured)
            for policy in (own, *(one for one in others if one.name != own.name))
        ),
    )


def _measured(
    context: RunContext, opened: OpenedRepository, backups: Sequence[Completion]
) -> Measured:
    name = context.server.name
    newest = backups[-1]
    steps = [
        (after.stopped_at - before.stopped_at).total_seconds()
        for before, after in itertools.pairwise(backups)
    ]
    generation = latest_generation(opened.store, name)
    assert generation is not None
    daily, segments, each = _wal_rate(list_wal(opened.store, name, generation))
    needed = int(Lsn.parse(newest.stop_lsn) - Lsn.parse(newest.start_lsn))
    return Measured(
        backup_raw_bytes=newest.totals.raw_bytes,
        backup_stored_bytes=newest.totals.stored_bytes,
        consistency_wal_bytes=(needed // generation.segment_bytes + 1) * each,
        backup_interval_seconds=max(60.0, median(steps)) if steps else _DAY,
        wal_bytes_per_day=daily,
        segments_per_day=segments,
        segment_bytes=generation.segment_bytes,
        restore_bytes_per_second=_restore_rate(opened, name),
    )


def _wal_rate(listing: WalListing) -> tuple[int, float, int]:
    """Stored bytes and segments in a day, and the stored size of a segment.

    Of the last seven days that anything was archived in.
    """
    tables = [table for table in listing.tables.values() if len(table)]
    newest = max((float(table.stored_at.max()) for table in tables), default=0.0)
    oldest, count, stored = newest, 0, 0
    for table in tables:
        recent = table.stored_at >= newest - _LOOKED_BACK_SECONDS
        if recent.any():
            oldest = min(oldest, float(table.stored_at[recent].min()))
            count += int(recent.sum())
            stored += int(table.stored_bytes[recent].sum())
    if count < 2 or newest <= oldest:
        return 0, 0.0, stored // count if count else 0
    # The first one was being written before: the time is that of the others.
    segments = (count - 1) * _DAY / (newest - oldest)
    return int(segments * stored / count), segments, stored // count


def _restore_rate(opened: OpenedRepository, name: str) -> int:
    since = SystemClock().now() - _RESTORES_SINCE
    runs, _ = Journal(opened.store, name).runs(since)
    done = [run for run in runs if run.command == "restore" and run.outcome in ("ok", "warn")]
    rates = [run.raw_bytes / run.duration_seconds for run in done[-5:] if run.duration_seconds]
    return int(median(rates)) if rates else 0
