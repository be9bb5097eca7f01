"""``repositories``: what each repository holds, and the 3-2-1 rule as facts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository
from pgrecall.errors import PgrecallError
from pgrecall.model.bucket_facts import BucketFacts
from pgrecall.model.damage import DamageMark
from pgrecall.model.findings import Finding, Severity
from pgrecall.model.manifest import Completion
from pgrecall.model.verifications import Verification
from pgrecall.repository.drill_log import DrillLog
from pgrecall.repository.verifications import Verifications
from pgrecall.settings import RepositorySettings
from pgrecall.store.bucket_questions import ask_bucket
from pgrecall.system.clock import SystemClock
from pgrecall.system.filesystems import filesystem_of
from pgrecall.verify.plan import ALL

_COPIES, _MEDIA, _OFFSITE = 3, 2, 1


class RepositoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One repository. ``backups`` are complete ones, ``damaged`` of them are marked.

    ``medium``: what keeps the bytes; equal ones fail together. ``is_immutable`` None: the
    store does not tell. ``last_verified_at``: when all of it was verified to the end.
    ``last_drilled_at`` None: never. ``problem``: why nothing is known of it. ``bucket``: what
    an object store tells of its protection.
    """

    name: str
    role: str
    place: str
    medium: str
    is_offsite: bool
    is_encrypted: bool | None = None
    is_immutable: bool | None = None
    backups: int = 0
    damaged: int = 0
    holds_newest: bool = False
    newest_backup_at: datetime | None = None
    last_verified_at: datetime | None = None
    last_verified_depth: str = ""
    last_verified_result: Severity | None = None
    last_drilled_at: datetime | None = None
    problem: str = ""
    bucket: BucketFacts | None = None


class BackupCopies(msgspec.Struct, frozen=True, kw_only=True):
    """One backup: the repositories that hold it whole, as far as is known, and damaged."""

    backup_id: str
    stopped_at: datetime
    whole_in: tuple[str, ...]
    damaged_in: tuple[str, ...] = ()


class Rule321(msgspec.Struct, frozen=True, kw_only=True):
    """Three copies, on two kinds of media, one off-site.

    ``copies``: the server's own data, and each repository that holds the newest backup
    whole; ``media``: theirs. ``missing``: what is to be done.
    """

    is_met: bool
    copies: int
    media: tuple[str, ...]
    offsite: tuple[str, ...]
    said: str
    missing: tuple[str, ...] = ()


class RepositoriesResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``repositories`` prints."""

    server: str
    looked_at: datetime
    rule: Rule321
    repositories: tuple[RepositoryFacts, ...]
    backups: tuple[BackupCopies, ...] = ()
    findings: tuple[Finding, ...] = ()


class _Look:
    """What one repository was found to hold."""

    def __init__(self, facts: RepositoryFacts, settings: RepositorySettings) -> None:
        self.facts = facts
        self.settings = settings
        self.complete: list[Completion] = []
        self.marks: dict[str, DamageMark] = {}

    @property
    def whole(self) -> set[str]:
        """Ids of the backups without a mark."""
        return {one.backup_id for one in self.complete} - self.marks.keys()

    @property
    def damaged(self) -> set[str]:
        """Ids of those with one."""
        return {one.backup_id for one in self.complete} & self.marks.keys()


def run_repositories(context: RunContext) -> RepositoriesResult:
    """Look into every repository of the server; reads records only, changes nothing."""
    looks = [_look(context, settings) for settings in context.repositories]
    backups = _copies(looks)
    newest = backups[-1] if backups else None
    facts = tuple(
        msgspec.structs.replace(
            look.facts, holds_newest=newest is not None and look.facts.name in newest.whole_in
        )
        for look in looks
    )
    findings = tuple(
        Finding(
            severity="fail" if one.role == "required" else "warn",
            code="repository-unknown",
            subject=one.name,
            message=one.problem,
            hint="what it holds is not counted: mend what keeps it from being read",
        )
        for one in facts
        if one.problem
    )
    return RepositoriesResult(
        server=context.server.name,
        looked_at=SystemClock().now(),
        rule=rule_321(_own_medium(context), facts),
        repositories=facts,
        backups=backups,
        findings=findings,
    )


def rule_321(own_medium: str, repositories: Sequence[RepositoryFacts]) -> Rule321:
    """Hold the facts to the rule; pure. ``own_medium``: that of the server's data, or empty."""
    holders = [one for one in repositories if one.holds_newest]
    copies = 1 + len(holders)
    media = tuple(sorted({own_medium, *(one.medium for one in holders)} - {""}))
    offsite = tuple(one.name for one in holders if one.is_offsite)
    missing = []
    if copies < _COPIES:
        count = _COPIES - copies
        missing.append(
            f"{count} more cop{'ies' if count > 1 else 'y'} of the newest backup: pgrecall copy,"
            " or copies_backups = true"
        )
    if len(media) < _MEDIA:
        missing.append("another kind of medium: another file system, or an object store")
    if len(offsite) < _OFFSITE:
        missing.append("a copy at another place (is_offsite = true says that it is)")
    said = (
        f"{copies} of {_COPIES} copies, {len(media)} of {_MEDIA} media,"
        f" {len(offsite)} of {_OFFSITE} off-site"
    )
    return Rule321(
        is_met=not missing,
        copies=copies,
        media=media,
        offsite=offsite,
        said=said,
        missing=tuple(missing),
    )


def _look(context: RunContext, settings: RepositorySettings) -> _Look:
    facts = RepositoryFacts(
        name=settings.name,
        role=settings.role,
        place=_place(settings),
        medium=_medium(settings),
        is_offsite=settings.is_offsite,
        is_immutable=False if settings.store == "local" else None,
    )
    look = _Look(facts, settings)
    try:
        opened = OpenedRepository(settings, context.environment)
        catalog = opened.catalog(context.server.name)
        look.complete = catalog.survey()[0]
        look.marks = catalog.damage.damaged()
        bucket = ask_bucket(settings, context.environment)
        verified = Verifications(opened.store, context.server.name).newest(_is_whole_look)
        drilled = DrillLog(opened.store, context.server.name).newest()
    except PgrecallError as error:
        look.complete = []
        look.facts = msgspec.structs.replace(facts, problem=error.message)
        return look
    newest = look.complete[-1] if look.complete else None
    look.facts = msgspec.structs.replace(
        facts,
        is_encrypted=opened.identity.suite != "none",
        is_immutable=bucket.is_immutable if bucket is not None else False,
        bucket=bucket,
        backups=len(look.complete),
        damaged=len(look.complete) - len(look.whole),
        newest_backup_at=newest.stopped_at if newest is not None else None,
        last_verified_at=verified.recorded_at if verified is not None else None,
        last_verified_depth=verified.depth if verified is not None else "",
        last_verified_result=verified.result if verified is not None else None,
        last_drilled_at=drilled.ended_at if drilled is not None else None,
    )
    return look


def _is_whole_look(record: Verification) -> bool:
    return record.is_complete and record.wanted == ALL


def _copies(looks: Sequence[_Look]) -> tuple[BackupCopies, ...]:
    """Every backup that is in any of them, oldest first."""
    known = {one.backup_id: one for look in looks for one in look.complete}
    whole = {look.facts.name: look.whole for look in looks}
    damaged = {look.facts.name: look.damaged for look in looks}
    ordered = sorted(known.values(), key=lambda one: (one.stopped_at, one.backup_id))
    return tuple(
        BackupCopies(
            backup_id=one.backup_id,
            stopped_at=one.stopped_at,
            whole_in=tuple(name for name, ids in whole.items() if one.backup_id in ids),
            damaged_in=tuple(name for name, ids in damaged.items() if one.backup_id in ids),
        )
        for one in ordered
    )


def _place(settings: RepositorySettings) -> str:
    if settings.store == "local":
        return settings.path
    return f"{settings.store}://{settings.bucket}/{settings.prefix}".rstrip("/")


def _medium(settings: RepositorySettings) -> str:
    if settings.store == "local":
        return _directory_medium(settings.path)
    where = settings.endpoint or settings.account or "the provider's own endpoint"
    region = f", region {settings.region}" if settings.region else ""
    return f"{settings.store} at {where}{region}"


def _own_medium(context: RunContext) -> str:
    directory = context.server.data_directory
    return _directory_medium(directory) if directory else ""


def _directory_medium(directory: str) -> str:
    try:
        kind, device = filesystem_of(os.path.realpath(directory))
    except OSError:
        return ""
    return f"{kind or 'file system'} on device {device}"
