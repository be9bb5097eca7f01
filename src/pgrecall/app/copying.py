"""``copy``: backups and WAL of a server from one repository to another."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import msgspec

from pgrecall.app.context import RunContext, Surroundings
from pgrecall.app.journalling import RunEnd, write_run
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository
from pgrecall.app.requests import CopyRequest
from pgrecall.codec.compression import FrameEncoder, make_frame_encoder
from pgrecall.errors import CopyFailedError, PgrecallError, UsageError
from pgrecall.model.findings import Finding, Severity, worst
from pgrecall.model.ids import RUN, new_id
from pgrecall.model.runs import RunFacts
from pgrecall.settings import RepositorySettings
from pgrecall.system.clock import SystemClock
from pgrecall.system.memory import keep_freed_memory
from pgrecall.system.throttle import Throttle
from pgrecall.verify.copy_plan import CopyPlan
from pgrecall.verify.copy_run import WAL_ONLY, CopiedBackup, CopyProof, CopyRun, CopyTask
from pgrecall.verify.plan import ALL
from pgrecall.verify.transfer import Side, Transfer


class CopyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``copy`` prints; after a dry run there is only the plan.

    ``result`` is the gravest severity: a fail is something that was not copied.
    """

    plan: CopyPlan
    duration_seconds: float = 0.0
    result: Severity = "ok"
    wal_files: int = 0
    wal_bytes: int = 0
    records: int = 0
    backups: tuple[CopiedBackup, ...] = ()
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        copied = sum(one.copied_bytes for one in self.backups) + self.wal_bytes
        only = self.backups[0].backup_id if len(self.backups) == 1 else ""
        return RunFacts(outcome=self.result, stored_bytes=copied, backup_id=only)


def run_copy(context: RunContext, request: CopyRequest) -> CopyResult:
    """Copy what ``request.target`` lacks from ``request.source``; nothing is replaced there.

    Raises UsageError, BackupNotFoundError, IdentityError, RepositoryError, StoreError; what
    was copied until then stays, and is not copied again.
    """
    keep_freed_memory()
    if request.source == request.target:
        raise UsageError(
            f"--from and --to both name {request.source!r}", hint="name two repositories"
        )
    clock = SystemClock()
    began = clock.monotonic()
    source, target = (
        OpenedRepository(context.settings.repository(name), context.environment)
        for name in (request.source, request.target)
    )
    task = CopyTask(
        server=context.server.name,
        wanted=WAL_ONLY if request.wal_only else request.backup_id or ALL,
        workers=copy_workers(context),
        now=clock.now(),
    )
    transfer = make_transfer(context, side_of(source), side_of(target))
    run = CopyRun(task, transfer, context.progress)
    try:
        plan = run.plan()
        if not context.approve(plan):
            return CopyResult(plan=plan)
        with using(context, source, "verify"), using(context, target, "backup"):
            proof: CopyProof = run.run()
    finally:
        context.progress.done()
    return CopyResult(
        plan=plan,
        duration_seconds=round(clock.monotonic() - began, 3),
        result=worst(list(proof.findings)),
        wal_files=proof.wal_files,
        wal_bytes=proof.wal_bytes,
        records=proof.records,
        backups=proof.backups,
        findings=proof.findings,
    )


def copy_everywhere(context: RunContext, backup_id: str, source: str) -> list[Finding]:
    """Copy a backup that was just made to every repository with ``copies_backups``.

    Each copy is a run of its own in the journal. What fails is a finding: a failure for
    a required repository, a warning for a best-effort one.
    """
    findings: list[Finding] = []
    if context.repository_name is not None:
        return findings  # the one that was named, and no other
    for settings in context.settings.repositories_of(context.server):
        if settings.copies_backups and settings.name != source:
            findings += _copy_to(context, settings, backup_id, source)
    return findings


def side_of(opened: OpenedRepository) -> Side:
    """A repository as one side of a copy."""
    return Side(opened.settings.name, opened.store, opened.identity)


def make_transfer(context: RunContext, source: Side, target: Side) -> Transfer:
    """What brings objects from one to the other, as [copy] and [wal] say."""
    wal = context.settings.wal

    def make_encode() -> FrameEncoder:
        return make_frame_encoder(wal.compression, wal.level)

    return Transfer(source, target, Throttle(context.settings.copy.bytes_per_second), make_encode)


def copy_workers(context: RunContext) -> int:
    """The threads of a copy."""
    return context.settings.copy.workers or 2 * (os.cpu_count() or 1)


def _copy_to(
    context: RunContext, settings: RepositorySettings, backup_id: str, source: str
) -> list[Finding]:
    own = _run_of_its_own(context)
    started_at = datetime.now(UTC)
    request = CopyRequest(backup_id=backup_id, source=source, target=settings.name)
    try:
        result = run_copy(own, request)
    except PgrecallError as error:
        write_run(own, RunEnd("copy", started_at, error=error))
        return [_failed(settings, backup_id, error.message)]
    status = CopyFailedError.exit_status if result.result == "fail" else 0
    write_run(own, RunEnd("copy", started_at, status=status, result=result))
    failed = [one.message for one in result.findings if one.severity == "fail"]
    return [_failed(settings, backup_id, "; ".join(failed))] if failed else []


def _run_of_its_own(context: RunContext) -> RunContext:
    surroundings = Surroundings(
        environment=context.environment,
        progress=context.progress,
        run_id=new_id(RUN, datetime.now(UTC)),
        approve=_approved,
    )
    return RunContext(context.settings, surroundings, server_name=context.server.name)


def _approved(plan: msgspec.Struct, *, question: str = "") -> bool:
    """The backup was approved, and copying it is set."""
    del plan, question
    return True


def _failed(settings: RepositorySettings, backup_id: str, message: str) -> Finding:
    return Finding(
        severity="fail" if settings.role == "required" else "warn",
        code=CopyFailedError.code,
        subject=settings.name,
        message=f"backup {backup_id} is complete, and not in repository {settings.name!r}:"
        f" {message}",
        hint=f"when that is mended: pgrecall copy {backup_id} --from ... --to {settings.name}",
    )
