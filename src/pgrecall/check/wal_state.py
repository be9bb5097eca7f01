"""What the state of a server's WAL means: facts and thresholds in, findings out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from pgrecall.check.plan import is_failing
from pgrecall.model.findings import Finding, Severity
from pgrecall.postgres.actions import ArchiverFacts
from pgrecall.postgres.slots import LOST, UNRESERVED, SlotState

# An archiver that had no answer for so long is not merely busy.
WARN_SECONDS = 120.0
FAIL_SECONDS = 600.0


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """Beyond these the archive lags too much; None: no bound. Seconds, bytes, segments."""

    warn_seconds: float | None = WARN_SECONDS
    fail_seconds: float | None = FAIL_SECONDS
    warn_bytes: int | None = None
    fail_bytes: int | None = None
    warn_segments: int | None = None
    fail_segments: int | None = None


class ArchiveLag(msgspec.Struct, frozen=True, kw_only=True):
    """How far the archive is behind. None: it cannot be told.

    ``waiting_seconds``: for how long the oldest finished file waits; 0 when none does.
    ``waiting_segments``: finished ones that wait. ``behind_bytes``: from the end of what
    is archived to the server's position, the unfinished segment included.
    """

    waiting_seconds: float | None = None
    waiting_segments: int | None = None
    behind_bytes: int | None = None


def lag_findings(lag: ArchiveLag, limits: Thresholds) -> list[Finding]:
    """One finding for each bound that is passed, the gravest only."""
    found = []
    for what, value, warn, fail in (
        ("seconds", lag.waiting_seconds, limits.warn_seconds, limits.fail_seconds),
        ("bytes", lag.behind_bytes, limits.warn_bytes, limits.fail_bytes),
        ("segments", lag.waiting_segments, limits.warn_segments, limits.fail_segments),
    ):
        if value is None:
            continue
        severity: Severity | None = None
        bound: float | None = None
        if fail is not None and value > fail:
            severity, bound = "fail", fail
        elif warn is not None and value > warn:
            severity, bound = "warn", warn
        if severity is not None and bound is not None:
            found.append(
                Finding(
                    severity=severity,
                    code=f"archive-lag-{what}",
                    message=f"the archive is behind by {value:g} {what}, more than {bound:g}",
                    hint="see whether archive_command fails or is slow: pgrecall wal status --test",
                )
            )
    return found


def archiver_findings(archiver: ArchiverFacts, complaint: str) -> list[Finding]:
    """That the last attempt failed, with what archive_command wrote as far as it can be read."""
    if not is_failing(archiver):
        return []
    said = f", and says: {complaint}" if complaint else ""
    return [
        Finding(
            severity="fail",
            code="archiver-failing",
            subject=archiver.last_failed_file,
            message=f"archive_command fails ({archiver.failed_count} times since"
            f" the statistics were reset, last at {_shown(archiver.last_failed_at)}){said}",
            hint="mend what it says; PostgreSQL tries again by itself"
            if complaint
            else "the server's log has what archive_command wrote; pgrecall check finds causes",
        )
    ]


def slot_findings(slots: Sequence[SlotState]) -> list[Finding]:
    """Slots that lost WAL, will lose it, or keep it for nobody."""
    found = []
    for slot in slots:
        retained = f", which keeps {slot.retained_bytes} bytes" if slot.retained_bytes else ""
        if slot.wal_status == LOST:
            why = f" ({slot.invalidation})" if slot.invalidation else ""
            found.append(
                Finding(
                    severity="fail",
                    code="slot-lost",
                    subject=slot.name,
                    message=f"the slot {slot.name!r} is lost{why}: WAL that its reader needs"
                    " was removed",
                    hint="see pgrecall wal slots; raise max_slot_wal_keep_size, and make it anew",
                )
            )
        elif slot.wal_status == UNRESERVED:
            found.append(
                Finding(
                    severity="warn",
                    code="slot-unreserved",
                    subject=slot.name,
                    message=f"the slot {slot.name!r} loses WAL at the next checkpoint",
                    hint="let its reader catch up; raise max_slot_wal_keep_size",
                )
            )
        elif not slot.is_active and slot.restart_lsn:
            found.append(
                Finding(
                    severity="warn",
                    code="slot-inactive",
                    subject=slot.name,
                    message=f"nobody reads the slot {slot.name!r}{retained}",
                    hint="start its reader, or drop it: pgrecall wal slots",
                )
            )
    return found


def _shown(at: datetime | None) -> str:
    return at.isoformat(sep=" ", timespec="seconds") if at is not None else "an unknown time"
