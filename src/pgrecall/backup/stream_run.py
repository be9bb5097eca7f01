"""Take a backup that the server streams: BASE_BACKUP, straight into packs (docs/sources.md)."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable

import msgspec

from pgrecall.backup.copy_source import Comparison, PageShape
from pgrecall.backup.plan import BackupPlan
from pgrecall.backup.records import LABEL, BackupTask
from pgrecall.backup.results import CopyResults
from pgrecall.backup.run import BackupRun, BackupTools, Copy, Named
from pgrecall.backup.selection import CONTROL_FILE, COPY_MARKER
from pgrecall.backup.stream_manifest import FileFacts, ManifestProof
from pgrecall.backup.stream_members import LABEL_FILE, MAP_FILE, StreamMembers, is_left_out
from pgrecall.backup.stream_pool import StreamPool
from pgrecall.backup.stream_table import StreamTable, find
from pgrecall.backup.stream_worker import StreamSource
from pgrecall.codec.crc import crc32c
from pgrecall.errors import (
    ArchiveTimeoutError,
    BackupError,
    DataDirectoryError,
    IdentityError,
    WalMissingError,
)
from pgrecall.model.file_table import DIRECTORY, FileTable
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import ExternalFile
from pgrecall.postgres.actions import server_clock
from pgrecall.postgres.backup_session import BackupStart, BackupStop, parse_label
from pgrecall.postgres.base_backup import BaseBackupSession, StreamEnd, StreamStart
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.control import parse_control
from pgrecall.repository.pack_sink import PackFactory
from pgrecall.system.faults import reached
from pgrecall.system.throttle import Throttle

log = logging.getLogger(__name__)

_WATCH_SECONDS = 5.0
# What PostgreSQL writes as owner into its archives, whoever runs it.
_OWNER = "postgres"


class StreamTools(msgspec.Struct, frozen=True, kw_only=True):
    """What a streamed backup is given besides.

    ``connect`` opens the replication session; ``require_writer`` raises unless the server, or the
    restored copy of this id, owns the archive; ``external`` reads configuration outside PGDATA.
    """

    connect: Callable[[], BaseBackupSession]
    require_writer: Callable[[str | None], None]
    restore_id: Callable[[bytes], str]
    external: Callable[[Connection], tuple[tuple[ExternalFile, ...], list[Finding]]]


class StreamRun(BackupRun):
    """One streamed backup: BackupRun with another way to take the copy."""

    def __init__(self, task: BackupTask, tools: BackupTools, stream: StreamTools) -> None:
        super().__init__(task, tools)
        self._stream = stream

    def _take(self) -> Copy:
        task = self._task
        with self._stream.connect() as session, self._tools.connect("watch") as side:
            start, begun = self._begin(session, side)
            arrival = self._arrival(start, side)
            try:
                end = self._receive(session, side, begun, arrival)
            finally:
                arrival.close()
            self._judge_pages(session, end, arrival.results)
            stop = self._stop_of(arrival.members, start, end, side)
            self._learn(arrival.members)
            segments = self._needed_segments(start, stop)
            if task.plan.with_wal:
                _require_wal(segments, arrival.members.wal_files)
            else:
                self._await_archived(side, segments)
            external, unreadable = self._stream.external(side)
        self._findings += unreadable
        self._require_configuration(arrival.arranged, external)
        return Copy(
            start=start,
            stop=stop,
            results=arrival.results,
            segments=segments,
            external=external,
            owners=(_owners(arrival.arranged.uids), _owners(arrival.arranged.gids)),
        )

    # --- phases ------------------------------------------------------------------

    def _begin(
        self, session: BaseBackupSession, side: Connection
    ) -> tuple[BackupStart, StreamStart]:
        self._tools.progress.phase("start")
        plan, facts = self._task.plan, self._task.facts
        system = session.identify()
        if system.system_identifier != facts.system_identifier:
            raise IdentityError(
                f"{session.where} is system {facts.system_identifier} in one session and"
                f" {system.system_identifier} in the next",
                hint="host and port must be those of one server, not of a load balancer",
            )
        if plan.with_wal:
            session.reserve_wal(f"pgrecall_{self.backup_id.replace('-', '_').lower()}")
        started_at = server_clock(side)
        begun = session.begin(LABEL, fast=plan.checkpoint == "fast", with_wal=plan.with_wal)
        found = {space.oid for space in begun.spaces if space.oid is not None}
        if found != {space.oid for space in facts.tablespaces}:
            raise BackupError(
                "a tablespace was made or dropped while the backup began",
                hint="run the backup again",
            )
        log.info("backup started", extra={"backup_id": self.backup_id, "start_lsn": str(begun.lsn)})
        reached("backup.started")
        return BackupStart(begun.lsn, begun.timeline, started_at), begun

    def _arrival(self, start: BackupStart, side: Connection) -> _Arrival:
        task, plan = self._task, self._task.plan
        self._tools.progress.phase("copy")
        factory = self._factory = self._pack_factory()
        table = StreamTable(task.base)
        if task.base is not None:
            self._comparison = Comparison(task.base)
        source = StreamSource(
            task.base,
            self._inspector(start, side),
            PageShape(task.facts.block_bytes, task.facts.relation_segment_blocks),
            self._seed,
        )
        pool = StreamPool(
            source,
            factory,
            self._digests,
            workers=plan.workers,
            progress=self._tools.progress,
        )
        return _Arrival(plan, table, pool, factory, StreamMembers(table, pool, start.timeline))

    def _receive(
        self, session: BaseBackupSession, side: Connection, begun: StreamStart, arrival: _Arrival
    ) -> StreamEnd:
        self._tools.progress.start(sum(space.size_bytes for space in begun.spaces))
        arrival.watch = self._watch(side, arrival)
        end = session.stream(begun, arrival, arrival.watch)
        arrival.prove()
        reached("backup.stopped")
        log.info("backup stopped", extra={"backup_id": self.backup_id, "stop_lsn": str(end.lsn)})
        if self._task.base is not None:
            self._task.base.match(arrival.arranged)
        reached("backup.packs-stored")
        return end

    def _watch(self, side: Connection, arrival: _Arrival) -> Callable[[], None]:
        """Notices within seconds that a worker has failed, or that the session for SQL is lost."""
        due = 0.0

        def watch() -> None:
            nonlocal due
            now = self._tools.clock.monotonic()
            if now >= due:
                due = now + _WATCH_SECONDS
                arrival.pool.collect()
                side.ping()

        return watch

    def _judge_pages(
        self, session: BaseBackupSession, end: StreamEnd, results: CopyResults
    ) -> None:
        """Every page that the server found bad was seen here, since nobody reads it again."""
        name = self._task.plan.server
        if end.has_bad_pages and not results.bad_blocks():
            self._findings.append(
                Finding(
                    severity="fail",
                    code="corrupt-pages",
                    subject=name,
                    message="the server says that page checksums failed while it sent its files;"
                    " in what has come, all are right",
                    hint="look into the server's log, it names the pages",
                )
            )
        self._findings += [
            Finding(severity="warn", code="server-warning", subject=name, message=said)
            for said in session.warnings
        ]

    def _stop_of(
        self, members: StreamMembers, start: BackupStart, end: StreamEnd, side: Connection
    ) -> BackupStop:
        if LABEL_FILE not in members.contents:
            raise BackupError("the server sent no backup_label")
        label = parse_label(members.contents[LABEL_FILE].decode())
        if not start.timeline == label.timeline == end.timeline:
            raise BackupError(
                f"the server went from timeline {label.timeline} to {end.timeline} while it was"
                " copied, or since its last restartpoint",
                hint="run the backup again; on a standby, after a CHECKPOINT there",
            )
        if label.start_lsn != start.lsn:
            raise BackupError(f"the server began at {start.lsn}, its label says {label.start_lsn}")
        return BackupStop(
            lsn=end.lsn,
            label=label,
            tablespace_map=members.contents.get(MAP_FILE, b"").decode(),
            stopped_at=server_clock(side),
        )

    def _learn(self, members: StreamMembers) -> None:
        """Whose data directory it is, and what its pg_control says."""
        if CONTROL_FILE not in members.contents:
            raise BackupError("the server sent no global/pg_control")
        try:
            control = parse_control(members.contents[CONTROL_FILE], "global/pg_control")
        except DataDirectoryError as error:
            # The server may have read it half written (fact 15), and sends it once.
            raise BackupError(
                f"what the server sent last cannot be used: {error.message}",
                hint="it was read while it was written: run the backup again",
            ) from error
        if control.system_identifier != self._task.facts.system_identifier:
            raise IdentityError(
                f"the files that have come are of system {control.system_identifier},"
                f" the server is {self._task.facts.system_identifier}",
                hint="host and port must be those of one server, not of a load balancer",
            )
        marker = members.contents.get(COPY_MARKER)
        writer = self._stream.restore_id(marker) if marker is not None else None
        self._stream.require_writer(writer)
        self._task.learn(control, writer)

    def _await_archived(self, side: Connection, segments: list[str]) -> None:
        try:
            self._await_wal(side.ping, side, segments)
        except ArchiveTimeoutError as error:
            if not self._task.facts.is_in_recovery:
                raise
            raise ArchiveTimeoutError(
                error.message.partition(": ")[0] + ": the primary archives them, not this standby",
                hint="a segment is archived when it is full: run SELECT pg_switch_wal() on the"
                " primary, or set its archive_timeout; 'pgrecall check' there finds other causes",
            ) from error

    def _require_configuration(self, table: FileTable, external: tuple[ExternalFile, ...]) -> None:
        path = b"postgresql.conf"
        if any(file.role == "config" for file in external):
            return
        if any(table.path(index) == path for index in table.files()):
            return
        if any(finding.code == "configuration-left-out" for finding in self._findings):
            return
        self._findings.append(
            Finding(
                severity="warn",
                code="configuration-left-out",
                subject="postgresql.conf",
                message="the server's configuration lies outside its data directory, and is not in"
                " the backup: a stream brings only the data directory",
                hint="grant the role pg_read_all_settings and pg_read_server_files, or a restore"
                " needs it from you",
            )
        )


class _Arrival:
    """Where a stream goes (StreamReceiver). ``results`` and ``arranged`` when all has come."""

    arranged: FileTable
    results: CopyResults

    def __init__(
        self,
        plan: BackupPlan,
        table: StreamTable,
        pool: StreamPool,
        factory: PackFactory,
        members: StreamMembers,
    ) -> None:
        self.members = members
        self.pool = pool
        self._table = table
        self._factory = factory
        self._throttle = Throttle(plan.bytes_per_second)
        self._proof: ManifestProof | None = None
        self.watch: Callable[[], None] = pool.collect
        self.archive = members.archive

    def archive_data(self, data: memoryview) -> None:
        """The next bytes of an archive."""
        self.watch()
        self._throttle.take(len(data))
        self.members.archive_data(data)

    def archives_done(self) -> None:
        """All files have come: everything that was kept of them becomes durable."""
        self.members.finish_archive()
        self.members.flush()
        results = CopyResults(self._table.table)
        for result in self.pool.finish():
            results.add(result)
        reached("backup.copied")
        results.packs = self._factory.finish()
        self.arranged, places = self._table.arranged()
        results.renumber(self.arranged, places)
        self.results = results
        self._proof = ManifestProof(self._known(results), _is_unproven)

    def manifest_data(self, data: memoryview) -> None:
        """The next bytes of the server's manifest."""
        if self._proof is None:
            raise BackupError("the server sent its manifest before its files")
        self._proof.feed(data)

    def prove(self) -> None:
        """The stream has ended; raises BackupError when the manifest proves something else."""
        if self._proof is None:
            raise BackupError("the server sent no manifest")
        files = len(self.arranged) - self.arranged.kinds.count(DIRECTORY)
        special = sum(path in self.members.contents for path in (LABEL_FILE, MAP_FILE))
        self._proof.finish(files - len(self.members.wal_files) + special)

    def close(self) -> None:
        """End the threads, and drop packs that are not complete."""
        self.pool.close()
        self._factory.close()

    def _known(self, results: CopyResults) -> Callable[[bytes], FileFacts | None]:
        digests = results.copied().digests
        count = len(self.arranged) - len(self.members.wal_files)

        def known(path: bytes) -> FileFacts | None:
            if path in (LABEL_FILE, MAP_FILE):
                content = self.members.contents.get(path)
                return None if content is None else (len(content), crc32c(content))
            index = find(self.arranged, path, count)
            if index is None:
                return None
            found = digests.of(index)
            return found.size, found.crc

        return known


def _is_unproven(path: bytes) -> bool:
    """Segments prove themselves; of what lies beside them the manifest names a part."""
    if path.startswith(b"pg_wal/"):
        return True
    return path not in (LABEL_FILE, MAP_FILE) and is_left_out(path)


def _require_wal(segments: list[str], came: list[str]) -> None:
    missing = sorted(set(segments) - set(came))
    if missing:
        raise WalMissingError(
            f"the server did not send {missing[0]}, and the backup needs it",
            hint="run the backup again; raise wal_keep_size if it happens again",
        )


def _owners(numbers: array[int]) -> Named:
    distinct = sorted(set(numbers))
    return {number: place for place, number in enumerate(distinct)}, (_OWNER,) * len(distinct)
