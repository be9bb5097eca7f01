"""``report``: what an auditor asks of a period, from the records themselves."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository
from pgrecall.app.policies import policy_of
from pgrecall.app.repositories import RepositoriesResult, run_repositories
from pgrecall.app.requests import StatusRequest
from pgrecall.app.runs import RunsVerifyResult, verify_runs
from pgrecall.app.status import ServerStatus, run_status
from pgrecall.errors import PgrecallError, UsageError
from pgrecall.model.drills import DrillRecord
from pgrecall.model.findings import Finding, Severity, worst
from pgrecall.model.policies import Policy
from pgrecall.model.runs import RunRecord
from pgrecall.repository.drill_log import DrillLog
from pgrecall.repository.journal import Journal
from pgrecall.repository.retention_log import Hold, RetentionRecord, fold, read_records
from pgrecall.system.clock import SystemClock

# Runs that take data, or keys, out of a repository, or put data in the place of others.
_USES = frozenset(
    {
        "captures restore", "export", "key export", "key rewrap", "key rotate", "load",
        "recovery promote", "rescue", "restore", "set restore", "standby build",
        "undo",
    }
)  # fmt: skip


class ReportedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run, and the repository that keeps its record."""

    repository: str
    run: RunRecord


class ReportedDecision(msgspec.Struct, frozen=True, kw_only=True):
    """A hold, a release, an expiry, its undoing, or a purge; of one item, or of WAL alone."""

    repository: str
    kind: str
    item_id: str
    reason: str
    recorded_at: datetime
    until_at: datetime | None
    run_id: str
    host: str


class ReportedHold(msgspec.Struct, frozen=True, kw_only=True):
    """A hold that lasts at the end of the period."""

    repository: str
    hold: Hold


class ReportedPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept in a repository, and the targets that go with it."""

    repository: str
    policy: Policy


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``report`` writes; from ``since_at`` to before ``until_at``.

    ``status`` and ``repositories`` are of now. ``rto_seconds``: the longest that a restore or
    drill of the period took until its server answered, None when there was none. ``made``: runs
    that made backups, dumps, captures or sets; ``uses``: who took data or keys out, or put data
    back; ``failed``: every run that failed. ``is_complete`` False: not all could be read.
    """

    server: str
    made_at: datetime
    since_at: datetime
    until_at: datetime
    result: Severity
    is_complete: bool
    status: ServerStatus
    rto_seconds: float | None
    policies: tuple[ReportedPolicy, ...]
    repositories: RepositoriesResult
    trail: RunsVerifyResult
    made: tuple[ReportedRun, ...]
    drills: tuple[DrillRecord, ...]
    uses: tuple[ReportedRun, ...]
    holds: tuple[ReportedHold, ...]
    decisions: tuple[ReportedDecision, ...]
    failed: tuple[ReportedRun, ...]
    findings: tuple[Finding, ...] = ()


_MAKING = frozenset({"backup", "capture", "dump", "import", "set create"})


def make_report(context: RunContext, since: datetime, until: datetime | None) -> AuditReport:
    """Read everything; what cannot be read is a finding, and said.

    Raises UsageError for a period that is empty or not over yet, SettingsError.
    """
    now = SystemClock().now()
    if until is not None and until > now:
        raise UsageError("--until lies in the future", hint="leave it out: the report is up to now")
    until = until or now
    if since >= until:
        raise UsageError("the period is empty", hint="--since must be before --until, and now")
    return _Reader(context, since, until).report(now)


class _Reader:
    """One server's records of one period, in all repositories."""

    def __init__(self, context: RunContext, since: datetime, until: datetime) -> None:
        self._context = context
        self._since, self._until = since, until
        self._runs: list[ReportedRun] = []
        self._drills: dict[str, DrillRecord] = {}
        self._decisions: list[ReportedDecision] = []
        self._holds: list[ReportedHold] = []
        self._findings: list[Finding] = []

    def report(self, now: datetime) -> AuditReport:
        context = self._context
        for settings in context.repositories:
            try:
                self._read(OpenedRepository(settings, context.environment))
            except PgrecallError as error:
                self._findings.append(
                    Finding(
                        severity="fail",
                        code=error.code,
                        subject=settings.name,
                        message=error.message,
                        hint=error.hint,
                    )
                )
        status = run_status(
            RunContext(
                context.settings,
                context,
                server_name=context.server.name,
                repository_name=context.repository_name,
            ),
            StatusRequest(),
        ).servers[0]
        trail = verify_runs(context)
        self._runs.sort(key=lambda one: (one.run.ended_at, one.run.run_id))
        drills = sorted(self._drills.values(), key=lambda one: one.started_at)
        return AuditReport(
            server=context.server.name,
            made_at=now,
            since_at=self._since,
            until_at=self._until,
            result=worst([*self._findings, *status.findings, *trail.findings]),
            is_complete=not self._findings,
            status=status,
            rto_seconds=self._slowest(drills),
            policies=tuple(
                ReportedPolicy(
                    repository=one.name, policy=policy_of(context.settings, context.server, one)
                )
                for one in context.repositories
            ),
            repositories=run_repositories(context),
            trail=trail,
            made=self._of(_MAKING),
            drills=tuple(drills),
            uses=self._of(_USES),
            holds=tuple(self._holds),
            decisions=tuple(sorted(self._decisions, key=lambda one: one.recorded_at)),
            failed=tuple(one for one in self._runs if one.run.outcome in ("fail", "interrupted")),
            findings=tuple(self._findings),
        )

    def _read(self, opened: OpenedRepository) -> None:
        server, name = self._context.server.name, opened.settings.name
        runs, damaged = Journal(opened.store, server).runs(self._since)
        self._findings += damaged
        self._runs += [
            ReportedRun(repository=name, run=run) for run in runs if run.ended_at < self._until
        ]
        drills, damaged = DrillLog(opened.store, server).all()
        self._findings += damaged
        # The same drill may be in several repositories: copy brings the records along.
        self._drills |= {one.drill_id: one for one in drills if self._is_within(one.started_at)}
        records = read_records(opened.store, server)
        for record in records:
            if self._is_within(record.recorded_at):
                self._decisions += _decisions(name, record)
        past = [record for record in records if record.recorded_at < self._until]
        self._holds += [
            ReportedHold(repository=name, hold=hold)
            for hold in fold(past, {}).active_holds(self._until).values()
        ]

    def _is_within(self, moment: datetime) -> bool:
        return self._since <= moment < self._until

    def _of(self, commands: frozenset[str]) -> tuple[ReportedRun, ...]:
        return tuple(one for one in self._runs if one.run.command in commands)

    def _slowest(self, drills: list[DrillRecord]) -> float | None:
        took = [one.run.rto_seconds for one in self._runs if one.run.rto_seconds is not None]
        took += [one.seconds.restore + one.seconds.recovery for one in drills if one.seconds]
        return max(took, default=None)


def _decisions(repository: str, record: RetentionRecord) -> list[ReportedDecision]:
    return [
        ReportedDecision(
            repository=repository,
            kind=record.kind,
            item_id=item_id,
            reason=reason,
            recorded_at=record.recorded_at,
            until_at=record.until,
            run_id=record.run_id,
            host=record.host,
        )
        for item_id, reason in (record.items or {"WAL": ""}).items()
    ]
