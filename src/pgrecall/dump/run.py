"""Make a dump: snapshots of all databases, the tools' output into packs, then the records."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import msgspec

from pgrecall import __version__
from pgrecall.dump.arguments import DumpArguments, suffix
from pgrecall.dump.plan import DumpPlan, PlannedDatabase
from pgrecall.dump.tool_run import Ended, ToolRuns
from pgrecall.dump.writing import FileWriter
from pgrecall.errors import PostgresRightsError
from pgrecall.further_errors import DumpError
from pgrecall.model.dumps import (
    CLUSTER,
    GLOBALS,
    DumpCompletion,
    DumpedDatabase,
    DumpRoot,
    DumpTotals,
)
from pgrecall.model.findings import Finding, worst
from pgrecall.model.ids import DUMP, new_id
from pgrecall.model.manifest import FileEntry
from pgrecall.model.runs import ChainHead
from pgrecall.postgres.client_tools import ClientTools, connection_variables
from pgrecall.postgres.dump_session import DatabaseSession, DumpFacts, Snapshot
from pgrecall.repository import layout
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.repository.identity import Generation, RepositoryIdentity
from pgrecall.repository.manifests import ManifestWriter
from pgrecall.repository.own_objects import remove_own_objects
from pgrecall.repository.pack_sink import PackFactory
from pgrecall.repository.packs import PackHeader
from pgrecall.settings import ServerSettings
from pgrecall.store.base import Store
from pgrecall.system.clock import Clock
from pgrecall.system.faults import reached
from pgrecall.system.held_signals import signals_held
from pgrecall.system.progress import Progress

log = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0
_SESSIONS = 50
"""So many databases have their snapshots at the same time; of more they follow in turns."""
# The tools need sessions, too, and so does everybody else.
_SHARE_OF_SESSIONS = 2
# pg_dumpall connects to these instead of making them; they are there on every server.
_ALWAYS_THERE = ("postgres", "template1")


class DumpTools(msgspec.Struct, frozen=True, kw_only=True):
    """What a dump is given to work with; ``environment`` is where passwords are looked up.

    ``at_snapshots`` is called once, when the (first) snapshots are taken; what it raises ends the
    dump.
    """

    store: Store
    server: ServerSettings
    environment: Mapping[str, str]
    programs: ClientTools
    progress: Progress
    clock: Clock
    lock_timeout_seconds: float
    run_heads: Callable[[], tuple[ChainHead, ...]] = tuple
    at_snapshots: Callable[[], None] | None = None


class DumpTask(msgspec.Struct, frozen=True, kw_only=True):
    """What is dumped, and whom it belongs to."""

    plan: DumpPlan
    facts: DumpFacts
    identity: RepositoryIdentity
    generation: Generation


class DumpRun:
    """One dump, phase by phase."""

    def __init__(self, task: DumpTask, tools: DumpTools) -> None:
        self.dump_id = new_id(DUMP, tools.clock.now())
        self._task = task
        self._plan = task.plan
        self._tools = tools
        self._findings: list[Finding] = list(task.plan.findings)
        self._runs = ToolRuns()
        self._factory = self._pack_factory()
        self._files: list[FileEntry] = []
        self._manifest = ManifestWriter(
            tools.store, task.plan.server, self.dump_id, task.identity.repository_id
        )
        self._arguments = DumpArguments(
            tool_major=tools.programs.major,
            dump_format=task.plan.dump_format,
            content=task.plan.content,
            compression=task.plan.tool_compression,
            lock_timeout_seconds=tools.lock_timeout_seconds,
            jobs=task.plan.jobs,
        )
        self._may_exist = False
        self._at_snapshots = tools.at_snapshots

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was noticed so far."""
        return tuple(self._findings)

    def run(self) -> DumpCompletion:
        """Make the dump; when it returns, it exists and is durable.

        When it raises, there is no dump and what was stored is deleted, as far as the store lets
        it; but where the store took the completion record and its answer was lost, a whole dump
        may exist. Raises DumpError, PostgresError and its kinds, StoreError.
        """
        try:
            return self._run()
        except BaseException:
            self._runs.end_all()
            self._factory.close()
            if not self._may_exist:
                keys = (*self._manifest.keys, *self._factory.created)
                remove_own_objects(self._tools.store, keys)
            raise

    # --- phases ----------------------------------------------------------------------

    def _run(self) -> DumpCompletion:
        started_at, began = self._tools.clock.now(), self._tools.clock.monotonic()
        plan, progress = self._plan, self._tools.progress
        progress.phase("dump")
        progress.start(plan.total_bytes)
        databases: list[DumpedDatabase] = []
        if plan.scope == "cluster":
            databases = self._dump_cluster()
        else:
            if plan.with_globals:
                with self._writer() as writer:
                    writer.begin(GLOBALS)
                    self._globals(writer)
                    writer.end()
                    self._take(writer)
            for batch in self._batches():
                databases += self._dump_databases(batch)
        reached("dump.dumped")
        packs = self._factory.finish()
        reached("dump.packs-stored")
        progress.phase("manifest")
        self._files.sort(key=lambda entry: entry.path_bytes())
        self._manifest.add_files(self._files)
        self._manifest.add_packs(packs)
        stored = self._manifest.finish(self._root(databases))
        reached("dump.manifest-stored")
        raw_bytes = sum(entry.size for entry in self._files)
        totals = DumpTotals(
            files=len(self._files),
            raw_bytes=raw_bytes,
            stored_bytes=sum(pack.stored_bytes for pack in packs) + stored.all_bytes,
            packs=len(packs),
        )
        ended_at = self._tools.clock.now()
        completion = self._completion(databases, totals, (stored.root_bytes, stored.root_digest))
        completion = msgspec.structs.replace(
            completion,
            started_at=started_at,
            completed_at=ended_at,
            duration_seconds=round(self._tools.clock.monotonic() - began, 3),
            run_heads=self._tools.run_heads(),
        )
        self._may_exist = True
        DumpCatalog(self._tools.store, plan.server).add(completion)
        reached("dump.completed")
        progress.done()
        return completion

    def _dump_databases(self, batch: tuple[PlannedDatabase, ...]) -> list[DumpedDatabase]:
        """Dump some databases from snapshots that were taken one right after the other."""
        with self._sessions(batch) as sessions:
            with ThreadPoolExecutor(self._workers(), thread_name_prefix="dump") as pool:
                try:
                    with signals_held():
                        futures = [
                            pool.submit(self._dump_one, session, snapshot)
                            for session, snapshot in sessions
                        ]
                    self._supervise(futures, [session for session, _ in sessions])
                except BaseException:
                    # Inside: leaving the pool waits for its threads, which wait for the tools.
                    self._runs.end_all()
                    pool.shutdown(cancel_futures=True)
                    raise
            return [future.result() for future in futures]

    def _dump_one(self, session: DatabaseSession, snapshot: Snapshot) -> DumpedDatabase:
        name = session.database
        path = f"databases/{layout.encode_server(name)}" + suffix(
            self._plan.dump_format, self._plan.tool_compression
        )
        with self._writer() as writer:
            if self._plan.dump_format == "directory":
                raw_bytes = self._dump_directory(writer, name, path, snapshot)
            else:
                writer.begin(path)
                words = self._arguments.of_database(snapshot.identifier)
                self._tool("pg_dump", words, name, writer.take)
                raw_bytes = writer.end()
            self._take(writer)
        reached("dump.database")
        return self._described(session, snapshot, path, raw_bytes)

    def _dump_directory(self, writer: FileWriter, name: str, path: str, snapshot: Snapshot) -> int:
        """pg_dump writes a directory with several sessions; its files are stored then."""
        place = tempfile.mkdtemp(prefix="pgrecall-dump-", dir=self._plan.spool_directory)
        try:
            made = Path(place) / "dump"
            words = self._arguments.of_database(snapshot.identifier, directory=str(made))
            self._tool("pg_dump", words, name, None)
            reached("dump.spooled")
            total = 0
            for file in sorted(made.iterdir()):
                writer.begin(path + file.name)
                with file.open("rb", buffering=0) as stream:
                    writer.take(stream)
                total += writer.end()
                file.unlink()
            return total
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _dump_cluster(self) -> list[DumpedDatabase]:
        """One script of globals and all databases, as pg_dumpall makes it, but from snapshots."""
        databases: list[DumpedDatabase] = []
        with self._writer() as writer:
            writer.begin(CLUSTER)
            self._globals(writer)
            for batch in self._batches():
                with self._sessions(batch) as sessions:
                    for session, snapshot in sessions:
                        name = session.database
                        is_there = name in _ALWAYS_THERE
                        writer.add(b"\n--\n-- Database dumped by pgrecall\n--\n\n")
                        if is_there:
                            writer.add(f"\\connect {name}\n\n".encode())
                        words = self._arguments.of_database(
                            snapshot.identifier, with_create=not is_there
                        )
                        self._tool("pg_dump", words, name, writer.take)
                        databases.append(self._described(session, snapshot, CLUSTER, 0))
                        reached("dump.database")
            writer.end()
            self._take(writer)
        return databases

    def _globals(self, writer: FileWriter) -> None:
        words = self._arguments.of_globals(with_passwords=self._plan.with_passwords)
        self._tool("pg_dumpall", words, self._tools.server.database, writer.take)

    # --- parts -----------------------------------------------------------------------

    @contextmanager
    def _sessions(
        self, batch: tuple[PlannedDatabase, ...]
    ) -> Iterator[list[tuple[DatabaseSession, Snapshot]]]:
        """Connect to all first, then take the snapshots: as close together as that goes."""
        with ExitStack() as opened:
            sessions = [
                opened.enter_context(
                    DatabaseSession(self._tools.server, one.name, self._tools.environment)
                )
                for one in batch
            ]
            is_standby = self._task.facts.is_in_recovery
            taken = [(one, one.export(is_in_recovery=is_standby)) for one in sessions]
            reached("dump.snapshots")
            called, self._at_snapshots = self._at_snapshots, None
            if called is not None:
                called()
            yield taken

    def _batches(self) -> Iterator[tuple[PlannedDatabase, ...]]:
        """The databases in so large parts as the server has sessions for."""
        databases = self._plan.databases
        free = self._task.facts.free_connections // _SHARE_OF_SESSIONS
        size = max(1, min(_SESSIONS, free))
        for start in range(0, len(databases), size):
            yield databases[start : start + size]

    def _supervise(
        self, futures: list[Future[DumpedDatabase]], sessions: list[DatabaseSession]
    ) -> None:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_WATCH_SECONDS, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            if pending:
                for session in sessions:
                    session.ping()

    def _tool(
        self,
        program: str,
        words: list[str],
        database: str,
        read: Callable[[IO[bytes]], None] | None,
    ) -> None:
        tools = self._tools
        ended = self._runs.run(
            [tools.programs.program(program), *words],
            connection_variables(tools.server, tools.environment, database=database),
            read=read,
        )
        if ended.status != 0:
            raise _failure(program, database, ended)
        if ended.errors.strip():
            log.warning("%s on %r says: %s", program, database, ended.last_words)
            self._findings.append(
                Finding(
                    severity="warn",
                    code="tool-warning",
                    subject=database,
                    message=f"{program} said: {ended.last_words}",
                )
            )

    def _described(
        self, session: DatabaseSession, snapshot: Snapshot, path: str, raw_bytes: int
    ) -> DumpedDatabase:
        known = {one.name: one for one in self._task.facts.databases}[session.database]
        return DumpedDatabase(
            name=session.database,
            path=path,
            oid=known.oid,
            size_bytes=known.size_bytes,
            raw_bytes=raw_bytes,
            snapshot_lsn=snapshot.lsn,
            snapshot_at=snapshot.at,
            large_objects=session.large_objects(),
            properties=session.properties(),
            tables=session.tables(),
            proofs=session.proofs() if self._plan.with_proofs else (),
        )

    def _writer(self) -> FileWriter:
        return FileWriter(self._factory, self._tools.progress.advance)

    def _take(self, writer: FileWriter) -> None:
        writer.finish()
        self._files += writer.entries

    def _workers(self) -> int:
        return 1 if self._plan.dump_format == "directory" else self._plan.jobs

    def _pack_factory(self) -> PackFactory:
        header = PackHeader(
            repository_id=self._task.identity.repository_id,
            server=self._plan.server,
            backup_id=self.dump_id,
            number=0,
        )
        return PackFactory(
            self._tools.store, header, codec=self._plan.compression, level=self._plan.level
        )

    # --- records ---------------------------------------------------------------------

    def _root(self, databases: list[DumpedDatabase]) -> DumpRoot:
        return DumpRoot(
            backup_id=self.dump_id,
            repository_id=self._task.identity.repository_id,
            digest="blake3",
            databases=tuple(databases),
            findings=tuple(self._findings),
            parts=self._manifest.parts,
        )

    def _completion(
        self, databases: list[DumpedDatabase], totals: DumpTotals, manifest: tuple[int, str]
    ) -> DumpCompletion:
        """The record, but for times and run heads; ``manifest``: the root's size and digest."""
        plan, facts, now = self._plan, self._task.facts, self._tools.clock.now()
        newest = max(databases, key=lambda one: one.snapshot_at, default=None)
        return DumpCompletion(
            backup_id=self.dump_id,
            repository_id=self._task.identity.repository_id,
            server=plan.server,
            generation=self._task.generation.number,
            system_identifier=str(facts.system_identifier),
            version_num=facts.version_num,
            scope=plan.scope,
            dump_format=plan.dump_format,
            content=plan.content,
            databases=tuple(one.name for one in databases),
            bootstrap_role=facts.bootstrap_role,
            has_globals=plan.with_globals,
            has_passwords=plan.with_passwords,
            has_proofs=plan.with_proofs,
            snapshot_at=newest.snapshot_at if newest is not None else now,
            snapshot_lsn=newest.snapshot_lsn if newest is not None else "",
            started_at=now,
            completed_at=now,
            duration_seconds=0.0,
            tool=self._tools.programs.version,
            tool_compression=str(plan.tool_compression),
            compression=f"{plan.compression}:{plan.level}",
            totals=totals,
            manifest_bytes=manifest[0],
            manifest_digest=manifest[1],
            worst=worst(self._findings),
            finding_count=len(self._findings),
            tool_version=__version__,
        )


def free_bytes(directory: str) -> int:
    """Of the file system of a directory, for this user; raises OSError."""
    about = os.statvfs(directory)
    return about.f_bavail * about.f_frsize


def _failure(program: str, database: str, ended: Ended) -> DumpError | PostgresRightsError:
    words = ended.last_words or f"it ended with status {ended.status} and said nothing"
    message = f"{program} failed on the database {database!r}: {words}"
    if "permission denied" in ended.errors:
        return PostgresRightsError(
            message,
            hint="the role needs to read all that is dumped: make it a member of pg_read_all_data"
            " (PostgreSQL 14 and newer), use a superuser, or leave those tables out",
        )
    if "out of memory" in ended.errors or "invalid memory alloc request" in ended.errors:
        return DumpError(
            message,
            hint="a row is too large for the server's memory, or the host has too little: leave"
            " the data of that table out (--exclude-table-data), or take a physical backup, which"
            " has no such limit",
        )
    return DumpError(message, hint="nothing was kept of this dump; mend what the tool says")
