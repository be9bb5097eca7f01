"""The journal of runs as the edges write it: what a run was, and how it ended."""

from __future__ import annotations

import logging
import os
import pwd
import signal
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pgrecall import __version__
from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository
from pgrecall.errors import (
    BackupDamagedError,
    CheckFailedError,
    CopyFailedError,
    InterruptedRunError,
    PgrecallError,
    RepairFailedError,
    ReportedError,
    SettingsError,
    VerifyFailedError,
)
from pgrecall.further_errors import CaptureRestoreError
from pgrecall.model.findings import Finding
from pgrecall.model.runs import (
    TRIGGER_VARIABLE,
    Journalled,
    Outcome,
    RunFacts,
    RunRecord,
    Trigger,
    bounded_findings,
    bounded_plan,
)
from pgrecall.repository.journal import Journal
from pgrecall.settings import RepositorySettings

if TYPE_CHECKING:
    from pgrecall.agent.job_runner import Ended  # which loads what only the agent needs

_log = logging.getLogger(__name__)

_LONGEST_MESSAGE = 1000
# A journal that cannot be written must not hold up the end of a run.
_RETRY_SECONDS = 5.0
_REQUEST_SECONDS = 20.0
# Statuses with which a run ends that printed its result: the findings say why.
_REPORTING = (
    CheckFailedError,
    BackupDamagedError,
    VerifyFailedError,
    CopyFailedError,
    RepairFailedError,
    CaptureRestoreError,
)
_CODES = {kind.exit_status: kind.code for kind in _REPORTING}


class RunEnd(NamedTuple):
    """How a run of ``command`` ended: with a result and a status, or with an error.

    ``plan``: what it has shown before it acted; ``given``: what it was told to do, for
    commands without a plan. ``connects``: whether it talks to the server.
    """

    command: str
    started_at: datetime
    status: int = 0
    result: object = None
    error: BaseException | None = None
    plan: msgspec.Struct | None = None
    given: Mapping[str, Any] = {}
    connects: bool = False


def write_run(context: RunContext, end: RunEnd) -> None:
    """Write the record of a run into the server's main repository.

    A journal that cannot be written is a warning in the log and nothing else:
    the run was what it was. Takes seconds at most when the store is away.
    """
    try:
        server = context.server.name
    except SettingsError:
        return  # no server was chosen, so nothing was run: the run's own error says that
    if _add(context, _record(context, server, end)) is False:
        _log.warning("the journal has a run of this identity already")


def write_job(context: RunContext, ended: Ended) -> None:
    """Write the record of a scheduled run that could not write its own (it was killed).

    One that did keeps its own: what it knew is more.
    """
    is_signal = ended.status < 0
    name = signal.Signals(-ended.status).name if is_signal else ""
    record = RunRecord(
        run_id=ended.run_id,
        server=context.server.name,
        command=ended.job,
        host=socket.gethostname(),
        user=_user(),
        started_at=ended.began_at,
        ended_at=ended.ended_at,
        outcome="interrupted" if is_signal else "fail" if ended.status else "ok",
        exit_status=128 - ended.status if is_signal else ended.status,
        error_code=ended.error_code,
        message=(f"ended by {name}" if is_signal else ended.message)[:_LONGEST_MESSAGE],
        trigger=ended.trigger,
        tool_version=__version__,
    )
    _add(context, record)


def _add(context: RunContext, record: RunRecord) -> bool | None:
    """As Journal.add; None after a failure, which was logged."""
    try:
        opened = OpenedRepository(_hasty(main_settings(context)), context.environment)
        return Journal(opened.store, record.server).add(
            record, opened.identity.repository_id, writer_of(context)
        )
    except (PgrecallError, OSError) as error:
        _log.warning("the run is not in the journal: %s", error, extra={"command": record.command})
        return None


def writer_of(context: RunContext) -> str:
    """Whose chain of records this host continues."""
    return context.settings.runs.writer or socket.gethostname()


def main_settings(context: RunContext) -> RepositorySettings:
    """The settings of the repository that keeps the journal; raises SettingsError."""
    candidates = context.repositories
    return next((one for one in candidates if one.role == "required"), candidates[0])


def _hasty(settings: RepositorySettings) -> RepositorySettings:
    return settings.replace(
        retries=min(settings.retries, 1),
        retry_seconds=min(settings.retry_seconds, _RETRY_SECONDS),
        timeout_seconds=min(settings.timeout_seconds, _REQUEST_SECONDS),
    )


def _record(context: RunContext, server: str, end: RunEnd) -> RunRecord:
    facts = end.result.run_facts() if isinstance(end.result, Journalled) else RunFacts()
    code, message, status = _error_of(end)
    findings, more = bounded_findings(_findings(end.result))
    return RunRecord(
        run_id=context.run_id,
        server=server,
        command=end.command,
        host=socket.gethostname(),
        started_at=end.started_at,
        ended_at=datetime.now(UTC),
        outcome=_outcome(end, facts.outcome),
        exit_status=status,
        error_code=code,
        message=message[:_LONGEST_MESSAGE],
        backup_id=facts.backup_id,
        raw_bytes=facts.raw_bytes,
        stored_bytes=facts.stored_bytes,
        rto_seconds=facts.rto_seconds,
        kept_in=facts.kept_in,
        kept=facts.kept,
        salvaged=facts.salvaged,
        capture_id=facts.capture_id,
        trigger=_trigger(context),
        tool_version=__version__,
        user=_user(),
        pid=os.getpid(),
        role=_role(context) if end.connects else "",
        plan=_plan(end),
        findings=findings,
        more_findings=more,
    )


def _findings(result: object) -> tuple[Finding, ...]:
    found = getattr(result, "findings", ())
    return tuple(one for one in found if isinstance(one, Finding))


def _plan(end: RunEnd) -> dict[str, Any]:
    plan = end.plan if end.plan is not None else getattr(end.result, "plan", None)
    if isinstance(plan, msgspec.Struct):
        return bounded_plan(plan)
    return {name: value for name, value in end.given.items() if value not in (None, "", False)}


def _user() -> str:
    number = os.geteuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _role(context: RunContext) -> str:
    """As libpq finds it."""
    return context.server.user or context.environment.get("PGUSER", "") or _user()


def _error_of(end: RunEnd) -> tuple[str, str, int]:
    if end.error is None:
        return _CODES.get(end.status, ""), "", end.status
    if isinstance(end.error, ReportedError):
        return end.error.code, end.error.message, end.error.exit_status
    if isinstance(end.error, KeyboardInterrupt):
        return InterruptedRunError.code, "", InterruptedRunError.exit_status
    return PgrecallError.code, f"{type(end.error).__name__}: {end.error}", PgrecallError.exit_status


def _outcome(end: RunEnd, found: Outcome) -> Outcome:
    if isinstance(end.error, InterruptedRunError | KeyboardInterrupt):
        return "interrupted"
    return "fail" if end.error is not None or end.status else found


def _trigger(context: RunContext) -> Trigger:
    """What the agent said when it started this process; else a user did."""
    text = context.environment.get(TRIGGER_VARIABLE, "")
    if not text:
        return Trigger()
    try:
        return msgspec.json.decode(text, type=Trigger)
    except msgspec.DecodeError as error:
        _log.warning("%s does not parse: %s", TRIGGER_VARIABLE, error)
        return Trigger()
