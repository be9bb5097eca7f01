"""``server upgrade``: a new generation after pg_upgrade or a fresh initdb."""

from __future__ import annotations

import json

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.locating import LocatedServer, identify_server
from pgrecall.app.opened import OpenedRepository
from pgrecall.app.requests import UpgradeRequest
from pgrecall.errors import (
    IdentityError,
    NotOwnerError,
    PgrecallError,
    RepositoryError,
    SettingsError,
    StoreError,
)
from pgrecall.model.findings import Finding
from pgrecall.repository.identity import (
    COPY_MARKER,
    Generation,
    System,
    add_generation,
    generation_of,
    latest_generation,
    latest_owner,
    read_copy_marker,
    require_owner,
)
from pgrecall.settings import RepositorySettings
from pgrecall.system.clock import SystemClock


class GenerationStep(msgspec.Struct, frozen=True, kw_only=True):
    """What happens in one repository; ``opens`` is 0 when nothing does."""

    repository: str
    generation: int
    system_identifier: str
    major_version: int
    opens: int
    reason: str


class UpgradePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The system that runs now, and what each repository makes of it."""

    server: str
    data_directory: str
    version: str
    system_identifier: str
    segment_bytes: int
    is_running: bool
    reasons: tuple[str, ...]
    repositories: tuple[GenerationStep, ...]
    findings: tuple[Finding, ...] = ()


class UpgradeResult(msgspec.Struct, frozen=True, kw_only=True):
    """``opened`` maps repositories to the generation that was opened there."""

    plan: UpgradePlan
    server: str
    outcome: str
    opened: dict[str, int] = {}
    next: str = ""


def upgrade_server(context: RunContext, request: UpgradeRequest) -> UpgradeResult:
    """Accept the system that is there now as the server's; asks for confirmation.

    From then on its WAL and backups go to a generation of their own; those of
    the older ones stay and can be restored. When every repository knows the
    system already, nothing is done and that is said.

    Raises IdentityError (the server was never introduced, or the data directory
    is another server's), NotOwnerError (a restored copy owns the archive and
    this is not it), StoreError, RepositoryError, and the errors of connecting
    when neither server nor data directory tell who it is.
    """
    server = context.server
    located = identify_server(server, context.environment, "configured")
    opened, findings = _open(context)
    steps = [_step(one, server.name, located.system) for one in opened]
    plan = _plan(located, steps, findings)
    todo = [one for one, step in zip(opened, steps, strict=True) if step.opens]
    if not todo:
        context.approve(plan)  # shown, for nothing is asked
        why = "; ".join(f"{step.repository}: {step.reason}" for step in steps)
        return UpgradeResult(plan=plan, server=server.name, outcome=f"nothing to do ({why})")
    for one in todo:
        _require_owner(one, located)
    question = (
        f"Open a new generation of server {server.name!r} for the system "
        f"{located.system.system_identifier}?"
    )
    is_approved = context.approve(plan, question="" if request.dry_run else question)
    if request.dry_run or not is_approved:
        return UpgradeResult(plan=plan, server=server.name, outcome="nothing was changed")
    now = SystemClock().now()
    made = {
        one.settings.name: add_generation(one.store, server.name, located.system, now).number
        for one in todo
    }
    return UpgradeResult(
        plan=plan,
        server=server.name,
        outcome="opened",
        opened=made,
        next="make a full backup now: older backups cannot be carried on with the new WAL",
    )


def _open(context: RunContext) -> tuple[list[OpenedRepository], list[Finding]]:
    opened: list[OpenedRepository] = []
    findings: list[Finding] = []
    for settings in context.repositories:
        try:
            opened.append(OpenedRepository(settings, context.environment))
        except (StoreError, RepositoryError, SettingsError) as error:
            if settings.role == "required":
                raise
            findings.append(_skipped(settings, error))
    return opened, findings


def _skipped(settings: RepositorySettings, error: PgrecallError) -> Finding:
    return Finding(
        severity="warn",
        code=error.code,
        subject=settings.name,
        message=f"left out: {error.message}",
        hint=f"run the command again with --repository {settings.name} when it is back",
    )


def _step(opened: OpenedRepository, server: str, system: System) -> GenerationStep:
    latest = latest_generation(opened.store, server)
    if latest is None:
        raise IdentityError(
            f"{opened.store.name} does not know the server {server!r} yet",
            hint="introduce it with `pgrecall init`",
        )
    known = generation_of(opened.store, server, system.system_identifier)
    opens = latest.number + 1
    if latest.record() == system.record():
        opens, reason = 0, "this is the system of the latest generation"
    elif known is not None and known.record() == system.record():
        opens = 0
        reason = f"this is the system of generation {known.number}, whose WAL is still accepted"
    else:
        reason = _difference(latest, system)
    return GenerationStep(
        repository=opened.settings.name,
        generation=latest.number,
        system_identifier=str(latest.system_identifier),
        major_version=latest.major_version,
        opens=opens,
        reason=reason,
    )


def _difference(latest: Generation, system: System) -> str:
    if latest.system_identifier == system.system_identifier:
        return "the same system with another segment size (pg_resetwal) or version"
    if latest.major_version != system.major_version:
        return f"PostgreSQL {latest.major_version} became {system.major_version} (pg_upgrade)"
    return "another system of the same version (initdb)"


def _plan(
    located: LocatedServer, steps: list[GenerationStep], findings: list[Finding]
) -> UpgradePlan:
    reasons = []
    if any(step.opens for step in steps):
        reasons = [
            "WAL of a system that the archive does not know is refused until a generation is open",
            "older generations keep their backups and WAL, and can be restored",
            "if this is not the server's successor but another server: stop, and correct "
            "data_directory, host and port",
        ]
    return UpgradePlan(
        server=located.settings.name,
        data_directory=located.settings.data_directory,
        version=located.version,
        system_identifier=str(located.system.system_identifier),
        segment_bytes=located.system.segment_bytes,
        is_running=located.facts is not None,
        reasons=tuple(reasons),
        repositories=tuple(steps),
        findings=tuple(findings),
    )


def _require_owner(opened: OpenedRepository, located: LocatedServer) -> None:
    """The new system must be able to push once its generation is open."""
    server, pgdata = located.settings.name, located.settings.data_directory
    if not pgdata:
        return
    try:
        require_owner(opened.store, server, pgdata)
    except NotOwnerError as error:
        owner = latest_owner(opened.store, server)
        if owner is None or read_copy_marker(pgdata) is not None:
            raise
        marker = json.dumps({"restore_id": owner.restore_id, "server": server})
        raise NotOwnerError(
            f"the restored copy {owner.restore_id} took the archive of {server!r} over, and "
            f"{pgdata} does not say that it continues that copy: its WAL would be refused",
            hint=f"if it does (pg_upgrade of the copy), copy {COPY_MARKER} from the copy's data "
            f"directory into {pgdata}, or write it there: {marker}",
        ) from error
