"""Pushing ahead: the agent archives what is ready before PostgreSQL asks for it.

PostgreSQL runs archive_command for one file after another. The pusher reads
``archive_status`` itself and stores files in parallel; when PostgreSQL asks for
one, the answer is there. It never runs ahead of the truth: success is said for
the very file (name, device, inode, size, time of change) that is durable in
every required repository (invariant 1).

Order. On a store where a commit is cheap (a directory), objects appear in
PostgreSQL's order, none before its predecessor: the archive has no holes, and a
server that diverged is stopped by its first conflict, as it is without an agent.
On object stores puts overlap; there the first file after a pause, and after any
failure, goes alone.

Memory: one segment (16 MiB by default; above 64 MiB mapped) and one compressed
object on object stores, for each of ``push_workers`` and each caller.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pgrecall.errors import (
    DataDirectoryError,
    PgrecallError,
    RepositoryError,
    StoreError,
)
from pgrecall.model.wal_files import WalFile
from pgrecall.postgres.ahead_place import remove_abandoned
from pgrecall.repository import layout
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import ServerSettings
from pgrecall.system.faults import reached
from pgrecall.system.memory import keep_freed_memory
from pgrecall.wal.agent_places import state_directory
from pgrecall.wal.archives import data_directory_of
from pgrecall.wal.backlog import Backlog
from pgrecall.wal.debts import Debts
from pgrecall.wal.emergency import Emergency
from pgrecall.wal.open_targets import OpenTargets
from pgrecall.wal.outcomes import PushResult
from pgrecall.wal.push import push_file
from pgrecall.wal.ready import FileIdentity, identity_of, is_gone, ready_names
from pgrecall.wal.received import Received
from pgrecall.wal.source import Source
from pgrecall.wal.storing import Storing
from pgrecall.wal.targets import Target

_LOG = logging.getLogger(__name__)

SCAN_SECONDS = 0.1
IDLE_SCAN_SECONDS = 0.5
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
# Longer ago, a failure is no reason to give WAL up without another attempt.
_HOPELESS_SECONDS = 5.0
_LEAST_REST = 9
_TIDY_SECONDS = 60.0

Fact = str | int | float | bool | None


class _Halted(StoreError):
    """The file before this one could not be stored, so this one was not either."""


class _Job:
    """One file that is being pushed; ``done`` is set when ``result`` or ``error`` is there."""

    __slots__ = ("before", "done", "error", "identity", "name", "path", "result")

    def __init__(self, name: str, path: str, identity: FileIdentity, before: _Job | None) -> None:
        self.name = name
        self.path = path
        self.identity = identity
        self.before = before
        self.done = threading.Event()
        self.result: PushResult | None = None
        self.error: PgrecallError | None = None

    def wait_for_turn(self) -> None:
        """Return when the file before this one is stored; raises _Halted if it failed."""
        before = self.before
        if before is None:
            return
        before.done.wait()
        if before.error is not None:
            raise _Halted(f"{self.name} waits for {before.name}: {before.error.message}")


class Pusher:
    """Archives the WAL of one data directory; a component of the agent.

    ``push`` may be called from any number of threads, with or without ``run``.
    """

    name = "pusher"

    def __init__(
        self,
        settings: Settings,
        server: ServerSettings,
        environment: Mapping[str, str],
        *,
        pgdata: str,
    ) -> None:
        """``pgdata``: the server's data directory. Nothing is read yet; raises SettingsError."""
        keep_freed_memory()
        self._settings = settings
        self._server = server
        self._environment = environment
        self._pgdata = os.path.realpath(pgdata)
        self._targets = OpenTargets(settings, server, environment)
        self._debts = Debts(settings, server, environment, self._pgdata)
        self._storing = Storing(settings, self._pgdata, self._targets, self._debts)
        self._emergency = Emergency(
            settings.agent.drop_wal_above_bytes, state_directory(settings, server)
        )
        self._received = Received(self._pgdata)
        self._backlog = Backlog(self._pgdata)
        self._threads = settings.agent.push_workers or 2 * (os.cpu_count() or 1)
        self._is_ordered = all(
            settings.repositories[name].store == "local" for name in self._targets.required
        )
        self._lock = threading.Lock()
        self._pushed: dict[str, tuple[FileIdentity, PushResult]] = {}
        self._working: dict[str, _Job] = {}
        self._wake = threading.Event()
        self._pause_seconds = 0.0
        self._resume_at = 0.0

    # --- for PostgreSQL -----------------------------------------------------------

    def push(self, path: str, pgdata: str) -> PushResult:
        """Archive the file at ``path``, as push_file does; at once when it was pushed ahead.

        ``pgdata`` is the caller's working directory or data directory: a relative
        ``path`` begins there. A caller of another data directory (a restored copy
        with this configuration) is treated as if there were no agent, with its own
        identity. Raises what push_file raises.
        """
        path = os.path.join(pgdata, path)
        belongs_to = data_directory_of(path, pgdata)
        if not self._is_ours(belongs_to):
            return push_file(
                self._settings, self._server, path, pgdata=pgdata, environment=self._environment
            )
        file = WalFile(os.path.basename(path))
        identity = identity_of(path)
        if (failure := self._backlog.store_failure(_HOPELESS_SECONDS)) is not None:
            # PostgreSQL must not wait for a store that hangs once for each segment.
            given_up = self._emergency_answer(file, failure)
            if given_up is not None:
                return given_up
        job = self._claim(file.name, path, identity)
        if isinstance(job, PushResult):
            if self._storing.holds(file):
                reached("pusher.answer")
                return job
            self._forget_pushed()
            return self.push(path, pgdata)
        if job.identity is identity:
            self._work(job)
        else:
            job.done.wait()
        self._wake.set()
        if job.error is None:
            assert job.result is not None
            reached("pusher.answer")
            return job.result
        if isinstance(job.error, _Halted):
            return self.push(path, pgdata)  # another file's failure is no answer for this one
        given_up = self._emergency_answer(file, job.error)
        if given_up is None:
            raise job.error
        return given_up

    def _claim(self, name: str, path: str, identity: FileIdentity) -> _Job | PushResult:
        """The answer that is there, the job that is at it, or a new job for the caller."""
        with self._lock:
            known = self._pushed.get(name)
            if known is not None and known[0] == identity:
                return known[1]
            job = self._working.get(name)
            if job is None or job.identity != identity:
                job = self._working[name] = _Job(name, path, identity, None)
            return job

    def _emergency_answer(self, file: WalFile, error: PgrecallError) -> PushResult | None:
        """Success for a segment that is stored nowhere, if it has come to that."""
        self._look()
        result = self._emergency.drop(file, self._storing.control(), self._backlog, error)
        if result is not None:
            _LOG.error("%s", result.warnings[0])
        return result

    def _is_ours(self, pgdata: str) -> bool:
        try:
            return os.path.samefile(pgdata, self._pgdata) if pgdata else False
        except OSError:
            return False

    # --- ahead of PostgreSQL --------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Push what is ready until ``stop`` is set; failures are waited out, and seen in facts.

        Raises DataDirectoryError (PGDATA or archive_status cannot be read).
        """
        is_over, tidy_at = threading.Event(), 0.0
        payer = threading.Thread(
            target=self._debts.run, args=(is_over,), name="wal-debts", daemon=True
        )
        payer.start()
        try:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="wal-push") as pool:
                while not stop.is_set():
                    self._wake.clear()
                    began = time.monotonic()
                    if began >= tidy_at:
                        self._tidy()
                        tidy_at = began + _TIDY_SECONDS
                    waiting = self._look()
                    looked_seconds = time.monotonic() - began
                    if began >= self._resume_at:
                        self._round(pool, waiting, stop)
                    shortest = SCAN_SECONDS if self._backlog.segments else IDLE_SCAN_SECONDS
                    # A backlog of a hundred thousand files must not cost a core to look at.
                    self._rest(max(shortest, _LEAST_REST * looked_seconds), stop)
        finally:
            is_over.set()
            payer.join()

    def _tidy(self) -> None:
        """Remove what fetched ahead of this server's recovery, and was killed, has left."""
        try:
            if remove_abandoned(self._pgdata):
                _LOG.warning("removed what a killed wal fetch-ahead had left in pg_wal")
        except OSError as error:
            _LOG.warning("%s cannot be removed: %s", error.filename, error.strerror)

    def _rest(self, seconds: float, stop: threading.Event) -> None:
        """Until it is time to look again, PostgreSQL has asked for something, or all ends."""
        deadline = time.monotonic() + seconds
        while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
            if self._wake.wait(min(left, SCAN_SECONDS)):
                return

    def facts(self) -> Mapping[str, Fact]:
        """Lag, failures, space, debts and gaps; names in docs/pushing.md."""
        return {
            **self._backlog.facts(),
            **self._debts.facts(),
            **self._emergency.facts(),
            "push_workers": self._threads,
            "is_standby": self._received.is_standby,
            "doubtful_segments": self._received.doubtful,
        }

    def _look(self) -> list[str]:
        """What is ready and not stored yet, in PostgreSQL's order; the backlog takes note."""
        ready = ready_names(self._pgdata)
        with self._lock:
            kept = set(ready)
            for name in [name for name in self._pushed if name not in kept]:
                del self._pushed[name]
            waiting = [name for name in ready if name not in self._pushed]
        self._backlog.look(waiting, ready, self._storing.control().segment_bytes)
        return waiting

    def _round(
        self, pool: ThreadPoolExecutor, waiting: Sequence[str], stop: threading.Event
    ) -> None:
        """Push everything that can be pushed now, in order: histories, received, ready."""
        try:
            received = self._lacking(self._received.candidates(self._storing.control()))
            # What was ready before a server recovered from an archive, or became a standby, may
            # lie on a branch that is left: PostgreSQL does not archive it then, either.
            ready = [] if self._received.is_recovering else waiting
            histories = [name for name in (*received, *ready) if name.endswith(".history")]
            self._push_ahead(pool, list(dict.fromkeys((*histories, *received, *ready))), stop)
            self._emergency.record(self._targets.opened(), self._targets.required)
        except DataDirectoryError:
            raise
        except PgrecallError as error:
            self._fail("", error)

    def _lacking(self, candidates: Sequence[str]) -> list[str]:
        """Those of what a standby received that a required repository lacks."""
        if not candidates:
            return []
        stored: list[set[str]] = []
        for target in self._required_targets(candidates[0]):
            files = {
                layout.wal_key(target.server, target.generation.number, WalFile(name))
                for name in candidates
            }
            prefixes = {key.rpartition("/")[0] + "/" for key in files}
            children = target.archive.store.children
            stored.append({name for prefix in prefixes for name in children(prefix)})
        lacking = []
        for name in candidates:
            if all(name in names for names in stored):
                self._received.note_archived(name)
            elif self._received.is_whole(name):
                lacking.append(name)
        return lacking

    def _required_targets(self, name: str) -> list[Target]:
        probe = Source(WalFile(name), f"{self._pgdata}/pg_wal/{name}", b"")
        probe.pgdata = self._pgdata
        probe.control = self._storing.control()
        return [self._targets.target(required, probe) for required in self._targets.required]

    def _push_ahead(
        self, pool: ThreadPoolExecutor, names: Sequence[str], stop: threading.Event
    ) -> None:
        """Push ``names`` in order, several at a time, until one fails or ``stop`` is set."""
        rest = self._jobs(names)
        flying: deque[tuple[_Job, Future[None]]] = deque()
        is_open = self._is_ordered
        while not stop.is_set():
            width = self._threads if is_open else 1
            while len(flying) < width and (job := next(rest, None)) is not None:
                flying.append((job, pool.submit(self._work, job)))
            if not flying:
                return
            wait([future for _, future in flying], return_when=FIRST_COMPLETED)
            while flying and flying[0][1].done():
                job, future = flying.popleft()
                future.result()
                if job.error is not None:
                    for _, other in flying:
                        other.cancel()
                    wait([other for _, other in flying])
                    self._abandon(flying)
                    return
                is_open = True
        wait([future for _, future in flying])

    def _abandon(self, flying: Iterable[tuple[_Job, Future[None]]]) -> None:
        """Let nobody wait for jobs that were cancelled before they began."""
        for job, future in flying:
            if future.cancelled():
                self._finish(job, error=_Halted(f"{job.name} was not begun"))

    def _jobs(self, names: Sequence[str]) -> Iterator[_Job]:
        """Jobs for the files that nobody is pushing yet, each behind the one before."""
        before: _Job | None = None
        for name in names:
            path = f"{self._pgdata}/pg_wal/{name}"
            try:
                identity = identity_of(path)
            except PgrecallError:
                continue  # archived by PostgreSQL's own call, and recycled, since we looked
            job = self._claim(name, path, identity)
            if isinstance(job, PushResult):
                continue
            if job.identity is identity:
                job.before = before
                yield job
            before = job

    # --- one file ---------------------------------------------------------------------

    def _work(self, job: _Job) -> None:
        """Store the job's file and say so in the job; raises nothing but a signal."""
        try:
            result = self._storing.store(job.path, job.identity, job.wait_for_turn)
            reached("pusher.stored")
            self._finish(job, result)
        except PgrecallError as error:
            self._finish(job, error=error)
        finally:
            if not job.done.is_set():
                self._finish(job, error=StoreError(f"pushing {job.name} was broken off"))

    def _finish(
        self, job: _Job, result: PushResult | None = None, error: PgrecallError | None = None
    ) -> None:
        with self._lock:
            job.result, job.error = result, error
            job.before = None  # a chain of a million files is no chain of a million objects
            if self._working.get(job.name) is job:
                del self._working[job.name]
            if result is not None:
                self._pushed[job.name] = (job.identity, result)
        job.done.set()
        if result is not None:
            self._pause_seconds = self._resume_at = 0.0
            self._received.note_archived(job.name)
            self._backlog.stored(job.name, result.raw_bytes)
        elif error is not None and not isinstance(error, _Halted):
            self._fail_unless_gone(job, error)

    def _fail_unless_gone(self, job: _Job, error: PgrecallError) -> None:
        """Archived by PostgreSQL's own call and recycled while it was pushed: no failure."""
        if not is_gone(job.path, job.identity):
            self._fail(job.name, error)

    def _forget_pushed(self) -> None:
        """What was pushed may lie in another repository than the one that is there now."""
        with self._lock:
            self._pushed.clear()
        self._targets.doubt()

    def _fail(self, name: str, error: PgrecallError) -> None:
        """Wait, longer each time, and trust no earlier proof."""
        self._pause_seconds = min(
            max(self._pause_seconds * 2, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS
        )
        self._resume_at = time.monotonic() + self._pause_seconds
        self._targets.doubt()
        if isinstance(error, RepositoryError):
            self._forget_pushed()
        self._backlog.failed(name, error)
