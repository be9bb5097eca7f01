"""Decide what a backup does; pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from pgrecall.backup.leftover import Unfinished
from pgrecall.errors import (
    DataDirectoryError,
    IdentityError,
    PostgresRightsError,
    UnsupportedServerError,
)
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import BackupKind, BackupSource, Completion
from pgrecall.postgres.control import ControlData
from pgrecall.postgres.facts import ServerFacts, ServerRights

OLDEST_MAJOR = 13
SUMMARIES_MAJOR = 17


class BackupPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is going to do, and why."""

    server: str
    repository: str
    kind: BackupKind
    source: BackupSource
    base_id: str
    uses_summaries: bool
    data_directory: str
    checkpoint: str
    compression: str
    level: int
    workers: int
    bytes_per_second: int
    with_wal: bool
    checks_pages: bool
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = ()


class BaseChoice(msgspec.Struct, frozen=True):
    """The backup to go on from, or none, and why."""

    base: Completion | None
    reason: str


class BackupWishes(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for: settings and options, names of server and repository.

    ``bytes_per_second``: read at most, 0 is no limit. ``is_received``: WAL arrives by
    streaming, through a slot in use. ``data_directory`` may be unknown (empty) for a stream.
    """

    server: str
    repository: str
    data_directory: str
    checkpoint: str
    compression: str
    level: int
    workers: int
    with_wal: bool
    bytes_per_second: int = 0
    is_received: bool = False
    source: BackupSource = "local"


def plan_backup(
    wishes: BackupWishes,
    facts: ServerFacts,
    rights: ServerRights,
    control: ControlData | None,
    choice: BaseChoice,
    unfinished: Unfinished | None = None,
) -> BackupPlan:
    """The plan for a server with these facts; ``control`` is PGDATA's pg_control as read here.

    None for a stream: what the server sends is its own. ``unfinished``: backups that this one
    goes on from.

    Raises UnsupportedServerError, PostgresRightsError, IdentityError or
    DataDirectoryError when no backup can be made, with what to do.
    """
    _require_supported(wishes, facts, rights)
    if control is not None:
        _require_own_directory(wishes, facts, control)
    kind: BackupKind = "incremental" if choice.base is not None else "full"
    reasons = [f"{kind}: {choice.reason}"]
    if wishes.source == "stream":
        reasons.append(_stream_reason(facts))
    obstacle = ""
    if choice.base is not None:
        obstacle = _summaries_obstacle(wishes, facts, choice.base)
    if choice.base is not None:
        reasons.append(
            f"every file is read and compared: {obstacle}"
            if obstacle
            else "the WAL summaries tell what has changed in tables and indexes"
        )
    if unfinished is not None:
        reasons.append(
            f"goes on from {' and '.join(unfinished.backup_ids)}, interrupted: what"
            f" {len(unfinished.packs)} packs hold and the server has still is not stored again"
        )
    if wishes.with_wal:
        reasons.append("with WAL: the backup holds the WAL that it needs to become consistent")
    else:
        reasons.append("without WAL: complete when the archive holds the WAL that it needs")
    findings = []
    if not facts.has_checksums:
        findings.append(
            Finding(
                severity="warn",
                code="page-checksums-off",
                subject=wishes.server,
                message="the server keeps no page checksums: damaged pages cannot be noticed",
                hint="stop the server and run pg_checksums --enable",
            )
        )
    return BackupPlan(
        server=wishes.server,
        repository=wishes.repository,
        kind=kind,
        source=wishes.source,
        base_id=choice.base.backup_id if choice.base is not None else "",
        uses_summaries=choice.base is not None and not obstacle,
        data_directory=wishes.data_directory,
        checkpoint=wishes.checkpoint,
        compression=wishes.compression,
        level=wishes.level,
        workers=wishes.workers,
        bytes_per_second=wishes.bytes_per_second,
        with_wal=wishes.with_wal,
        checks_pages=facts.has_checksums,
        reasons=tuple(reasons),
        findings=tuple(findings),
    )


def choose_base(
    backups: Sequence[Completion],
    generation: int,
    now: datetime,
    *,
    wants_full: bool,
    full_days: int,
) -> BaseChoice:
    """The backup that the next one goes on from: the newest of this generation.

    ``backups``: the complete ones of the server, oldest first; ``full_days``: a full one is taken
    when the newest full one is so old; 0: never for that reason.
    """
    if wants_full:
        return BaseChoice(None, "asked for")
    usable = [backup for backup in backups if backup.generation == generation]
    if not usable:
        reason = "there is no backup of this system yet"
        return BaseChoice(None, reason if not backups else f"{reason}, only of an earlier one")
    fulls = [backup.stopped_at for backup in usable if backup.kind == "full"]
    if full_days and (not fulls or now - max(fulls) >= timedelta(days=full_days)):
        return BaseChoice(None, f"the newest full backup is {full_days} days old, or older")
    return BaseChoice(usable[-1], f"what has changed since {usable[-1].backup_id}")


def _stream_reason(facts: ServerFacts) -> str:
    spaces = len(facts.tablespaces)
    what = "its data directory" + (f" and {spaces} tablespaces" if spaces else "")
    who = "the server, a standby," if facts.is_in_recovery else "the server"
    return f"stream: {who} sends {what} through a replication session, nothing is read here"


def holds_base(backups: Sequence[Completion], generation: int, *, full_days: int) -> bool:
    """Whether ``backups``, the newest of a server, are all that ``choose_base`` needs to know."""
    kinds = {backup.kind for backup in backups if backup.generation == generation}
    return "full" in kinds or (bool(kinds) and not full_days)


def _summaries_obstacle(wishes: BackupWishes, facts: ServerFacts, base: Completion) -> str:
    """Why the WAL summaries cannot tell what has changed since ``base``; empty: they may."""
    if wishes.source == "stream":
        return "the server sends everything, what is the same is not stored again"
    if facts.major < SUMMARIES_MAJOR:
        return f"PostgreSQL {facts.major} keeps no WAL summaries, {SUMMARIES_MAJOR} is the first"
    if facts.settings.get("summarize_wal") != "on":
        return "summarize_wal is off"
    if facts.timeline != base.timeline:
        return f"the server went from timeline {base.timeline} to {facts.timeline} since"
    return ""


def _require_supported(wishes: BackupWishes, facts: ServerFacts, rights: ServerRights) -> None:
    if facts.major < OLDEST_MAJOR:
        raise UnsupportedServerError(
            f"PostgreSQL {facts.version} is older than {OLDEST_MAJOR}",
            hint="upgrade the server; it gets no more corrections of its own either",
        )
    if wishes.source == "local":
        _require_local(wishes, facts, rights)
    elif not rights.can_replicate:
        raise PostgresRightsError(
            f"the role {rights.role!r} may not stream a backup",
            hint=f'ALTER ROLE "{rights.role}" REPLICATION, and a line for the database replication'
            " in pg_hba.conf, see docs/rights.md",
        )
    if facts.wal_level == "minimal":
        raise UnsupportedServerError(
            "the server writes too little WAL for a backup (wal_level=minimal)",
            hint="set wal_level to replica and restart the server",
        )
    if wishes.with_wal:
        if not rights.can_replicate:
            raise PostgresRightsError(
                f"the role {rights.role!r} may not reserve WAL for a backup with its WAL",
                hint=f'ALTER ROLE "{rights.role}" REPLICATION, or leave --with-wal out',
            )
    elif facts.archive_mode == "off" and not wishes.is_received and not facts.is_in_recovery:
        raise UnsupportedServerError(
            "the server does not archive WAL (archive_mode=off), and nobody receives it:"
            " a backup could never become consistent",
            hint="turn archiving on ('pgrecall wal enable'), run 'pgrecall wal receive',"
            " or take this one backup with --with-wal",
        )


def _require_local(wishes: BackupWishes, facts: ServerFacts, rights: ServerRights) -> None:
    if facts.is_in_recovery:
        raise UnsupportedServerError(
            f"the server {wishes.server!r} is in recovery (a standby)",
            hint="take the backup from its primary, or stream it: --source stream",
        )
    if not rights.can_backup:
        raise PostgresRightsError(
            f"the role {rights.role!r} may not start a backup",
            hint=f'GRANT EXECUTE on the backup functions to "{rights.role}", see docs/rights.md',
        )


def _require_own_directory(wishes: BackupWishes, facts: ServerFacts, control: ControlData) -> None:
    if control.system_identifier != facts.system_identifier:
        raise IdentityError(
            f"{wishes.data_directory} holds the system {control.system_identifier},"
            f" the server at port {facts.settings.get('port', '?')} is {facts.system_identifier}",
            hint="correct data_directory, host or port in the server's settings",
        )
    if control.is_stopped:
        raise DataDirectoryError(
            f"{wishes.data_directory} says that its server is stopped, yet one answers:"
            " it is a copy of the server's data directory, not the directory itself",
            hint="set data_directory to what SHOW data_directory prints",
        )
