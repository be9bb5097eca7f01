"""The WAL archive: that backups reach their consistency and the newest moment, and its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from pgrecall.errors import CorruptObjectError, ObjectMissingError, WalMissingError
from pgrecall.model.catalog_items import WalSpan
from pgrecall.model.findings import Finding, Severity
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import PARTIAL, SEGMENT, WalFile, history_name
from pgrecall.repository import layout
from pgrecall.repository.identity import RepositoryIdentity
from pgrecall.repository.wal_archive import StoredSegment, WalArchive
from pgrecall.repository.wal_objects import WalObjectReader
from pgrecall.system.throttle import Throttle
from pgrecall.verify.plan import FAST, FULL, Depth


class WalProof(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the WAL of one generation: files and bytes looked at, what is wrong."""

    generation: int
    files: int = 0
    stored_bytes: int = 0
    findings: tuple[Finding, ...] = ()


class WalVerifier:
    """Verifies the archive of one generation, as far as ``backups`` need it."""

    def __init__(
        self,
        archive: WalArchive,
        identity: RepositoryIdentity,
        depth: Depth,
        throttle: Throttle,
        workers: int,
    ) -> None:
        self._archive = archive
        self._identity = identity
        self._depth = depth
        self._throttle = throttle
        self._workers = workers
        self._expired: tuple[WalSpan, ...] = ()

    def expect_expired(self, spans: Sequence[WalSpan]) -> None:
        """WAL in ``spans`` has expired: that it is missing is no finding."""
        self._expired = tuple(spans)

    def verify(
        self,
        backups: Sequence[Completion],
        advance: Callable[[int], None],
        *,
        is_whole: bool = False,
    ) -> WalProof:
        """Prove it from the start of the oldest backup on; ``advance`` as in BackupVerifier.

        ``is_whole``: older segments are read, too, which no backup needs.
        Raises StoreError: what cannot be listed or read is not called whole.
        """
        findings: list[Finding] = []
        histories = self._histories(backups, findings)
        starts = [] if is_whole else [Lsn.parse(backup.start_lsn) for backup in backups]
        oldest = min(starts, default=Lsn(0))
        files = list(self._files(histories, oldest))
        newest = max(
            (timeline for timeline in histories if self._archive.newest(timeline)), default=None
        )
        if newest is not None:
            findings += self._continuity(backups, histories, histories[newest])
        if self._depth != FAST:
            with ThreadPoolExecutor(self._workers, thread_name_prefix="verify-wal") as pool:
                for finding in pool.map(lambda one: self._prove(one, advance), files):
                    findings += [finding] if finding is not None else []
        return WalProof(
            generation=self._archive.generation.number,
            files=len(files),
            stored_bytes=sum(one.stored_bytes for one in files),
            findings=tuple(findings),
        )

    def _histories(
        self, backups: Sequence[Completion], findings: list[Finding]
    ) -> dict[int, TimelineHistory]:
        """All that can be read; a missing or damaged one is a finding."""
        found: dict[int, TimelineHistory] = {}
        used = {*self._archive.timelines(), *(backup.timeline for backup in backups)}
        for timeline in sorted(used):
            try:
                found[timeline] = self._archive.history(timeline)
            except (WalMissingError, CorruptObjectError) as error:
                findings.append(
                    _fail("history-missing", f"timeline {timeline}", error.message,
                          f"push pg_wal/{history_name(timeline)} of a server that has it:"
                          " until then nothing on this timeline can be reached")
                )  # fmt: skip
        return found

    def _files(self, histories: dict[int, TimelineHistory], oldest: Lsn) -> Iterator[StoredSegment]:
        """What is to be read: segments from ``oldest`` on, and the small files beside them."""
        archive = self._archive
        size = archive.segment_bytes
        for timeline in histories:
            prefix = layout.wal_prefix(archive.server, archive.generation.number, timeline)
            for info in archive.store.list(prefix):
                file = layout.parse_wal_key(info.key)[2]
                if file.kind not in (SEGMENT, PARTIAL) or file.start(size) + size > oldest:
                    yield StoredSegment(file.name, info.size)

    # --- continuity ----------------------------------------------------------------

    def _continuity(
        self,
        backups: Sequence[Completion],
        histories: dict[int, TimelineHistory],
        newest: TimelineHistory,
    ) -> Iterator[Finding]:
        """Each backup up to where it is consistent; those on the newest path on to its end."""
        looked_to = self._end_of(newest)
        latest = max(backups, key=lambda backup: backup.stopped_at, default=None)
        for backup in sorted(backups, key=lambda each: each.stopped_at, reverse=True):
            history = histories.get(backup.timeline)
            if history is None:
                continue  # said above
            start, stop = Lsn.parse(backup.start_lsn), Lsn.parse(backup.stop_lsn)
            gap = None if backup.has_wal else self._archive.first_gap(history, start, stop)
            if gap is not None:
                yield _fail(
                    "wal-missing",
                    backup.backup_id,
                    f"{gap} is not archived, and the backup is not consistent without it",
                    "push it if the server still has it; otherwise this backup is lost",
                )
            elif _leads_to(newest, backup, stop) and stop < looked_to:
                # What lies behind was looked through for a younger one.
                gap = self._first_gap(newest, stop, looked_to)
                looked_to = stop
                if gap is not None:
                    yield _gap(gap, backup.backup_id, "fail" if backup is latest else "warn")

    def _first_gap(self, history: TimelineHistory, start: Lsn, end: Lsn) -> str | None:
        """As WalArchive.first_gap, but for what has expired."""
        at = int(start)
        while at < end:
            gap = self._archive.first_gap(history, at, end)
            if gap is None:
                return None
            file = WalFile(gap)
            missing = file.start(self._archive.segment_bytes)
            ends = [
                span.end
                for span in self._expired
                if span.timeline == file.timeline and span.start <= missing < span.end
            ]
            if not ends:
                return gap
            at = max(ends)
        return None

    def _end_of(self, history: TimelineHistory) -> Lsn:
        newest = self._archive.newest(history.timeline)
        size = self._archive.segment_bytes
        return Lsn(WalFile(newest.name).start(size) + size) if newest is not None else Lsn(0)

    # --- bytes ---------------------------------------------------------------------

    def _prove(self, one: StoredSegment, advance: Callable[[int], None]) -> Finding | None:
        archive = self._archive
        key = layout.wal_key(archive.server, archive.generation.number, WalFile(one.name))
        self._throttle.take(one.stored_bytes)
        message, code = "", "wal-damaged"
        hint = (
            "recovery stops in front of it: take a backup now, and look for the segment in"
            " another repository"
        )
        try:
            with WalObjectReader(archive.store, key, self._identity.raw_key()) as stored:
                if self._depth == FULL:
                    stored.verify()
                else:
                    stored.check_stored()
                if stored.header.name != one.name:
                    message = f"{key} holds {stored.header.name}: the object was moved"
        except ObjectMissingError:
            message, code = f"{key} is gone since it was listed", "wal-missing"
            hint = "something else deletes in this repository"
        except CorruptObjectError as error:
            message = error.message
        advance(one.stored_bytes)
        return _fail(code, one.name, message, hint) if message else None


def _leads_to(newest: TimelineHistory, backup: Completion, stop: Lsn) -> bool:
    """Whether a backup lies on the path of the newest timeline, not on a branch that was left."""
    if not newest.is_ancestor_or_self(backup.timeline):
        return False
    left = newest.end_of(backup.timeline)
    return left is None or stop <= left


def _gap(gap: str, backup_id: str, severity: Severity) -> Finding:
    return Finding(
        severity=severity,
        code="wal-gap",
        subject=backup_id,
        message=f"{gap} is not archived: from this backup nothing behind it can be reached",
        hint="take a backup now, if it is not younger than the gap; `pgrecall recoverable` shows"
        " what can be reached",
    )


def _fail(code: str, subject: str, message: str, hint: str) -> Finding:
    return Finding(severity="fail", code=code, subject=subject, message=message, hint=hint)
