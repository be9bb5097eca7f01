"""How an incremental backup finds what has changed: by the WAL summaries, or by reading all."""

from __future__ import annotations

import logging
from typing import Literal

from pgrecall.backup.copy_source import Comparison
from pgrecall.backup.records import BackupTask
from pgrecall.backup.summaries import SummaryGapError, Window, read_changes
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.actions import summarizer_lsn
from pgrecall.postgres.backup_session import BackupStart
from pgrecall.postgres.connection import Connection

log = logging.getLogger(__name__)

ChangeSource = Literal["", "summaries", "digests"]

# A summarizer that stands still for so long is not waited for any longer.
_PATIENCE_SECONDS = 30.0


def compare(
    task: BackupTask, start: BackupStart, side: Connection
) -> tuple[Comparison | None, list[Finding]]:
    """What the backup goes by, which has begun at ``start``; None for a full one.

    Waits for the server's summarizer. Where the summaries do not reach, all files are read, and
    a finding says why.
    """
    base = task.base
    if base is None:
        return None, []
    plain = Comparison(base)
    if not task.plan.uses_summaries:
        return plain, []
    reason = ""
    before = base.manifest.root.server.data_checksums
    if before != task.control.data_checksum_version:
        # pg_checksums --enable rewrites all pages, and writes no WAL.
        reason = "data checksums were switched since the base"
    elif start.timeline != base.completion.timeline:
        reason = f"the base is of timeline {base.completion.timeline}, now it is {start.timeline}"
    else:
        window = Window(start.timeline, Lsn.parse(base.completion.start_lsn), start.lsn)
        try:
            changes = read_changes(
                task.plan.data_directory,
                window,
                task.facts.relation_segment_blocks,
                progress=lambda: summarizer_lsn(side),
                patience_seconds=_PATIENCE_SECONDS,
            )
        except SummaryGapError as error:
            reason = str(error)
        else:
            is_exact = task.control.data_checksum_version != 0
            return Comparison(base, changes, start.lsn, is_exact=is_exact), []
    return plain, [_finding(task.plan.server, reason)]


def source_of(comparison: Comparison | None) -> ChangeSource:
    """What the completion record says of it."""
    if comparison is None:
        return ""
    return "digests" if comparison.changes is None else "summaries"


def _finding(server: str, reason: str) -> Finding:
    return Finding(
        severity="warn",
        code="summaries-not-used",
        subject=server,
        message=f"every file was read, because the WAL summaries cannot be used: {reason}",
        hint="nothing is missing in the backup; wal_summary_keep_time must be longer than the time"
        " between two backups",
    )
