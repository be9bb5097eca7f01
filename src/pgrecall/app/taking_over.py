"""A restored copy takes the archive over: recorded in every repository, then its WAL is pushed."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository
from pgrecall.errors import PgrecallError, WalConflictError, WalFormatError
from pgrecall.model.findings import Finding
from pgrecall.model.wal_files import SEGMENT, WalFile, history_name
from pgrecall.repository.identity import add_owner, latest_owner, require_generation
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.configuration import AUTO_CONF
from pgrecall.restore.recovery_settings import lift_isolation
from pgrecall.system.durable import write_durable
from pgrecall.wal.push import push_file


class TakeOver(msgspec.Struct, frozen=True, kw_only=True):
    """Who owns the archive now: ``repositories`` have it on record, ``pushed`` are the files
    of the new timeline that the copy had not archived."""

    restore_id: str
    timeline: int
    repositories: tuple[str, ...]
    pushed: tuple[str, ...] = ()
    settings_lifted: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def owners(context: RunContext) -> dict[str, str]:
    """Repository to owner in words; raises StoreError, RepositoryError for required ones."""
    found = {}
    for settings in context.repositories:
        try:
            opened = OpenedRepository(settings, context.environment)
            owner = latest_owner(opened.store, context.server.name)
        except PgrecallError as error:
            if settings.role == "required":
                raise
            found[settings.name] = f"unknown ({error.message})"
        else:
            found[settings.name] = owner.restore_id if owner else ""
            found[settings.name] = found[settings.name] or "the original server"
    return found


def record_owner(
    context: RunContext, *, restore_id: str, timeline: int, now: datetime
) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    """Record the copy as owner in every repository of the server; durable when it returns.

    All required ones are opened before the first is written. One of best effort
    that fails becomes a finding. Returns the names that have it, and the findings.
    """
    opened: list[OpenedRepository] = []
    findings: list[Finding] = []
    for settings in context.repositories:
        try:
            opened.append(OpenedRepository(settings, context.environment))
        except PgrecallError as error:
            if settings.role == "required":
                raise
            findings.append(_not_recorded(settings.name, error))
    names = []
    for repository in opened:
        try:
            add_owner(
                repository.store,
                context.server.name,
                restore_id=restore_id,
                timeline=timeline,
                now=now,
            )
        except PgrecallError as error:
            if repository.settings.role == "required":
                raise
            findings.append(_not_recorded(repository.settings.name, error))
        else:
            names.append(repository.settings.name)
    return tuple(names), tuple(findings)


def give_back(
    context: RunContext, *, taken_by: str, to: str, timeline: int, now: datetime
) -> list[Finding]:
    """Record that the archive belongs to ``to`` again, wherever ``taken_by`` has taken it over.

    ``to`` is a restore id, or empty: the original server. What cannot be written is a
    finding: the data is back in any case.
    """
    findings = []
    for settings in context.repositories:
        try:
            store = OpenedRepository(settings, context.environment).store
            owner = latest_owner(store, context.server.name)
            if owner is not None and owner.restore_id == taken_by:
                add_owner(store, context.server.name, restore_id=to, timeline=timeline, now=now)
        except PgrecallError as error:
            findings.append(
                Finding(
                    severity="warn",
                    code="owner-not-recorded",
                    subject=settings.name,
                    message="whether the archive belongs to the old server again is not known in"
                    f" {settings.name}: {error.message}",
                    hint="if its pushes are refused there, run the same pgrecall undo again",
                )
            )
    return findings


def refuse_other_timeline(
    context: RunContext, restore_id: str, timeline: int, system_identifier: int
) -> None:
    """Raise WalConflictError when somebody else's timeline of this number is archived (fact 29).

    Two copies that were promoted at one record have equal history files: what
    tells them apart is who pushed them.
    """
    for settings in context.repositories:
        if settings.role != "required":
            continue
        store = OpenedRepository(settings, context.environment).store
        server = context.server.name
        generation = require_generation(store, server, system_identifier, "the copy")
        archive = WalArchive(store, server, generation)
        newest = archive.newest(timeline)
        names = [history_name(timeline), *([newest.name] if newest else [])]
        for name in names:
            if not archive.has(name) or archive.writer(name) == restore_id:
                continue
            raise WalConflictError(
                f"another server's timeline {timeline} is in {settings.name} already: the copy"
                f" {restore_id} was promoted to the same number beside it",
                hint="restore the moment once more: the new copy gets a timeline of its own",
            )


def push_own_wal(context: RunContext, pgdata: str, timeline: int, current: str) -> tuple[str, ...]:
    """Push what the new owner wrote while it did not archive: its history file, then its
    complete segments (those before ``current``), as far as pg_wal still holds them."""
    pushed = []
    directory = os.path.join(pgdata, "pg_wal")
    names = sorted(os.listdir(directory))
    histories = [history_name(timeline)] if history_name(timeline) in names else []
    segments = [name for name in names if _is_segment_of(name, timeline) and name < current]
    for name in (*histories, *segments):
        push_file(
            context.settings,
            context.server,
            os.path.join(directory, name),
            pgdata=pgdata,
            environment=context.environment,
        )
        pushed.append(name)
    return tuple(pushed)


def lift_isolation_of(pgdata: str, now: datetime) -> tuple[str, ...]:
    """Let the copy's own settings count again after its next start; returns their names."""
    path = Path(pgdata, AUTO_CONF)
    text, lifted = lift_isolation(path.read_bytes().decode("utf-8", "surrogateescape"), now=now)
    if lifted:
        mode = path.stat().st_mode & 0o777
        write_durable(str(path), [text.encode("utf-8", "surrogateescape")], mode=mode)
    return lifted


def _is_segment_of(name: str, timeline: int) -> bool:
    try:
        file = WalFile(name)
    except WalFormatError:
        return False  # archive_status, summaries, files being recycled
    return file.kind == SEGMENT and file.timeline == timeline


def _not_recorded(name: str, error: PgrecallError) -> Finding:
    return Finding(
        severity="warn",
        code="owner-not-recorded",
        subject=name,
        message=f"the new owner is not on record in {name}: {error.message}",
        hint="run pgrecall recovery promote --take-over again when it is back",
    )
