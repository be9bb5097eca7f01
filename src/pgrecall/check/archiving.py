"""Proof that WAL reaches the repositories: switch, wait for the segment, read it back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec

from pgrecall.check.plan import is_failing
from pgrecall.errors import PgrecallError
from pgrecall.model.findings import Finding, Severity
from pgrecall.postgres.actions import ArchiverFacts
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.system.clock import Clock

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5
# PostgreSQL tries a segment three times in a row before it rests for a minute (pgarch.c).
_FAILURES_IN_A_ROW = 3
# The archiver's numbers may be half a second old: a segment that it calls archived was stored.
_SETTLE_SECONDS = 2.0


class Watched(msgspec.Struct, frozen=True):
    """One repository in which the segment is awaited; ``severity`` of its failures."""

    name: str
    archive: WalArchive
    severity: Severity


class SegmentWait:
    """Waits for one segment in several repositories.

    ``archiver`` asks the server's pg_stat_archiver; ``before`` is what it said
    before the switch. ``complaint`` finds what archive_command wrote when it failed.
    """

    def __init__(
        self,
        segment: str,
        watched: list[Watched],
        *,
        archiver: Callable[[], ArchiverFacts],
        before: ArchiverFacts,
        clock: Clock,
        complaint: Callable[[], str],
    ) -> None:
        self.segment = segment
        self._watched = watched
        self._archiver = archiver
        self._before = before
        self._clock = clock
        self._complaint = complaint

    def run(self, timeout_seconds: float) -> tuple[list[Watched], list[Finding]]:
        """Repositories that have the segment, and a finding for each that has not.

        Ends early when the archiver has failed three times in a row, or says
        that it archived the segment although a repository lacks it.
        """
        began = self._clock.monotonic()
        pause = _FIRST_PAUSE_SECONDS
        arrived: list[Watched] = []
        findings: list[Finding] = []
        missing = list(self._watched)
        claimed_at: float | None = None
        while missing:
            archiver = self._archiver()  # asked first: what it claims must be there afterwards
            for one in list(missing):
                try:
                    if one.archive.has(self.segment):
                        arrived.append(one)
                        missing.remove(one)
                except PgrecallError as error:
                    findings.append(_failed(one, error.code, error.message, error.hint))
                    missing.remove(one)
            now = self._clock.monotonic()
            if self._is_claimed(archiver) and claimed_at is None:
                claimed_at = now
            if claimed_at is not None and now - claimed_at > _SETTLE_SECONDS:
                return arrived, findings + [self._elsewhere(one) for one in missing]
            failures = archiver.failed_count - self._before.failed_count
            if failures >= _FAILURES_IN_A_ROW and is_failing(archiver):
                return arrived, findings + [self._fails(one, archiver) for one in missing]
            if now - began > timeout_seconds:
                return arrived, findings + [self._late(one, timeout_seconds) for one in missing]
            if missing:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        return arrived, findings

    def _is_claimed(self, archiver: ArchiverFacts) -> bool:
        """Whether the server says that it archived the segment, or a later one of its timeline."""
        last = archiver.last_archived_file
        is_new = archiver.archived_count > self._before.archived_count
        is_segment = len(last) == len(self.segment) and last[:8] == self.segment[:8]
        return is_new and is_segment and last >= self.segment

    def _elsewhere(self, one: Watched) -> Finding:
        return _failed(
            one,
            "archived-elsewhere",
            f"the server says that {self.segment} is archived, and it is not here",
            "archive_command stores it elsewhere, or under another configuration or server name: "
            "the finding archive-command says what it should be"
            if one.severity == "fail"
            else "this repository was not reached when the segment was pushed",
        )

    def _fails(self, one: Watched, archiver: ArchiverFacts) -> Finding:
        behind = ""
        if archiver.last_failed_file != self.segment:
            behind = f"; {self.segment} waits behind it"
        complaint = self._complaint()
        return _failed(
            one,
            "archive-command-fails",
            f"archive_command fails for {archiver.last_failed_file}{behind}"
            + (f", and says: {complaint}" if complaint else ""),
            "mend what it says; PostgreSQL tries again by itself"
            if complaint
            else "run the command by hand as the server's user, or read its message in the "
            "server's log",
        )

    def _late(self, one: Watched, seconds: float) -> Finding:
        return _failed(
            one,
            "archive-timeout",
            f"{self.segment} did not arrive within {seconds:g} seconds",
            "is there a long queue (pg_wal/archive_status/*.ready)? "
            "archive_timeout_seconds of [backup] is how long we wait",
        )


def compare_segment(one: Watched, segment: str, data_directory: str) -> Finding:
    """Read an archived segment back and compare it with the server's own file, if still there."""
    try:
        content = one.archive.read(segment)
    except PgrecallError as error:
        return _failed(one, error.code, error.message, error.hint)
    original = _original(f"{data_directory}/pg_wal/{segment}") if data_directory else None
    if original is not None and original != content:
        return _failed(
            one,
            "archived-segment-differs",
            f"{segment} reads back other than the server's own file",
            "two servers may archive into one place, or a store damages what it keeps: keep the "
            "segment in pg_wal, and look into docs/format-wal.md",
        )
    how = "equal to the server's file" if original is not None else "with the digests it had"
    return Finding(
        severity="ok",
        code="archive",
        subject=one.name,
        message=f"a forced WAL switch brought {segment} here, and it reads back {how}",
    )


def _original(path: str) -> bytes | None:
    """The segment in pg_wal; None when the server has removed or recycled it, even meanwhile."""
    try:
        with open(path, "rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            content = file.read()
        # Recycling renames the file and only then writes to it.
        return content if os.stat(path).st_ino == inode else None
    except OSError:
        return None


def _failed(one: Watched, code: str, message: str, hint: str) -> Finding:
    return Finding(severity=one.severity, code=code, subject=one.name, message=message, hint=hint)
