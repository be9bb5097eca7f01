"""``backups list`` and ``backups show``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import main_repository
from pgrecall.model.damage import DamageMark
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import Completion, TablespaceEntry
from pgrecall.repository.retention_log import ExpiredItem, Hold, read_state
from pgrecall.system.clock import SystemClock


class BackupLine(msgspec.Struct, frozen=True):
    """One line of the list. Sizes in bytes; ``stopped_at`` is of the server's clock.

    ``damage``: the first object that a verification found damaged, and how many more; or empty.
    ``state``: empty, or ``held`` or ``expired`` with what is to be known of that.
    """

    backup_id: str
    kind: str
    stopped_at: datetime
    duration_seconds: float
    total_bytes: int
    stored_bytes: int
    timeline: int
    stop_lsn: str
    has_wal: bool
    result: str
    damage: str = ""
    state: str = ""


class BackupList(msgspec.Struct, frozen=True):
    """The complete backups of a server, oldest first; findings name those that are damaged."""

    server: str
    repository: str
    backups: tuple[BackupLine, ...]
    findings: tuple[Finding, ...] = ()


class BackupDetails(msgspec.Struct, frozen=True):
    """All that is known of one backup; ``marks``: what verifications found, oldest first."""

    backup: Completion
    version: str
    data_directory: str
    tablespaces: tuple[TablespaceEntry, ...] = ()
    findings: tuple[Finding, ...] = ()
    marks: tuple[DamageMark, ...] = ()


def list_backups(context: RunContext, *, with_expired: bool = False) -> BackupList:
    """The backups of the chosen server in its main repository, expired ones if that is asked."""
    opened = main_repository(context)
    name = context.server.name
    catalog = opened.catalog(name)
    state = read_state(opened.store, name)
    complete, findings = catalog.survey(with_expired=with_expired, state=state)
    damaged = catalog.damage.damaged()
    holds = state.active_holds(SystemClock().now())
    return BackupList(
        server=name,
        repository=opened.settings.name,
        backups=tuple(
            _line(
                backup,
                damaged.get(backup.backup_id),
                _state_of(state.expired.get(backup.backup_id), holds, backup.backup_id),
            )
            for backup in complete
        ),
        findings=tuple(findings),
    )


def show_backup(context: RunContext, backup_id: str) -> BackupDetails:
    """One backup; its manifest's root is read and checked. Raises BackupNotFoundError."""
    catalog = main_repository(context).catalog(context.server.name)
    completion = catalog.get(backup_id)
    marks = catalog.damage.all_of(backup_id)
    root = catalog.manifest(completion).root
    findings = root.findings
    if marks and marks[-1].state == "damaged":
        findings = (marks[-1].finding(), *findings)
    return BackupDetails(
        backup=completion,
        version=root.server.version,
        data_directory=root.server.data_directory,
        tablespaces=root.tablespaces,
        findings=findings,
        marks=tuple(marks),
    )


def _state_of(expired: ExpiredItem | None, holds: Mapping[str, Hold], backup_id: str) -> str:
    if expired is not None:
        return f"expired {expired.expired_at:%Y-%m-%d %H:%M} by {expired.run_id}"
    return f"held: {holds[backup_id].reason}" if backup_id in holds else ""


def _line(backup: Completion, mark: DamageMark | None, state: str) -> BackupLine:
    return BackupLine(
        backup_id=backup.backup_id,
        kind=backup.kind,
        stopped_at=backup.stopped_at,
        duration_seconds=backup.duration_seconds,
        total_bytes=backup.totals.raw_bytes,
        stored_bytes=backup.totals.stored_bytes,
        timeline=backup.timeline,
        stop_lsn=backup.stop_lsn,
        has_wal=backup.has_wal,
        result=backup.worst,
        damage=mark.brief() if mark is not None else "",
        state=state,
    )
