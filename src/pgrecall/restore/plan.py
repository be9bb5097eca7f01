"""The plan of a restore: everything that is decided before a byte is written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from pgrecall.model.findings import Finding
from pgrecall.model.manifest import ManifestRoot
from pgrecall.model.targets import RecoveryTarget
from pgrecall.restore.choice import Choice
from pgrecall.restore.destination import TablespaceTarget
from pgrecall.restore.stops import PARAMETERS


class RestoreWishes(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, and where it goes.

    ``clears``: the id of an interrupted restore whose remains are in the way. ``replaces``: what
    happens to the PGDATA that is there, in words.
    """

    server: str
    repository: str
    target: RecoveryTarget
    target_dir: str
    action: str
    is_standby: bool
    takes_over: bool
    clears: str = ""
    replaces: tuple[str, ...] = ()
    keep_old: str = ""
    written_bytes: int | None = None
    leaves_out: tuple[str, ...] = ()


class RestorePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore will do, and why. LSNs as text; segments by name.

    ``keep_old``: where the PGDATA that is replaced will be, empty when none is;
    ``written_bytes``: of a delta restore, what differs; ``leaves_out``: databases that are not
    restored.
    """

    server: str
    repository: str
    backup_id: str
    backup_taken_at: datetime
    target: str
    stops_at: str
    stops_at_lsn: str
    stops_at_time: datetime | None
    timeline: int
    timeline_path: str
    first_segment: str
    last_segment: str
    wal_segments: int
    wal_bytes: int
    backup_bytes: int
    stored_bytes: int
    files: int
    target_dir: str
    tablespaces: tuple[TablespaceTarget, ...]
    archiving: str
    action: str
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    keep_old: str = ""
    written_bytes: int | None = None
    leaves_out: tuple[str, ...] = ()


def plan_restore(
    wishes: RestoreWishes,
    choice: Choice,
    root: ManifestRoot,
    tablespaces: tuple[TablespaceTarget, ...],
    *,
    segment_bytes: int,
    damaged: Sequence[Finding] = (),
) -> RestorePlan:
    """Put the decisions together; pure. ``damaged``: findings on backups left out for that."""
    backup, stop = choice.backup, choice.stop
    reasons = list(choice.reasons)
    if wishes.clears:
        reasons.append(
            f"{wishes.target_dir} holds the remains of the restore {wishes.clears}: cleared"
        )
    reasons += wishes.replaces
    if wishes.takes_over:
        archiving = "on: the restored server takes the archive over, and the old one is refused"
    else:
        archiving = "off: this is a copy (--take-over makes it the owner of the archive)"
    return RestorePlan(
        server=wishes.server,
        repository=wishes.repository,
        backup_id=backup.backup_id,
        backup_taken_at=backup.stopped_at,
        target=str(wishes.target),
        stops_at=stop.what if stop is not None else str(choice.target),
        stops_at_lsn=str(stop.lsn) if stop is not None else "",
        stops_at_time=stop.at if stop is not None else choice.survey.last_commit_at,
        timeline=choice.path.history.timeline,
        timeline_path=_path_text(choice),
        first_segment=choice.needed[0] if choice.needed else "",
        last_segment=choice.needed[-1] if choice.needed else "",
        wal_segments=len(choice.needed),
        wal_bytes=len(choice.needed) * segment_bytes,
        backup_bytes=backup.totals.raw_bytes,
        stored_bytes=backup.totals.stored_bytes,
        files=backup.totals.files,
        target_dir=wishes.target_dir,
        tablespaces=tablespaces,
        archiving=archiving,
        action="stays a standby" if wishes.is_standby else wishes.action,
        reasons=tuple(reasons),
        findings=(*damaged, *choice.findings, *_findings(root)),
        keep_old=wishes.keep_old,
        written_bytes=wishes.written_bytes,
        leaves_out=wishes.leaves_out,
    )


def needed_parameters(choice: Choice, root: ManifestRoot) -> dict[str, int]:
    """The least values that recovery accepts: pg_control's, or later ones in the WAL (fact 22)."""
    server = root.server
    return {
        name: max(int(getattr(server, name)), choice.survey.parameters.get(name, 0))
        for name in PARAMETERS
    }


def _path_text(choice: Choice) -> str:
    history = choice.path.history
    begins = choice.backup.start_lsn
    steps = []
    for switch in history.switches:
        if switch.timeline >= choice.backup.timeline:
            steps.append(f"{switch.timeline} from {begins} to {switch.end}")
            begins = str(switch.end)
    steps.append(f"{history.timeline} from {begins}")
    return ", then ".join(steps)


def _findings(root: ManifestRoot) -> list[Finding]:
    found = [finding for finding in root.findings if finding.severity == "fail"]
    return [
        Finding(
            severity="warn",
            code=f"backup-has-{finding.code}",
            subject=finding.subject,
            message=f"when this backup was taken: {finding.message}",
            hint="an older backup may hold the undamaged pages: --backup ID",
        )
        for finding in found
    ]
