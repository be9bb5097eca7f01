"""What ``recoverable`` tells: ranges, gaps and answers, as values with a versioned schema."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from pgrecall.model.findings import Finding

GapCause = Literal["missing", "damaged", "dropped", "not-received", "expired"]


class BackupMark(msgspec.Struct, frozen=True, kw_only=True):
    """A backup on a path, and where it becomes consistent (the server's clock, and an LSN)."""

    backup_id: str
    stopped_at: datetime
    stop_lsn: str


class SegmentSpan(msgspec.Struct, frozen=True, kw_only=True):
    """Segments of one timeline that follow each other without a gap, both names included."""

    timeline: int
    first: str
    last: str
    segments: int
    wal_bytes: int
    stored_bytes: int


class ReachableRange(msgspec.Struct, frozen=True, kw_only=True):
    """Moments that can be reached, without a gap. Every bound is itself a target that works.

    ``from_at`` and ``to_at`` are null, ``to_lsn`` is empty, where nothing can
    be named between the first backup's end and the end of the range: then
    ``--immediate`` is what there is. ``is_open``: no gap lies behind it; a later
    time recovers all there is. ``end_lsn``: where the last whole record ends.
    ``tail`` names the last segment when it is not whole yet: a receiver stored its
    beginning.
    """

    timeline: int
    is_open: bool
    from_at: datetime | None
    to_at: datetime | None
    from_lsn: str
    to_lsn: str
    end_lsn: str
    newest_commit_at: datetime | None
    consistent_at: datetime
    segments: tuple[SegmentSpan, ...]
    backups: tuple[BackupMark, ...]
    tail: str = ""

    @property
    def reaches_at(self) -> datetime:
        """The newest moment of the range: its last commit, or the end of the backup."""
        return self.newest_commit_at or self.to_at or self.consistent_at


class WalGap(msgspec.Struct, frozen=True, kw_only=True):
    """WAL that is not there, between WAL that is. LSNs from (inclusive) and to (exclusive).

    ``after_at`` is the last commit before the gap, ``before_at`` the first end of
    a transaction behind it, where the neighbouring segments tell. ``cause``:
    "missing" (not archived, or removed), "damaged" (archived, but no WAL from
    ``from_lsn`` on), "dropped" (given up on purpose) and "not-received" (removed by
    the server before a receiver had it): ``explanation`` says what was recorded.
    """

    timeline: int
    from_lsn: str
    to_lsn: str
    gap_bytes: int
    segments: int
    first_missing: str
    last_missing: str
    cause: GapCause
    explanation: str
    after_at: datetime | None = None
    before_at: datetime | None = None


class UnusableBackup(msgspec.Struct, frozen=True, kw_only=True):
    """A complete backup that can never become consistent: the segment ``missing`` is."""

    backup_id: str
    missing: str


class TimelinePath(msgspec.Struct, frozen=True, kw_only=True):
    """One timeline with its ancestors, as recovery follows them.

    ``is_default``: what a restore without ``--timeline`` follows. ``only_immediate``
    are backups with WAL of their own, of which nothing else is archived.
    """

    timeline: int
    path: str
    is_default: bool
    ranges: tuple[ReachableRange, ...]
    gaps: tuple[WalGap, ...]
    only_immediate: tuple[BackupMark, ...] = ()
    unusable: tuple[UnusableBackup, ...] = ()


class GenerationRanges(msgspec.Struct, frozen=True, kw_only=True):
    """The paths of one generation, by timeline; restore uses the latest unless told otherwise."""

    generation: int
    system_identifier: str
    major_version: int
    is_latest: bool
    backups: int
    paths: tuple[TimelinePath, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a moment can be reached: from which backup and WAL, or why not.

    ``segment_names`` are read in this order; ``wal_bytes`` is their raw size,
    ``stored_bytes`` what their objects take.
    """

    target: str
    is_reachable: bool
    reason: str
    hint: str = ""
    backup_id: str = ""
    timeline: int | None = None
    stops_at: str = ""
    stops_at_lsn: str = ""
    stops_at_time: datetime | None = None
    segments: int = 0
    wal_bytes: int = 0
    stored_bytes: int = 0
    segment_names: tuple[str, ...] = ()
    restore_command: str = ""


class RecoverableResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``recoverable`` prints.

    ``newest_at`` and ``newest_lsn`` are the newest moment that a restore without
    ``--timeline`` reaches: the last commit, and the end of the last record.
    """

    server: str
    repository: str
    looked_at: datetime
    newest_at: datetime | None
    newest_lsn: str
    newest_timeline: int | None
    generations: tuple[GenerationRanges, ...]
    findings: tuple[Finding, ...] = ()
    answer: Answer | None = None

    def with_answer(self, answer: Answer) -> RecoverableResult:
        """The same, with an answer."""
        return msgspec.structs.replace(self, answer=answer)
