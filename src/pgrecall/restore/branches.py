"""Timelines beside the chosen one that went on for longer: somebody should look at them."""

from __future__ import annotations

from datetime import datetime

from pgrecall.model.findings import Finding
from pgrecall.model.timelines import TimelineHistory
from pgrecall.restore.replay import ArchiveView


def later_branches(
    archive: ArchiveView, history: TimelineHistory, last_commit_at: datetime | None
) -> list[Finding]:
    """A warning for each other timeline whose last commit is later than the path's.

    After a recovery to an earlier moment that is the branch that was left. It may
    also be the server itself, going on while a promoted clone archives beside it:
    then the newest timeline is not the one that is wanted, and only a person can tell.
    """
    findings = []
    for timeline, segment in sorted(archive.newest_segments().items()):
        if timeline == history.timeline:
            continue
        index = archive.index(segment.name)
        left = history.end_of(timeline)
        goes_on = left is None or (index.last_record_lsn or 0) >= left
        if not goes_on or index.commit_times is None:
            continue
        ended_at = index.commit_times.last_at
        if last_commit_at is None or ended_at > last_commit_at:
            findings.append(
                Finding(
                    severity="warn",
                    code="later-timeline",
                    subject=f"timeline {timeline}",
                    message=f"timeline {timeline} has commits up to {ended_at.isoformat(sep=' ')},"
                    f" later than any on the chosen timeline {history.timeline}",
                    hint="if it is not the branch that an earlier recovery left, a clone archives"
                    f" beside the server: look, and choose with --timeline {timeline}",
                )
            )
    return findings
