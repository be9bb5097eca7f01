"""``wal switch`` and ``restore-point``: done when the WAL is durable, and not before."""

from __future__ import annotations

import time
from datetime import datetime

import msgspec

from pgrecall.app.archive_wait import (
    ArchiveWait,
    archiving_problem,
    require_primary,
    server_session,
)
from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.recoverable import RecoverableSurvey, restore_words
from pgrecall.app.requests import RestorePointRequest, SwitchRequest
from pgrecall.errors import NotArchivedError, RestorePointTakenError, UsageError
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.targets import RecoveryTarget, ToLsn, ToName
from pgrecall.model.wal_index import RestorePoint
from pgrecall.postgres.actions import (
    create_restore_point,
    file_before,
    insert_lsn,
    server_clock,
    switch_quietly,
)
from pgrecall.postgres.connection import Connection
from pgrecall.repository.identity import latest_generation
from pgrecall.repository.recoverable import ArchiveSnapshot
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.reach import restore_points
from pgrecall.system.clock import SystemClock

LONGEST_NAME_BYTES = 63
"""PostgreSQL's MAXFNAMELEN without its final zero."""


class SwitchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``wal switch`` will do."""

    server: str
    insert_lsn: str
    action: str
    waits_for: tuple[str, ...]


class SwitchResult(msgspec.Struct, frozen=True, kw_only=True):
    """``segment`` is durable in every required repository; ``durable_in`` names all that have it.

    ``is_switched`` False: nothing was written since the last switch; ``segment``
    is then the last one that was finished. Empty after a dry run.
    """

    server: str
    segment: str = ""
    end_lsn: str = ""
    is_switched: bool = False
    durable_in: tuple[str, ...] = ()
    duration_seconds: float = 0.0
    message: str = ""
    findings: tuple[Finding, ...] = ()
    plan: SwitchPlan | None = None


class RestorePointPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``restore-point`` will do. ``taken_at`` are the LSNs of archived ones of this name."""

    server: str
    name: str
    action: str
    taken_at: tuple[str, ...] = ()


class RestorePointResult(msgspec.Struct, frozen=True, kw_only=True):
    """A restore point that is archived.

    ``lsn`` is what pg_create_restore_point returned: the position behind its
    record. ``is_recoverable``: a restore to it was planned, and would be granted.
    """

    server: str
    name: str
    lsn: str = ""
    created_at: datetime | None = None
    segment: str = ""
    durable_in: tuple[str, ...] = ()
    duration_seconds: float = 0.0
    is_recoverable: bool = False
    restore_command: str = ""
    findings: tuple[Finding, ...] = ()
    plan: RestorePointPlan | None = None


def switch_wal_durably(context: RunContext, request: SwitchRequest) -> SwitchResult:
    """Finish the current segment and return when every required repository has it.

    Raises ServerIsStandbyError, NotArchivedError (with the cause, as far as it can be
    found), PostgresRightsError, StoreError.
    """
    began = time.monotonic()
    server = context.server.name
    try:
        with server_session(context, "wal switch") as connection:
            wait = prepared_wait(context, connection, "it finishes no segment of its own")
            plan = SwitchPlan(
                server=server,
                insert_lsn=str(insert_lsn(connection)),
                action="finish the current segment, and wait until it is durable",
                waits_for=tuple(one.name for one in wait.required),
            )
            if not context.approve(plan):
                return SwitchResult(server=server, plan=plan)
            context.progress.phase("WAL switch")
            before = wait.before()
            switched = switch_quietly(connection)
            context.progress.phase(f"wait for {switched.file}")
            names = wait.until_durable(switched.file, before, request.timeout_seconds)
    finally:
        context.progress.done()
    message = "" if switched.is_new else "nothing was written since the last switch"
    return SwitchResult(
        server=server,
        segment=switched.file,
        end_lsn=str(switched.end),
        is_switched=switched.is_new,
        durable_in=tuple(names),
        duration_seconds=round(time.monotonic() - began, 3),
        message=message,
        findings=tuple(wait.findings),
        plan=plan,
    )


def make_restore_point(context: RunContext, request: RestorePointRequest) -> RestorePointResult:
    """Create a named restore point, and return when the archive has it.

    Raises RestorePointTakenError when one of this name is archived already, UsageError for
    a name that PostgreSQL does not take, and what ``switch_wal_durably`` raises.
    """
    began = time.monotonic()
    server, name = context.server.name, check_point_name(request.name)
    opened = main_repository(context)
    try:
        with server_session(context, "restore-point") as connection:
            wait = prepared_wait(context, connection, "restore points are made on the primary")
            plan = _point_plan(context, opened, request)
            if not context.approve(plan):
                return RestorePointResult(server=server, name=name, plan=plan)
            context.progress.phase("restore point")
            before = wait.before()
            lsn = create_restore_point(connection, name)
            created_at = server_clock(connection)
            # It is in the segment that holds its last byte; the switch sends that one off.
            file, _ = file_before(connection, lsn)
            switch_quietly(connection)
            context.progress.phase(f"wait for {file}")
            names = wait.until_durable(file, before, request.timeout_seconds)
    finally:
        context.progress.done()
    return RestorePointResult(
        server=server,
        name=name,
        lsn=str(lsn),
        created_at=created_at,
        segment=file,
        durable_in=tuple(names),
        duration_seconds=round(time.monotonic() - began, 3),
        plan=plan,
        **_way_back(context, opened, name, lsn, wait.findings, is_taken=bool(plan.taken_at)),  # type: ignore[arg-type]
    )


def check_point_name(name: str) -> str:
    """``name`` if PostgreSQL takes it for a restore point; raises UsageError."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name!a} is not valid UTF-8", hint="write the name in UTF-8") from error
    if not encoded or b"\0" in encoded or len(encoded) > LONGEST_NAME_BYTES:
        raise UsageError(
            f"{name!r} is no name of a restore point: it has {len(encoded)} bytes",
            hint=f"1 to {LONGEST_NAME_BYTES} bytes, counted in UTF-8",
        )
    return name


def prepared_wait(context: RunContext, connection: Connection, on_standby: str) -> ArchiveWait:
    """The wait, prepared; raises before anything is changed when it would be in vain."""
    require_primary(connection, context.server.name, on_standby)
    problem = archiving_problem(connection)
    if problem:
        raise NotArchivedError(
            f"{problem}: nothing would reach a repository",
            hint="turn archiving on: pgrecall wal enable; 'pgrecall check' says what is missing",
        )
    return ArchiveWait(context, connection)


def _point_plan(
    context: RunContext, opened: OpenedRepository, request: RestorePointRequest
) -> RestorePointPlan:
    taken = [point for point in _archived_points(context, opened) if point.name == request.name]
    shown = tuple(f"{point.lsn} of {point.created_at.isoformat(sep=' ')}" for point in taken)
    if taken and not request.allow_taken:
        raise RestorePointTakenError(
            f"a restore point {request.name!r} is archived already: {'; '.join(shown)}",
            hint="choose another name; with --allow-taken there are two, and a restore needs the"
            " LSN to tell them apart",
        )
    return RestorePointPlan(
        server=context.server.name,
        name=request.name,
        action="create it, finish the segment, and wait until that is durable",
        taken_at=shown,
    )


def _archived_points(context: RunContext, opened: OpenedRepository) -> list[RestorePoint]:
    """Every restore point on the newest timeline path of the archive."""
    generation = latest_generation(opened.store, context.server.name)
    if generation is None:
        return []
    snapshot = ArchiveSnapshot(WalArchive(opened.store, context.server.name, generation))
    used = snapshot.used_timelines([])
    return restore_points(snapshot, snapshot.histories()[used[-1]]) if used else []


def _way_back(
    context: RunContext,
    opened: OpenedRepository,
    name: str,
    lsn: Lsn,
    findings: list[Finding],
    *,
    is_taken: bool,
) -> dict[str, object]:
    """The command that restores to it, and whether that would be granted now."""
    # Of two with one name, PostgreSQL would stop at the first.
    target: RecoveryTarget = ToLsn(lsn, inclusive=False) if is_taken else ToName(name)
    answer = RecoverableSurvey(opened, context.server.name).answer(
        target, timeline=None, now=SystemClock().now()
    )
    found = list(findings)
    if not answer.is_reachable:
        found.append(
            Finding(
                severity="warn",
                code="not-recoverable",
                subject=name,
                message=f"it is archived, and a restore to it would be refused: {answer.reason}",
                hint=answer.hint,
            )
        )
    return {
        "is_recoverable": answer.is_reachable,
        "restore_command": restore_words(target, None),
        "findings": tuple(found),
    }
