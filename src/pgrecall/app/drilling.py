"""``drill``: restore into a throwaway server, examine it, keep the evidence, clean up."""

from __future__ import annotations

import random
import socket
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from pgrecall import __version__
from pgrecall.app.context import RunContext
from pgrecall.app.drilling_dumps import DumpDrill, DumpDrilled, DumpDrillPlan
from pgrecall.app.opened import main_repository
from pgrecall.app.recoverable import run_recoverable
from pgrecall.app.requests import DrillRequest, RecoverableRequest, RestoreRequest
from pgrecall.app.restoring import RestoreResult, run_restore
from pgrecall.app.starting import Started
from pgrecall.drill.examination import Examination, Examined
from pgrecall.drill.place import drill_place, remove_abandoned
from pgrecall.drill.sql_checks import SqlCheck, find_checks
from pgrecall.errors import PgrecallError, TargetUnreachableError
from pgrecall.model.drills import DrillRecord, DrillSeconds
from pgrecall.model.findings import Finding, worst
from pgrecall.model.ids import DRILL, new_id
from pgrecall.model.runs import RunFacts
from pgrecall.model.targets import Immediate, Latest, RecoveryTarget, ToTime, parse_time
from pgrecall.postgres.client_tools import find_client_tools
from pgrecall.repository.drill_log import DrillLog
from pgrecall.restore.plan import RestorePlan
from pgrecall.system.clock import SystemClock

_DATA = "data"


class DrillResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``drill`` prints; ``drill`` is absent after a dry run."""

    plan: RestorePlan
    drill: DrillRecord | None = None
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        record = self.drill
        took = record.seconds if record is not None else None
        return RunFacts(
            outcome=worst(list(self.findings)),
            backup_id=self.plan.backup_id,
            raw_bytes=self.plan.backup_bytes,
            rto_seconds=took.restore + took.recovery if took is not None else None,
        )


class DumpDrillResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``drill`` of a dump prints; ``drill`` is absent after a dry run."""

    plan: DumpDrillPlan
    drill: DrillRecord | None = None
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=worst(list(self.findings)), backup_id=self.plan.backup_id)


def drill_dump(context: RunContext, request: DrillRequest) -> DumpDrillResult:
    """Drill a dump: load all of it into a new server, and hold it to what was dumped.

    The record is durable when this returns; of a drill that fails, too, which raises.
    """
    settings, server = context.settings.drill, context.server
    directory = settings.directory or tempfile.gettempdir()
    checks = find_checks(settings.checks, server.database)
    findings = remove_abandoned(directory)
    dump_drill = DumpDrill(context, main_repository(context), request.backup_id)
    plan = dump_drill.plan(directory)
    if not context.approve(plan):
        return DumpDrillResult(plan=plan)
    drill = _Drill(context, request, None, checks)
    with drill_place(directory) as place:
        try:
            shown = dump_drill.run(place, checks)
        except PgrecallError as error:
            drill.keep(drill.failed(error))
            raise
    record = drill.record_of_dump(plan, shown, findings)
    drill.keep(record)
    context.progress.done()
    return DumpDrillResult(plan=plan, drill=record, findings=record.findings)


def run_drill(context: RunContext, request: DrillRequest) -> DrillResult:
    """Drill the chosen server's restore; the record is durable when this returns.

    Nothing of production is touched: no WAL switch, an isolated copy, a directory of its own that
    is removed in the end. A drill that fails leaves a record, too, and raises what made it fail.
    """
    settings, server = context.settings.drill, context.server
    directory = settings.directory or tempfile.gettempdir()
    checks = find_checks(settings.checks, server.database)
    findings = remove_abandoned(directory)
    target = _target(context, settings.at)
    drill = _Drill(context, request, target, checks)
    with drill_place(directory) as place:
        try:
            restored = run_restore(context, drill.restore_request(place))
            if restored.started is None:
                return DrillResult(plan=restored.plan)
            examined = drill.examine(restored.started, restored)
        except PgrecallError as error:
            if not request.dry_run:
                drill.keep(drill.failed(error))
            raise
    record = drill.record(restored, restored.started, examined, findings)
    drill.keep(record)
    context.progress.done()
    return DrillResult(plan=restored.plan, drill=record, findings=record.findings)


class _Drill:
    def __init__(
        self,
        context: RunContext,
        request: DrillRequest,
        target: RecoveryTarget | None,
        checks: list[SqlCheck],
    ) -> None:
        """``target`` None: a dump is loaded, which has just its own moment."""
        self._context = context
        self._request = request
        self._target = target
        self._checks = checks
        self._clock = SystemClock()
        self._started_at = self._clock.now()
        self._began = self._clock.monotonic()
        self._id = new_id(DRILL, self._started_at)

    def restore_request(self, place: Path) -> RestoreRequest:
        """What is restored: beside production, which is left alone."""
        assert self._target is not None
        return RestoreRequest(
            target=self._target,
            backup_id=self._request.backup_id,
            target_dir=str(place / _DATA),
            start=True,
            switch_wal=False,
            dry_run=self._request.dry_run,
        )

    def examine(self, started: Started, restored: RestoreResult) -> Examined:
        """Look at the copy that runs."""
        context = self._context
        context.progress.phase("examine")
        copy = context.server.replace(
            host=started.socket_directory, port=started.port, data_directory=restored.restored_to
        )
        programs = find_client_tools(
            int(Path(restored.restored_to, "PG_VERSION").read_text()),
            configured=context.server.bin_directory,
            data_directory=restored.restored_to,
        )
        examination = Examination(
            copy,
            programs,
            context.environment,
            amcheck=context.settings.drill.amcheck,
            checks=self._checks,
        )
        return examination.run()

    def record(
        self,
        restored: RestoreResult,
        started: Started,
        examined: Examined,
        findings: list[Finding],
    ) -> DrillRecord:
        """The evidence of a drill that came to its end."""
        seconds = DrillSeconds(
            restore=restored.restore_seconds,
            recovery=started.recovery_seconds,
            checks=examined.seconds,
            total=round(self._clock.monotonic() - self._began, 3),
        )
        wanted = self._context.settings.targets.rto_seconds
        all_findings = [*findings, *restored.findings, *examined.findings]
        took = seconds.restore + seconds.recovery
        if wanted and took > wanted:
            all_findings.append(
                Finding(
                    severity="fail",
                    code="rto-missed",
                    message=f"the restore took {took:.0f} s, and the target is {wanted:.0f} s",
                    hint="take backups more often (less WAL to replay), or raise restore.workers",
                )
            )
        return msgspec.structs.replace(
            self._head(restored.plan.backup_id),
            result=worst(all_findings),
            version_num=examined.version_num,
            timeline=started.timeline,
            replayed_to=started.replayed_to,
            last_commit_at=started.last_commit_at,
            restored_bytes=restored.plan.backup_bytes,
            seconds=seconds,
            rto_target_seconds=wanted,
            databases=examined.databases,
            checks=examined.checks,
            findings=tuple(all_findings),
        )

    def record_of_dump(
        self, plan: DumpDrillPlan, shown: DumpDrilled, findings: list[Finding]
    ) -> DrillRecord:
        """The evidence of a dump's drill that came to its end."""
        examined = shown.examined
        all_findings = [*findings, *shown.findings, *examined.findings]
        return msgspec.structs.replace(
            self._head(plan.backup_id),
            result=worst(all_findings),
            version_num=examined.version_num,
            restored_bytes=plan.total_bytes,
            seconds=DrillSeconds(
                restore=shown.load_seconds,
                recovery=0.0,
                checks=examined.seconds,
                total=round(self._clock.monotonic() - self._began, 3),
            ),
            databases=examined.databases,
            checks=examined.checks,
            findings=tuple(all_findings),
        )

    def failed(self, error: PgrecallError) -> DrillRecord:
        """The evidence of a drill that did not."""
        return msgspec.structs.replace(
            self._head(self._request.backup_id), error_code=error.code, message=error.message
        )

    def keep(self, record: DrillRecord) -> None:
        """Store the record. Raises StoreError."""
        opened = main_repository(self._context)
        DrillLog(opened.store, record.server).add(record)

    def _head(self, item_id: str) -> DrillRecord:
        """What is known of every drill; until more is known, it has failed."""
        return DrillRecord(
            drill_id=self._id,
            run_id=self._context.run_id,
            server=self._context.server.name,
            host=socket.gethostname(),
            item_id=item_id,
            target=str(self._target) if self._target is not None else "the dump's snapshot",
            started_at=self._started_at,
            ended_at=self._clock.now(),
            result="fail",
            tool_version=__version__,
        )


def _target(context: RunContext, at: str) -> RecoveryTarget:
    """What ``drill.at`` means now; raises UsageError, TargetUnreachableError."""
    if at == "latest":
        return Latest()
    if at == "immediate":
        return Immediate()
    if at == "random":
        return ToTime(random_moment(context))
    return ToTime(parse_time(at))


def random_moment(context: RunContext) -> datetime:
    """Any moment that a restore without further options reaches, each as likely as the others."""
    found = run_recoverable(context, RecoverableRequest())
    spans: list[tuple[datetime, float]] = []
    for generation in found.generations:
        if not generation.is_latest:
            continue
        for path in generation.paths:
            if path.is_default:
                spans += [
                    (one.from_at, (one.to_at - one.from_at).total_seconds())
                    for one in path.ranges
                    if one.from_at is not None and one.to_at is not None
                ]
    if not spans:
        raise TargetUnreachableError(
            "no moment can be reached by time: nothing was committed behind a backup yet",
            hint="drill the newest state: pgrecall drill --at latest",
        )
    place = random.SystemRandom().uniform(0, sum(length for _, length in spans))
    for begin, length in spans:
        if place <= length:
            return (begin + timedelta(seconds=place)).astimezone(UTC)
        place -= length
    begin, length = spans[-1]
    return (begin + timedelta(seconds=length)).astimezone(UTC)
