"""``captures diff``: what changed between two captures, or since one of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from pgrecall.app.capturing import LATEST, capture_session, named_capture, observe
from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.errors import UsageError
from pgrecall.model.capture_diff import Difference, difference
from pgrecall.model.captures import CaptureFacts, CaptureRecord
from pgrecall.model.findings import Finding
from pgrecall.repository.capture_log import CaptureLog
from pgrecall.system.clock import SystemClock


class DiffSide(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared: a capture, or (``capture_id`` empty) the server as it was at ``at``."""

    capture_id: str
    at: datetime


class CaptureDiffResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``captures diff`` prints; findings say what could not be compared."""

    server: str
    repository: str
    before: DiffSide
    after: DiffSide
    differences: tuple[Difference, ...] = ()
    findings: tuple[Finding, ...] = ()


class _Compared(msgspec.Struct, frozen=True):
    side: DiffSide
    facts: CaptureFacts


def run_capture_diff(
    context: RunContext, names: Sequence[str], *, is_live: bool = False
) -> CaptureDiffResult:
    """Compare two captures, or one with the server as it is now (``is_live``).

    ``names``: up to two, as for named_capture. One alone is compared with the newest; none:
    the newest with the one before it. Raises UsageError when there is no such capture,
    StoreError, RepositoryError; with ``is_live`` PostgresError and its kinds, IdentityError.
    """
    if len(names) > (1 if is_live else 2):
        most = "one capture is compared with the server" if is_live else "two captures are compared"
        raise UsageError(f"{most}, and {len(names)} were named", hint="leave the others out")
    opened = main_repository(context)
    log = CaptureLog(opened.store, context.server.name)
    before, after = _both(context, opened, log, names, is_live=is_live)
    found = difference(before.facts, after.facts)
    return CaptureDiffResult(
        server=context.server.name,
        repository=opened.settings.name,
        before=before.side,
        after=after.side,
        differences=found.differences,
        findings=tuple(not_compared(words) for words in found.unknown),
    )


def not_compared(words: str) -> Finding:
    """A finding of what a comparison had to leave out."""
    subject, _, message = words.partition(": ")
    return Finding(
        "warn",
        "not-compared",
        f"not compared: {message}",
        subject=subject,
        hint="what the role may not see, and what a repository that is not encrypted does not"
        " keep, is in no capture (docs/captures.md)",
    )


def _both(
    context: RunContext,
    opened: OpenedRepository,
    log: CaptureLog,
    names: Sequence[str],
    *,
    is_live: bool,
) -> tuple[_Compared, _Compared]:
    if is_live:
        capture = named_capture(log, names[0] if names else LATEST)
        with capture_session(context) as connection:
            facts = observe(context, opened, connection)
        live = DiffSide(capture_id="", at=SystemClock().now())
        return _compared(capture), _Compared(live, facts)
    second = named_capture(log, names[1] if len(names) == 2 else LATEST)
    first = named_capture(log, names[0]) if names else log.before(second)
    if first is None:
        raise UsageError(
            f"{second.capture_id} is the only capture: there is none before it",
            hint="compare it with the server as it is now: pgrecall captures diff --live",
        )
    return _compared(first), _compared(second)


def _compared(record: CaptureRecord) -> _Compared:
    return _Compared(DiffSide(capture_id=record.capture_id, at=record.captured_at), record.facts)
