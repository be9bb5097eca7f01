"""Copy a server's backups and WAL from one repository to another, phase by phase.

Nothing is copied without being proven by its digests on the way. What is there is
skipped, so that a copy that ended early goes on where it was. A backup's completion
record is written last, when everything that it refers to is seen there: killed at any
point, no half of a backup is visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice
from typing import TypeVar

import msgspec

from pgrecall.errors import (
    CorruptObjectError,
    ObjectMissingError,
    RepositoryError,
    WalMissingError,
)
from pgrecall.model.catalog_items import WalSpan
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion, PackEntry
from pgrecall.model.wal_files import SEGMENT, WalFile, history_name
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.documents import unsealed
from pgrecall.repository.dump_catalog import AnyCompletion, DumpCatalog
from pgrecall.repository.identity import Generation
from pgrecall.repository.origins import accepted_ids, add_origins
from pgrecall.repository.retention_log import RetentionState, read_state
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.store.base import ObjectInfo, Store
from pgrecall.system.faults import reached
from pgrecall.system.progress import Progress
from pgrecall.verify.copy_plan import BackupToCopy, CopyPlan, RecordToCopy, backup_to_copy, missing
from pgrecall.verify.copy_records import (
    agreed_generations,
    copy_record,
    differing_records,
    name_maps_to_copy,
    records_to_copy,
)
from pgrecall.verify.copy_sets import sets_to_copy
from pgrecall.verify.objects import (
    BackupObjects,
    Document,
    backup_objects,
    open_pack,
    read_document,
)
from pgrecall.verify.plan import ALL, chosen_backups, chosen_dumps
from pgrecall.verify.transfer import Transfer

MEMORY_BYTES = 512 << 20
"""What the packs in hand of all threads together may take."""

WAL_ONLY = "wal"
_SMALLEST_PACK = 1 << 20
_BATCH = 1000

_Item = TypeVar("_Item", ObjectInfo, RecordToCopy)


class CopyTask(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be copied: ``wanted`` is the id of a backup, ``all``, or ``wal``."""

    server: str
    wanted: str = ALL
    workers: int
    now: datetime


class CopiedBackup(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that is complete in the target now; ``copied_bytes`` of it were missing there."""

    backup_id: str
    objects: int
    copied_bytes: int


class CopyProof(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a copy."""

    backups: tuple[CopiedBackup, ...] = ()
    wal_files: int = 0
    wal_bytes: int = 0
    records: int = 0
    findings: tuple[Finding, ...] = ()


class CopyRun:
    """One copy of one server. ``plan`` comes first; it lists, and reads manifests."""

    def __init__(self, task: CopyTask, transfer: Transfer, progress: Progress) -> None:
        self._task = task
        self._transfer = transfer
        self._source, self._target = transfer.source, transfer.target
        self._progress = progress
        self._catalog = Catalog(self._source.store, task.server)
        self._theirs = Catalog(self._target.store, task.server)
        self._findings: list[Finding] = []
        self._generations: list[Generation] = []
        self._chosen: list[AnyCompletion] = []
        self._candidates: list[AnyCompletion] = []
        self._wal_bytes = 0
        self._retained = RetentionState()
        self._hidden: tuple[WalSpan, ...] = ()

    # --- what is to be done ------------------------------------------------------------

    def plan(self) -> CopyPlan:
        """What the target lacks.

        Raises BackupNotFoundError, IdentityError, RepositoryError, StoreError.
        """
        source, target, server = self._source, self._target, self._task.server
        if source.identity.repository_id == target.identity.repository_id:
            raise RepositoryError(
                f"repositories {source.name!r} and {target.name!r} are the same one",
                hint="look at their path, bucket and prefix",
            )
        self._progress.phase("plan")
        self._generations = agreed_generations(source, target, server)
        self._findings += differing_records(source, target, server)
        complete = {one.backup_id for one in self._theirs.survey()[0]}
        complete |= {one.backup_id for one in DumpCatalog(target.store, server).survey()[0]}
        self._retained = read_state(target.store, server)
        self._hidden = read_state(source.store, server).wal + self._retained.wal
        self._candidates = self._kept_there(self._usable())
        self._chosen = [one for one in self._candidates if one.backup_id not in complete]
        backups = tuple(self._plan_backup(one) for one in self._chosen)
        wal_files = wal_bytes = 0
        for info in self._missing_wal():
            wal_files += 1
            wal_bytes += info.size
        self._wal_bytes = wal_bytes
        return CopyPlan(
            server=server,
            source=source.name,
            target=target.name,
            complete=len(self._candidates) - len(self._chosen),
            backups=backups,
            wal_files=wal_files,
            wal_bytes=wal_bytes,
            records=sum(
                1
                for each in (name_maps_to_copy, records_to_copy)
                for _ in each(source, target, server)
            ),
            total_bytes=sum(one.left_bytes for one in backups) + wal_bytes,
            findings=tuple(self._findings),
        )

    def _usable(self) -> list[AnyCompletion]:
        """The backups and dumps of the source that are wanted and not known to be damaged."""
        wanted = self._task.wanted
        if wanted == WAL_ONLY:
            return []
        backups, problems = self._catalog.usable()
        dumps, more = DumpCatalog(self._source.store, self._task.server).survey()
        problems += more
        if wanted == ALL:
            self._findings += problems
            return [*backups, *dumps]
        problems = [one for one in problems if one.subject == wanted]
        self._findings += problems
        if problems:
            return []
        return [*chosen_backups(backups, wanted), *chosen_dumps(dumps, wanted)]

    def _kept_there(self, backups: Sequence[AnyCompletion]) -> list[AnyCompletion]:
        """Without those that have expired in the target: it keeps by its own rules."""
        kept = [one for one in backups if self._retained.is_listed(one.backup_id)]
        if self._task.wanted not in (ALL, WAL_ONLY) and not kept and backups:
            said = f"it has expired in repository {self._target.name!r}"
            self._findings.append(_not_copied(self._task.wanted, said))
        return kept

    def _plan_backup(self, backup: AnyCompletion) -> BackupToCopy:
        try:
            sizes = backup_objects(self._catalog, backup).sizes
        except (CorruptObjectError, ObjectMissingError):
            sizes = {}  # said when it is copied
        present = self._present(sizes)
        return backup_to_copy(backup.backup_id, sizes, present)

    def _present(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """What the target lists of these objects; those of older backups, too."""
        prefixes = {key.rpartition("/")[0] + "/" for key in sizes}
        return {
            info.key: info.size
            for prefix in sorted(prefixes)
            for info in self._target.store.list(prefix)
            if info.key in sizes
        }

    def _missing_wal(self) -> Iterator[ObjectInfo]:
        """Files that the target lacks: all, or for one backup those without which it is nothing.

        Listed anew at each call, side by side: a million names are never held.
        """
        if self._task.wanted in (ALL, WAL_ONLY):
            for generation in self._generations:
                yield from self._missing_timelines(generation)
            return
        for backup in self._candidates:
            for key in self._needed_wal(backup) if isinstance(backup, Completion) else ():
                here, there = self._source.store.head(key), self._target.store.head(key)
                if there is None and here is not None:
                    yield here

    def _missing_timelines(self, generation: Generation) -> Iterator[ObjectInfo]:
        server, number = self._task.server, generation.number
        source, target = self._source.store, self._target.store
        for child in source.children(layout.wal_prefix(server, number)):
            timeline = layout.timeline_of_directory(child)
            if timeline is not None:
                prefix = layout.wal_prefix(server, number, timeline)
                for info in missing(source.list(prefix), target.list(prefix)):
                    if not self._is_hidden(generation, info.key):
                        yield info

    def _is_hidden(self, generation: Generation, key: str) -> bool:
        """Whether a segment has expired in either repository."""
        file = layout.parse_wal_key(key)[2]
        if not self._hidden or file.kind != SEGMENT:
            return False
        start, size = file.start(generation.segment_bytes), generation.segment_bytes
        return any(
            (span.generation, span.timeline) == (generation.number, file.timeline)
            and span.start <= start
            and start + size <= span.end
            for span in self._hidden
        )

    def _needed_wal(self, backup: Completion) -> Iterator[str]:
        """Keys of the history and of the segments up to where the backup is consistent."""
        generation = next(one for one in self._generations if one.number == backup.generation)
        archive = WalArchive(self._source.store, self._task.server, generation)
        names = [history_name(backup.timeline)] if backup.timeline > 1 else []
        try:
            history = archive.history(backup.timeline)
        except (WalMissingError, CorruptObjectError):
            return  # what it lacks in the source a verification tells
        stop = Lsn.parse(backup.stop_lsn)
        for name in archive.path(history, Lsn.parse(backup.start_lsn)):
            if WalFile(name).start(generation.segment_bytes) >= stop:
                break
            names.append(name)
        for name in names:
            yield layout.wal_key(self._task.server, generation.number, WalFile(name))

    # --- doing it ----------------------------------------------------------------------

    def run(self) -> CopyProof:
        """Carry the plan out. Damage of the source becomes findings, and is not copied.

        Raises StoreError: what was copied stays, and is not copied again.
        """
        origins = accepted_ids(self._source.store, self._source.identity)
        own = self._target.identity.repository_id
        add_origins(self._target.store, origins - {own}, self._task.now)
        self._progress.phase("records")
        server = self._task.server
        # One after the other: a record whose map is not there would hide it from the next copy.
        source, target = self._source, self._target
        maps = self._each(name_maps_to_copy(source, target, server), self._copy_record)
        reached("copy.name-maps")
        records = self._each(records_to_copy(source, target, server), self._copy_record)
        self._progress.phase("WAL")
        self._progress.start(self._wal_bytes)
        wal = self._each(self._missing_wal(), self._copy_wal)
        self._progress.phase("backups")
        copied = [self._copy_backup(backup) for backup in self._chosen]
        sets = sets_to_copy(source.store, target.store, server)
        taken = self._each(iter(sets), self._copy_record)
        return CopyProof(
            backups=tuple(one for one in copied if one is not None),
            wal_files=wal[0],
            wal_bytes=wal[1],
            records=maps[0] + records[0] + taken[0],
            findings=tuple(self._findings),
        )

    def _each(self, items: Iterable[_Item], copy: Callable[[_Item], int]) -> tuple[int, int]:
        """Copy each with the threads, some thousand at a time; how many were, and their bytes."""

        def attempt(item: _Item) -> int | Finding:
            try:
                return copy(item)
            except ObjectMissingError as error:
                return _not_copied(item.key, f"it is gone since it was listed: {error.message}")
            except RepositoryError as error:
                return _not_copied(item.key, error.message)

        count = copied_bytes = 0
        left = iter(items)
        with ThreadPoolExecutor(self._task.workers, thread_name_prefix="copy") as pool:
            while batch := list(islice(left, _BATCH)):
                for result in pool.map(attempt, batch):
                    if isinstance(result, Finding):
                        self._findings.append(result)
                    else:
                        count += 1
                        copied_bytes += result
        return count, copied_bytes

    def _copy_record(self, record: RecordToCopy) -> int:
        copy_record(self._transfer, self._task.server, record)
        reached("copy.record")
        return record.size

    def _copy_wal(self, info: ObjectInfo) -> int:
        stored_bytes = self._transfer.wal(info.key)
        self._progress.advance(info.size)
        reached("copy.wal")
        return stored_bytes or 0

    def _copy_backup(self, backup: AnyCompletion) -> CopiedBackup | None:
        """Packs, lists, the root, and when all of it is there the completion record."""
        try:
            objects = backup_objects(self._catalog, backup)
            present = self._present(objects.sizes)
            left = {key: one for key, one in objects.packs.items() if key not in present}
            left_bytes = sum(entry.stored_bytes for entry in left.values())
            self._progress.start(left_bytes)
            self._copy_packs(left)
            for document in objects.documents:
                self._copy_document(backup, document, is_present=document.key in present)
            reached("copy.manifest")
            self._require_present(objects)
            self._complete(backup)
        except (RepositoryError, ObjectMissingError) as error:
            self._findings.append(_not_copied(backup.backup_id, error.message))
            return None
        return CopiedBackup(
            backup_id=backup.backup_id,
            objects=len(objects.sizes) + 1,
            copied_bytes=left_bytes,
        )

    def _complete(self, backup: AnyCompletion) -> None:
        """Write the completion record: from here on the backup exists in the target."""
        key = layout.complete_key(self._task.server, backup.backup_id)
        data = self._source.store.read(key)
        unsealed(key, data)
        reached("copy.complete")
        if not self._transfer.bytes(key, data) and self._target.store.read(key) != data:
            raise _other_content(key, self._target.name)

    def _copy_packs(self, left: Mapping[str, PackEntry]) -> None:
        def copy(pair: tuple[str, PackEntry]) -> None:
            self._transfer.pack(*pair, self._progress.advance)
            reached("copy.pack")

        workers = _workers(self._task.workers, self._target.store, left)
        with ThreadPoolExecutor(workers, thread_name_prefix="copy-packs") as pool:
            for _ in pool.map(copy, left.items()):
                pass

    def _copy_document(
        self, backup: AnyCompletion, document: Document, *, is_present: bool
    ) -> None:
        own = layout.backup_prefix(self._task.server, backup.backup_id)
        if is_present and not document.key.startswith(own):
            return  # block digests of an older backup: their size is looked at with the rest
        if not is_present and self._transfer.document(document):
            return
        # Found there: from a copy that ended early, or from a stranger.
        try:
            read_document(self._target.store, document)
        except CorruptObjectError as error:
            raise _other_content(document.key, self._target.name) from error

    def _require_present(self, objects: BackupObjects) -> None:
        """Look at everything once more, as the target lists it, before the backup exists there.

        Of packs that were found there header and footer are read: that it is the same pack.
        """
        sizes = objects.sizes
        present = self._present(sizes)
        for key, size in sizes.items():
            if key not in present:
                raise RepositoryError(
                    f"{key} is gone from repository {self._target.name!r} since it was copied",
                    hint="something deletes there; copy again",
                )
            if present[key] != size:
                raise _other_content(key, self._target.name)
        with ThreadPoolExecutor(self._task.workers, thread_name_prefix="copy-proof") as pool:
            for _ in pool.map(self._prove_same, objects.packs.items()):
                pass

    def _prove_same(self, pair: tuple[str, PackEntry]) -> None:
        try:
            open_pack(self._target.store, *pair).close()
        except CorruptObjectError as error:
            raise _other_content(pair[0], self._target.name) from error


def _workers(wanted: int, target: Store, packs: Mapping[str, PackEntry]) -> int:
    """So many that the packs in hand stay within MEMORY_BYTES, where a store holds them."""
    if not target.reads_whole:
        return wanted
    largest = max((entry.stored_bytes for entry in packs.values()), default=0)
    return max(1, min(wanted, MEMORY_BYTES // max(largest, _SMALLEST_PACK)))


def _not_copied(subject: str, message: str) -> Finding:
    return Finding(
        severity="fail",
        code="not-copied",
        subject=subject,
        message=f"not copied: {message}",
        hint="pgrecall verify tells what is damaged in either repository, and repair heals what the"
        " other one holds",
    )


def _other_content(key: str, target: str) -> RepositoryError:
    return RepositoryError(
        f"{key} in repository {target!r} is not what the source holds; it was not replaced",
        hint=f"is it damaged there? pgrecall repair --repository {target}",
    )
