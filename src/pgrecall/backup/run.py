"""Take a backup of a server whose PGDATA this process can read; what all backups have in common."""

from __future__ import annotations

import grp
import logging
import os
import pwd
import threading
from array import array
from collections.abc import Callable, Iterable

import msgspec

from pgrecall.backup.comparison import compare, source_of
from pgrecall.backup.copy import CopyPool
from pgrecall.backup.copy_source import Comparison, CopySource, PageShape
from pgrecall.backup.entries import EntryWriter
from pgrecall.backup.external import external_files
from pgrecall.backup.leftover import KEPT_PACKS, Leftover, large_packs, read_leftover
from pgrecall.backup.page_check import PageInspector
from pgrecall.backup.records import LABEL, BackupTask, Taken, completion, manifest_root
from pgrecall.backup.results import CopyResults
from pgrecall.backup.scan import Scan, scan_data_directory
from pgrecall.backup.selection import CONTROL_FILE
from pgrecall.backup.units import cut_into_units
from pgrecall.backup.wal import add_wal_files, await_segments, needed_segments
from pgrecall.backup.worker import CopyWorker
from pgrecall.codec.block_digests import KIND as DIGEST_KIND
from pgrecall.errors import BackupError
from pgrecall.model.findings import Finding
from pgrecall.model.ids import BACKUP, new_id
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion, ExternalFile
from pgrecall.model.runs import ChainHead
from pgrecall.postgres.actions import archiver_facts, insert_lsn
from pgrecall.postgres.backup_session import BackupSession, BackupStart, BackupStop
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.control import read_control_bytes
from pgrecall.repository import layout
from pgrecall.repository.block_digests import DigestStore
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.manifests import ManifestWriter, StoredManifest
from pgrecall.repository.own_objects import remove_own_objects
from pgrecall.repository.pack_sink import PackFactory, PackSink
from pgrecall.repository.packs import FRAME_BYTES, PackHeader
from pgrecall.store.base import Store
from pgrecall.system.clock import Clock
from pgrecall.system.faults import reached
from pgrecall.system.progress import Progress
from pgrecall.system.throttle import Throttle

log = logging.getLogger(__name__)


class BackupTools(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is given to work with.

    ``connect`` opens a connection for a purpose; ``archive_has`` tells whether
    the WAL archive holds a segment; ``record_names`` stores what tables are called;
    ``run_heads`` tells how far the chains of run records have come.
    """

    store: Store
    connect: Callable[[str], Connection]
    archive_has: Callable[[str], bool]
    progress: Progress
    clock: Clock
    archive_timeout_seconds: float
    page_rereads: int
    record_names: Callable[[], tuple[Finding, ...]] = tuple
    run_heads: Callable[[], tuple[ChainHead, ...]] = tuple


Named = tuple[dict[int, int], tuple[str, ...]]
"""Index by number of an owner, and the names in that order."""


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of all files. ``segments``: the WAL that it needs; ``owners``: users, and groups."""

    start: BackupStart
    stop: BackupStop
    results: CopyResults
    segments: list[str]
    external: tuple[ExternalFile, ...]
    owners: tuple[Named, Named]


class BackupRun:
    """One backup, phase by phase."""

    def __init__(self, task: BackupTask, tools: BackupTools) -> None:
        self.backup_id = new_id(BACKUP, tools.clock.now())
        self._task = task
        self._tools = tools
        self._findings: list[Finding] = list(task.plan.findings)
        self._factory: PackFactory | None = None
        self._manifest: ManifestWriter | None = None
        self._digests = DigestStore(
            tools.store, task.plan.server, self.backup_id, task.identity.repository_id
        )
        base = task.base
        self._seed = base.seed if base is not None else int.from_bytes(os.urandom(8))
        self._may_exist = False
        self._comparison: Comparison | None = None
        self._leftover: Leftover | None = None

    def run(self) -> Completion:
        """Take the backup.

        When it returns, the backup exists and is durable. When it raises, the
        server holds no backup open and the catalog is as before; what the failed run
        has stored is deleted, as far as the store lets it.
        One exception: where the store took the completion record, and its answer or
        the reading back was lost, or a signal came right then, the run raises although
        a whole backup may exist under ``backup_id``: listed, and good for a restore.
        """
        try:
            return self._run()
        except BaseException:
            self._remove_stored()
            raise

    def _run(self) -> Completion:
        began = self._tools.clock.monotonic()
        # Before it starts: a reader of catalogs sets hint bits, which the checkpoint then writes.
        self._tools.progress.phase("names")
        self._findings += self._tools.record_names()
        if self._task.unfinished is not None:
            self._tools.progress.phase("unfinished")
            self._leftover = read_leftover(
                self._tools.store, self._task.unfinished, self._task.plan.workers
            )
        copied = self._take()
        results, segments = copied.results, copied.segments
        self._findings += results.findings()
        if self._task.base is not None:
            self._findings += self._task.base.findings()
        taken = Taken(
            backup_id=self.backup_id,
            start=copied.start,
            stop=copied.stop,
            findings=tuple(self._findings),
        )
        entries = EntryWriter(
            results.copied(),
            results.packs,
            self._digests.entries(),
            base=self._task.base,
            page_bytes=self._task.facts.block_bytes,
            leftover=self._leftover.packs if self._leftover is not None else (),
        )
        stored = self._store_manifest(taken, copied, entries)
        self._prove_stored(entries, stored)
        own_bytes = stored.all_bytes + self._digests.stored_bytes
        record = completion(
            self._task,
            taken,
            totals=results.totals(entries.raw_bytes, own_bytes, len(segments)),
            manifest=(stored.root_bytes, stored.root_digest, _owners(entries)),
            change_source=source_of(self._comparison),
            ended=(self._tools.clock.now(), self._tools.clock.monotonic() - began),
        )
        record = msgspec.structs.replace(record, run_heads=self._tools.run_heads())
        self._may_exist = True
        Catalog(self._tools.store, self._task.plan.server).add(record)
        reached("backup.completed")
        self._tools.progress.done()
        return record

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was noticed so far."""
        return tuple(self._findings)

    # --- phases ------------------------------------------------------------------

    def _take(self) -> Copy:
        """Copy everything, and have the WAL that it needs."""
        with (
            BackupSession(self._tools.connect("backup")) as session,
            self._tools.connect("watch") as side,
        ):
            start = self._start(session)
            scan = self._scan()
            results, stop = self._copy(session, side, start, scan)
            segments = self._needed_segments(start, stop)
            if not self._task.plan.with_wal:
                self._await_wal(session.alive, side, segments)
        external, unreadable = external_files(self._task.facts, self._task.plan.data_directory)
        self._findings += unreadable
        owners = (
            _names(scan.table.uids, lambda uid: pwd.getpwuid(uid).pw_name),
            _names(scan.table.gids, lambda gid: grp.getgrgid(gid).gr_name),
        )
        return Copy(
            start=start,
            stop=stop,
            results=results,
            segments=segments,
            external=external,
            owners=owners,
        )

    def _start(self, session: BackupSession) -> BackupStart:
        self._tools.progress.phase("start")
        plan = self._task.plan
        if plan.with_wal:
            session.reserve_wal(f"pgrecall_{self.backup_id.replace('-', '_').lower()}")
        start = session.start(LABEL, fast=plan.checkpoint == "fast")
        log.info("backup started", extra={"backup_id": self.backup_id, "start_lsn": str(start.lsn)})
        session.require_directory(plan.data_directory)
        reached("backup.started")
        return start

    def _scan(self) -> Scan:
        self._tools.progress.phase("scan")
        facts = self._task.facts
        # Two servers of one major version may share a location, not one directory in it.
        directory = f"PG_{facts.major}_{self._task.control.catalog_version}".encode()
        scan = scan_data_directory(
            self._task.plan.data_directory,
            lambda name: name == directory,
            has_summaries=facts.major >= 17,
        )
        self._findings += scan.findings
        if self._task.base is not None:
            self._task.base.match(scan.table)
        if self._leftover is not None:
            self._leftover.match(scan.table)
        reached("backup.scanned")
        return scan

    def _copy(
        self, session: BackupSession, side: Connection, start: BackupStart, scan: Scan
    ) -> tuple[CopyResults, BackupStop]:
        """Copy everything but pg_control, then that (fact 15), stop the backup, then its WAL."""
        plan, table = self._task.plan, scan.table
        self._comparison, findings = compare(self._task, start, side)
        self._findings += findings
        source = self._source(scan, start, side)
        factory = self._factory = self._pack_factory()
        self._tools.progress.phase("copy")
        self._tools.progress.start(sum(table.sizes))
        results = CopyResults(table)
        pool = CopyPool(
            source,
            factory,
            self._digests,
            workers=plan.workers,
            progress=self._tools.progress,
            watch=session.alive,
        )
        last = CopyWorker(source, PackSink(factory), self._digests)
        try:
            control = None
            files = array("I")
            for index in table.files():
                if table.path(index) == CONTROL_FILE:
                    control = index
                else:
                    files.append(index)
            if control is None:
                raise BackupError(f"{plan.data_directory} holds no global/pg_control")
            for result in pool.run(cut_into_units(files, table.sizes, FRAME_BYTES)):
                results.add(result)
            reached("backup.copied")
            last.store(control, read_control_bytes(plan.data_directory))
            stop = self._stop(session, start)
            if plan.with_wal:
                names = self._needed_segments(start, stop)
                wal = add_wal_files(table, plan.data_directory, start.timeline, names)
                for unit in cut_into_units(wal, table.sizes, FRAME_BYTES):
                    last.copy(unit)
            last.finish()
            results.add(last.result)
            results.packs = factory.finish()
        finally:
            last.close()
            factory.close()
        reached("backup.packs-stored")
        return results, stop

    def _stop(self, session: BackupSession, start: BackupStart) -> BackupStop:
        self._tools.progress.phase("stop")
        stop = session.stop(wait_for_archive=False)
        if stop.label.timeline != start.timeline:
            raise BackupError(
                f"the server went from timeline {start.timeline} to {stop.label.timeline}"
                " while it was copied",
                hint="it was promoted or restored meanwhile: run the backup again",
            )
        log.info("backup stopped", extra={"backup_id": self.backup_id, "stop_lsn": str(stop.lsn)})
        reached("backup.stopped")
        return stop

    def _await_wal(self, watch: Callable[[], None], side: Connection, segments: list[str]) -> None:
        self._tools.progress.phase("wal")
        await_segments(
            segments,
            self._tools.archive_has,
            timeout_seconds=self._tools.archive_timeout_seconds,
            watch=watch,
            archiver=lambda: archiver_facts(side),
        )
        reached("backup.wal-archived")

    def _store_manifest(self, taken: Taken, copied: Copy, entries: EntryWriter) -> StoredManifest:
        self._tools.progress.phase("manifest")
        task = self._task
        manifest = self._manifest = ManifestWriter(
            self._tools.store, task.plan.server, self.backup_id, task.identity.repository_id
        )
        (uids, owners), (gids, groups) = copied.owners
        reached("backup.manifest")
        manifest.add_files(entries.entries((uids, gids)))
        # Only now it is known which objects of older backups are needed.
        manifest.add_packs(entries.packs)
        manifest.add_digests(entries.digests)
        root = manifest_root(
            task,
            taken,
            parts=manifest.parts,
            names=(owners, groups),
            external=copied.external,
            block_digest=f"{DIGEST_KIND}:{self._seed:016x}",
        )
        stored = manifest.finish(root)
        reached("backup.manifest-stored")
        return stored

    def _prove_stored(self, entries: EntryWriter, stored: StoredManifest) -> None:
        """See every object that the backup needs in the store before anything says that it exists.

        Those of older backups too (fact 36): they may have been removed meanwhile.
        """
        server, store = self._task.plan.server, self._tools.store
        found: dict[str, int] = {}
        for owner in {self.backup_id, *_owners(entries)}:
            prefix = layout.backup_prefix(server, owner)
            found.update((info.key, info.size) for info in store.list(prefix))
        wanted = dict(stored.sizes)
        for pack in entries.packs:
            owner = pack.owner or self.backup_id
            wanted[layout.pack_key(server, owner, pack.number)] = pack.stored_bytes
        for entry in entries.digests:
            owner = entry.owner or self.backup_id
            wanted[layout.digests_key(server, owner, entry.number)] = entry.stored_bytes
        own = layout.backup_prefix(server, self.backup_id)
        for key, size in wanted.items():
            if found.get(key) == size:
                continue
            seen = f"has {found[key]} bytes there" if key in found else "is not there"
            if key.startswith(own):
                raise BackupError(
                    f"{store.name} took {key} ({size} bytes), and it {seen}",
                    hint="the store loses what it acknowledges: do not trust it with backups",
                )
            raise BackupError(
                f"{key} ({size} bytes) of an older backup is needed, and it {seen}",
                hint="run 'pgrecall verify', and take a full backup: pgrecall backup --full",
            )

    def _remove_stored(self) -> None:
        """After a failure: nobody will ever read what was stored, unless it may be a backup.

        Packs are kept, where there are several large ones: the next backup goes on from them.
        """
        if self._may_exist:
            return
        keys = self._manifest.keys if self._manifest is not None else ()
        packs = self._factory.created if self._factory is not None else {}
        if large_packs(packs.values()) >= KEPT_PACKS:
            log.warning(
                "the next backup goes on from what is stored",
                extra={"backup_id": self.backup_id, "packs": len(packs)},
            )
            packs = {}
        remove_own_objects(self._tools.store, (*keys, *packs, *self._digests.created_keys))

    # --- parts -------------------------------------------------------------------

    def _needed_segments(self, start: BackupStart, stop: BackupStop) -> list[str]:
        return needed_segments(
            start.timeline, stop.label.start_lsn, stop.lsn, self._task.facts.segment_bytes
        )

    def _source(self, scan: Scan, start: BackupStart, side: Connection) -> CopySource:
        plan, facts = self._task.plan, self._task.facts
        source = CopySource(
            os.fsencode(plan.data_directory),
            scan.table,
            self._inspector(start, side),
            PageShape(facts.block_bytes, facts.relation_segment_blocks),
            seed=self._seed,
            comparison=self._comparison,
        )
        source.throttle = Throttle(plan.bytes_per_second)
        source.leftover = self._leftover
        return source

    def _inspector(self, start: BackupStart, side: Connection) -> PageInspector | None:
        """What checks the pages of a server with checksums."""
        side_lock = threading.Lock()

        def current_insert_lsn() -> Lsn:
            with side_lock:
                return insert_lsn(side)

        if not self._task.plan.checks_pages:
            return None
        return PageInspector(
            self._task.facts.block_bytes,
            start.lsn,
            current_insert_lsn,
            rereads=self._tools.page_rereads,
        )

    def _pack_factory(self) -> PackFactory:
        plan = self._task.plan
        header = PackHeader(
            repository_id=self._task.identity.repository_id,
            server=plan.server,
            backup_id=self.backup_id,
            number=0,
        )
        return PackFactory(
            self._tools.store,
            header,
            codec=plan.compression,
            level=plan.level,
        )


def _owners(entries: EntryWriter) -> tuple[str, ...]:
    """The older backups whose objects are needed."""
    packs = {pack.owner for pack in entries.packs}
    digests = {one.owner for one in entries.digests}
    return tuple(sorted((packs | digests) - {""}))


def _names(numbers: Iterable[int], name_of: Callable[[int], str]) -> Named:
    """Index by number, and the names in that order; a number without a name stands for itself."""
    distinct = sorted(set(numbers))
    names = []
    for number in distinct:
        try:
            names.append(name_of(number))
        except KeyError:
            names.append(str(number))
    return {number: place for place, number in enumerate(distinct)}, tuple(names)
