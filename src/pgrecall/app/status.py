"""``status``: for each server, what could be restored now, against what should be."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from pgrecall.agent.lock import running_agent
from pgrecall.agent.process import read_snapshot
from pgrecall.agent.schedule import Timetable
from pgrecall.app.context import RunContext
from pgrecall.app.journalling import main_settings
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.policies import policy_of
from pgrecall.app.recoverable import RecoverableSurvey
from pgrecall.app.recoverable_result import RecoverableResult
from pgrecall.app.requests import StatusRequest
from pgrecall.app.status_rules import (
    AgentSight,
    Loss,
    agent_findings,
    drill_findings,
    failed_count,
    ill_components,
    loss_now,
    run_findings,
    target_findings,
    targets_of,
)
from pgrecall.errors import (
    AgentPlaceError,
    DataDirectoryError,
    PgrecallError,
    PostgresError,
    SettingsError,
)
from pgrecall.model.findings import Finding, Severity, worst
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.runs import RunRecord
from pgrecall.model.wal_files import segment_name
from pgrecall.postgres.actions import ArchiverFacts, archiver_facts
from pgrecall.postgres.connection import connect
from pgrecall.repository.drill_log import DrillLog
from pgrecall.repository.identity import latest_generation
from pgrecall.repository.journal import Journal
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import ServerSettings, TargetSettings
from pgrecall.system.clock import SystemClock
from pgrecall.wal.agent_places import agent_directory, state_directory
from pgrecall.wal.ready import ready_names

_USUAL_HISTORY = timedelta(days=7)
# A restore that was measured this long ago says little of today's size.
_RTO_HISTORY = timedelta(days=90)
# It writes its state every two seconds.


class RunLine(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the history; ``planned`` says late, or how many before it were left out."""

    ended_at: datetime
    command: str
    outcome: str
    duration_seconds: float
    planned: str
    error_code: str
    backup_id: str
    host: str
    run_id: str


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One server. Targets are 0 where none is set; what is not known or measured is None.

    ``newest_at`` is the last commit that can be reached. ``rpo_seconds``: the work
    that would be lost at most if the host were gone now, ``rpo_basis`` why.
    ``rto_seconds``: what the last restore with --start took. Runs are those that
    ended since ``since_at``.
    """

    server: str
    repository: str
    result: Severity
    newest_at: datetime | None = None
    newest_lsn: str = ""
    rpo_seconds: float | None = None
    rpo_basis: str = ""
    rpo_target_seconds: float = 0.0
    rto_seconds: float | None = None
    rto: str = "not measured"
    rto_target_seconds: float = 0.0
    last_backup_id: str = ""
    last_backup_at: datetime | None = None
    last_backup_age_seconds: float | None = None
    backup_age_target_seconds: float = 0.0
    since_at: datetime | None = None
    runs: int = 0
    failed_runs: int = 0
    missed_runs: int = 0
    agent: str = ""
    archive: str = ""
    findings: tuple[Finding, ...] = ()
    history: tuple[RunLine, ...] = ()


class StatusResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``status`` prints; ``result`` is the gravest of all servers."""

    looked_at: datetime
    result: Severity
    servers: tuple[ServerStatus, ...]


class _Server(msgspec.Struct, frozen=True):
    """What the server itself says; None: it cannot be asked, or does not write WAL."""

    current_lsn: Lsn | None
    archiver: ArchiverFacts | None
    error: str = ""


def run_status(context: RunContext, request: StatusRequest) -> StatusResult:
    """The status of the chosen server, or of all; changes nothing.

    What cannot be looked at is a finding. Raises SettingsError.
    """
    Timetable(context.settings.schedule)  # a schedule that is wrong is said here too
    now = SystemClock().now()
    several = list(context.settings.servers) if context.server_name is None else []
    names = several or [context.server.name]
    servers = tuple(_Look(_for_server(context, name), request, now).status() for name in names)
    findings = [Finding(severity=one.result, code="", message="") for one in servers]
    return StatusResult(looked_at=now, result=worst(findings), servers=servers)


class _Look:
    """One look at one server."""

    def __init__(self, context: RunContext, request: StatusRequest, now: datetime) -> None:
        self._context = context
        self._server: ServerSettings = context.server
        self._now = now
        self._since = request.since or now - _USUAL_HISTORY
        self._with_history = request.since is not None
        self._findings: list[Finding] = []
        self._targets = wanted_targets(context)

    def status(self) -> ServerStatus:
        targets = self._targets
        said = self._ask()
        agent = self._agent()
        archive = self._archive(said)
        base = ServerStatus(
            server=self._server.name,
            repository="",
            result="ok",
            rpo_target_seconds=targets.rpo_seconds,
            rto_target_seconds=targets.rto_seconds,
            backup_age_target_seconds=targets.backup_age_seconds,
            since_at=self._since,
            agent=agent,
            archive=archive,
        )
        try:
            opened = main_repository(self._context)
            base = self._stored(base, opened, said)
        except PgrecallError as error:
            self._add("fail", error.code, error.message, error.hint)
        findings = tuple(self._findings)
        return msgspec.structs.replace(base, findings=findings, result=worst(list(findings)))

    def _stored(self, base: ServerStatus, opened: OpenedRepository, said: _Server) -> ServerStatus:
        name, targets = self._server.name, self._targets
        look = RecoverableSurvey(opened, name)
        survey = look.result(self._now)
        self._findings += survey.findings
        loss = self._loss(opened, survey, said)
        backup = _last_good(look.backups)
        everything, damaged = Journal(opened.store, name).runs(
            min(self._since, self._now - _RTO_HISTORY)
        )
        self._findings += damaged
        runs = [run for run in everything if run.ended_at >= self._since]
        measured = [run for run in everything if run.rto_seconds is not None]
        rto = measured[-1].rto_seconds if measured else None
        self._findings += target_findings(targets, loss, rto, backup, self._now)
        drilled = DrillLog(opened.store, name).newest()
        self._findings += drill_findings(targets, drilled, self._now)
        self._findings += run_findings(runs)
        age = (self._now - backup.stopped_at).total_seconds() if backup is not None else None
        return msgspec.structs.replace(
            base,
            repository=opened.settings.name,
            newest_at=survey.newest_at,
            newest_lsn=survey.newest_lsn,
            rpo_seconds=loss.seconds,
            rpo_basis=loss.basis,
            rto_seconds=rto,
            rto=f"measured by {measured[-1].run_id}" if measured else "not measured",
            last_backup_id=backup.backup_id if backup is not None else "",
            last_backup_at=backup.stopped_at if backup is not None else None,
            last_backup_age_seconds=age,
            runs=len(runs),
            failed_runs=failed_count(runs),
            missed_runs=sum(run.trigger.missed for run in runs),
            history=tuple(_line(run) for run in runs) if self._with_history else (),
        )

    def _loss(self, opened: OpenedRepository, survey: RecoverableResult, said: _Server) -> Loss:
        generation = latest_generation(opened.store, self._server.name)
        if generation is None or not survey.newest_lsn or survey.newest_timeline is None:
            return loss_now(None, None, said.current_lsn, 1, self._now)
        size, end = generation.segment_bytes, Lsn.parse(survey.newest_lsn)
        # A whole segment that ends in zeros (after a switch) covers all positions up to its end.
        name = segment_name(survey.newest_timeline, max(0, end - 1), size)
        if WalArchive(opened.store, self._server.name, generation).has(name):
            end = Lsn(-(-end // size) * size)
        return loss_now(survey.newest_at, end, said.current_lsn, size, self._now)

    def _ask(self) -> _Server:
        try:
            with connect(
                self._server,
                application_name="pgrecall status",
                purpose="status",
                environment=self._context.environment,
            ) as connection:
                if connection.value("SELECT pg_catalog.pg_is_in_recovery()"):
                    return _Server(None, None)
                text = connection.value("SELECT pg_catalog.pg_current_wal_lsn()::pg_catalog.text")
                return _Server(Lsn.parse(str(text)), archiver_facts(connection))
        except PostgresError as error:
            self._add("warn", error.code, error.message, error.hint)
            return _Server(None, None, error.message)

    def _archive(self, said: _Server) -> str:
        """The state of archiving in one line; a failing archiver is a finding."""
        parts = []
        facts = said.archiver
        if facts is not None:
            failed, archived = facts.last_failed_at, facts.last_archived_at
            if failed is not None and (archived is None or failed > archived):
                self._add(
                    "fail",
                    "archiving-fails",
                    f"archiving fails at {facts.last_failed_file} since"
                    f" {archived or 'the beginning'}",
                    "pgrecall wal status shows why; the server's log has what the command said",
                )
                parts.append(f"fails at {facts.last_failed_file}")
            elif archived is not None:
                parts.append(f"works, last {facts.last_archived_file} at {archived:%F %T} UTC")
        elif said.error:
            parts.append("the server does not answer")
        parts += self._waiting()
        return "; ".join(parts) or "nothing was archived yet"

    def _waiting(self) -> list[str]:
        directory = self._server.data_directory
        if not directory:
            return []
        try:
            names = ready_names(directory)
        except DataDirectoryError:
            return []  # PGDATA is on another host, or another user's: nothing is said of it
        if not names:
            return ["nothing waits"]
        ages = []
        for name in names:
            try:
                facts = os.stat(f"{directory}/pg_wal/archive_status/{name}.ready")
            except OSError:
                continue  # archived meanwhile
            # In the future: the clock was set back.
            ages.append(max(0.0, time.time() - facts.st_mtime))
        oldest = f", the oldest for {max(ages):.0f} s" if ages else ""
        return [f"{len(names)} file(s) wait{oldest}"]

    def _agent(self) -> str:
        settings = self._context.settings
        try:
            pid = running_agent(agent_directory(settings, self._server))
        except AgentPlaceError as error:
            return f"cannot be told: {error.message}"
        snapshot = read_snapshot(state_directory(settings, self._server)) if pid else None
        if snapshot is not None and snapshot.pid != pid:
            snapshot = None  # an earlier agent's
        ill = ill_components(snapshot, self._now) if snapshot is not None else ()
        schedule = Timetable(settings.schedule).expressions
        is_expected = bool(schedule) or settings.receive.is_enabled
        self._findings += agent_findings(AgentSight(pid, ill), is_expected=is_expected)
        if pid is None:
            return "not running on this host"
        return f"running, pid {pid or 'unknown'}"

    def _add(self, severity: Severity, code: str, message: str, hint: str) -> None:
        self._findings.append(Finding(severity=severity, code=code, message=message, hint=hint))


def _for_server(context: RunContext, name: str) -> RunContext:
    return RunContext(
        context.settings, context, server_name=name, repository_name=context.repository_name
    )


def wanted_targets(context: RunContext) -> TargetSettings:
    """What the chosen server is held to, by [targets] and its policy."""
    settings = context.settings
    try:
        if not context.repositories:
            return settings.targets
    except SettingsError:
        return settings.targets  # no such repository: that is a finding where it is opened
    policy = policy_of(settings, context.server, main_settings(context))
    return targets_of(settings.targets, policy)


def _last_good(backups: Sequence[Completion]) -> Completion | None:
    return next((one for one in reversed(backups) if one.worst != "fail"), None)


def _line(run: RunRecord) -> RunLine:
    trigger = run.trigger
    planned: list[str] = [trigger.by] if trigger.by == "schedule" else []
    planned += ["late"] if trigger.is_late else []
    planned += [f"{trigger.missed} missed"] if trigger.missed else []
    return RunLine(
        ended_at=run.ended_at,
        command=run.command,
        outcome=run.outcome,
        duration_seconds=run.duration_seconds,
        planned=", ".join(planned),
        error_code=run.error_code,
        backup_id=run.backup_id,
        host=run.host,
        run_id=run.run_id,
    )
