"""The WAL archive: that backups reach their consistency and the newest moment, and its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from pgrecall.errors import CorruptObjectError, ObjectMissingError, WalMissingError
from pgrecall.model.catalog_items import WalSpan
from pgrecall.model.damage import DamagedObject
from pgrecall.model.findings import Finding, Severity
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import PARTIAL, SEGMENT, WalFile, history_name
from pgrecall.repository import layout
from pgrecall.repository.identity import RepositoryIdentity
from pgrecall.repository.wal_archive import StoredSegment, WalArchive
from pgrecall.repository.wal_objects import WalObjectReader
from pgrecall.store.base import Store
from pgrecall.system.faults import reached
from pgrecall.system.throttle import Throttle
from pgrecall.verify.plan import FAST, FULL, Depth

# Of the missing segments of one gap so many are looked for at once.
_MOST_MISSING = 10_000


class WalProof(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the WAL of one generation: files and bytes looked at, what is wrong.

    ``through``: of each timeline, the last file before which all were read and are whole.
    ``damage``: files that are damaged, or missing where a backup needs them.
    """

    generation: int
    files: int = 0
    stored_bytes: int = 0
    through: dict[int, str] = {}
    is_done: bool = False
    damage: tuple[DamagedObject, ...] = ()
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
        self._findings: list[Finding] = []
        self._damage: list[DamagedObject] = []
        self._through: dict[int, str] = {}
        self._broken: set[int] = set()
        self._files = 0
        self._bytes = 0
        self._is_done = False
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
        skips: Mapping[int, str] | None = None,
    ) -> WalProof:
        """Prove it from the start of the oldest backup on; ``advance`` as in BackupVerifier.

        ``is_whole``: older segments are read, too, which no backup needs. ``skips``: of a
        timeline, the name up to which all files were proven before.
        Raises StoreError: then ``so_far`` has what is known.
        """
        histories = self._histories(backups)
        starts = [] if is_whole else [Lsn.parse(backup.start_lsn) for backup in backups]
        oldest = min(starts, default=Lsn(0))
        self._through = dict(skips or {})
        newest = max(
            (timeline for timeline in histories if self._archive.newest(timeline)), default=None
        )
        if newest is not None:
            self._findings += self._continuity(backups, histories, histories[newest])
        files = list(self._listed(histories, oldest))
        if self._depth == FAST:
            self._files = len(files)
            self._bytes = sum(one.stored_bytes for one in files)
        else:
            self._read(files, advance)
        self._is_done = True
        return self.so_far()

    def so_far(self) -> WalProof:
        """What is known, whether or not the verification came to its end."""
        return WalProof(
            generation=self._archive.generation.number,
            files=self._files,
            stored_bytes=self._bytes,
            through=self._through,
            is_done=self._is_done,
            damage=tuple(self._damage),
            findings=tuple(self._findings),
        )

    def _read(self, files: Sequence[StoredSegment], advance: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(self._workers, thread_name_prefix="verify-wal") as pool:
            proofs = pool.map(lambda one: self._prove(one, advance), files)
            for one, damage in zip(files, proofs, strict=True):
                self._files += 1
                self._bytes += one.stored_bytes
                timeline = WalFile(one.name).timeline
                if damage is not None:
                    self._damage.append(damage)
                    self._findings.append(_damaged(damage, one.name))
                    self._broken.add(timeline)
                elif timeline not in self._broken:
                    self._through[timeline] = one.name
                reached("verify.wal")

    def _histories(self, backups: Sequence[Completion]) -> dict[int, TimelineHistory]:
        """All that can be read; a missing or damaged one is a finding."""
        found: dict[int, TimelineHistory] = {}
        used = {*self._archive.timelines(), *(backup.timeline for backup in backups)}
        for timeline in sorted(used):
            try:
                found[timeline] = self._archive.history(timeline)
            except (WalMissingError, CorruptObjectError) as error:
                name = history_name(timeline)
                self._damage.append(self._object(name, "history-missing", error.message))
                hint = (
                    f"pgrecall repair looks for it in other repositories; or push pg_wal/{name} of"
                    " a server that has it: until then nothing on this timeline can be reached"
                )
                subject = f"timeline {timeline}"
                self._findings.append(_fail("history-missing", subject, error.message, hint))
        return found

    def _listed(
        self, histories: dict[int, TimelineHistory], oldest: Lsn
    ) -> Iterator[StoredSegment]:
        """What is to be read: segments from ``oldest`` on, and the small files beside them."""
        archive = self._archive
        size = archive.segment_bytes
        for timeline in histories:
            prefix = layout.wal_prefix(archive.server, archive.generation.number, timeline)
            named = (
                (layout.parse_wal_key(one.key)[2], one.size) for one in archive.store.list(prefix)
            )
            # By name, which is not the order of keys: what comes behind ``through`` was not read.
            for file, stored_bytes in sorted(named, key=lambda pair: pair[0].name):
                is_proven = file.name <= self._through.get(timeline, "")
                is_needed = file.kind not in (SEGMENT, PARTIAL) or file.start(size) + size > oldest
                if is_needed and not is_proven:
                    yield StoredSegment(file.name, stored_bytes)

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
                self._note_missing(history, start, stop, "wal-missing")
                yield _fail(
                    "wal-missing",
                    backup.backup_id,
                    f"{gap} is not archived, and the backup is not consistent without it",
                    "pgrecall repair looks for it in other repositories; or push it if the server"
                    " still has it: otherwise this backup is lost",
                )
            elif _leads_to(newest, backup, stop) and stop < looked_to:
                # What lies behind was looked through for a younger one.
                gap = self._first_gap(newest, stop, looked_to)
                if gap is not None:
                    self._note_missing(newest, stop, looked_to, "wal-gap")
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

    def _note_missing(self, history: TimelineHistory, start: Lsn, end: Lsn, code: str) -> None:
        """Name every segment that is missing in a range, so that it can be looked for elsewhere."""
        size = self._archive.segment_bytes
        known = {one.key for one in self._damage}
        for _ in range(_MOST_MISSING):
            name = self._first_gap(history, start, end)
            if name is None:
                return
            one = self._object(name, code, f"{name} is not archived")
            self._damage += [one] if one.key not in known else []
            start = Lsn(WalFile(name).start(size) + size)
            if start >= end:
                return

    def _object(self, name: str, code: str, message: str) -> DamagedObject:
        archive = self._archive
        key = layout.wal_key(archive.server, archive.generation.number, WalFile(name))
        return DamagedObject(key=key, code=code, message=message)

    # --- bytes ---------------------------------------------------------------------

    def _prove(self, one: StoredSegment, advance: Callable[[int], None]) -> DamagedObject | None:
        archive = self._archive
        key = layout.wal_key(archive.server, archive.generation.number, WalFile(one.name))
        self._throttle.take(one.stored_bytes)
        message, code = "", "wal-damaged"
        try:
            check_wal_object(archive.store, key, self._identity, is_full=self._depth == FULL)
        except ObjectMissingError:
            message, code = f"{key} is gone since it was listed", "wal-missing"
        except CorruptObjectError as error:
            message = error.message
        advance(one.stored_bytes)
        return DamagedObject(key=key, code=code, message=message) if message else None


def check_wal_object(
    store: Store, key: str, identity: RepositoryIdentity, *, is_full: bool
) -> None:
    """Raise CorruptObjectError, ObjectMissingError unless a stored WAL file is whole.

    ``is_full``: it is decompressed, too. Tails, which lie elsewhere, have two names.
    """
    with WalObjectReader(store, key, identity.raw_key()) as stored:
        if is_full:
            stored.verify()
        else:
            stored.check_stored()
        if not key.endswith("/" + stored.header.name):
            raise CorruptObjectError(f"{key} holds {stored.header.name}: the object was moved")


def _damaged(damage: DamagedObject, name: str) -> Finding:
    hint = (
        "recovery stops in front of it: pgrecall repair looks for it in other repositories;"
        " where there is none, take a backup now"
    )
    if damage.code == "wal-missing":
        hint = "something else deletes in this repository"
    return _fail(damage.code, name, damage.message, hint)


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
