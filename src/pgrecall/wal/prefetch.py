"""Fetching ahead of a recovery: the agent has the next segments ready when they are asked for.

PostgreSQL asks for one segment after another, and replays each faster than a
store answers. After a segment was delivered, the ones behind it on its timeline
are fetched in parallel into the agent's own directory: written aside, verified
to the last digest, renamed. A request takes a finished file, or waits for one
that is under way; anything else goes the whole way of fetch_file. So:

- nothing is handed out that is still being written;
- absence is never remembered: a segment that was not there is asked for again;
- identity of the caller's data directory, and what its copy must not replay, are
  checked for each request, whoever fetched the bytes;
- a request for another timeline, for a history file or out of order drops what
  lies ahead of the old place.

Disk: at most ``agent.prefetch_segments`` for each of two systems, and never the last
room for eight segments: it may be pg_wal's own file system, and PostgreSQL needs some
to go on. Memory: a frame
of 1 MiB and its compressed form for each thread (on object stores the compressed
segment).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from pgrecall.errors import (
    AgentSilentError,
    DestinationError,
    PgrecallError,
    SpaceError,
    StoreError,
)
from pgrecall.model.wal_files import SEGMENT, WalFile, segment_name
from pgrecall.repository.identity import Generation, open_repository, require_generation
from pgrecall.repository.layout import encode_server
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import RepositorySettings, ServerSettings
from pgrecall.system.durable import write_all
from pgrecall.system.faults import reached
from pgrecall.system.filesystems import free_bytes
from pgrecall.system.memory import keep_freed_memory
from pgrecall.system.removal import remove_tree
from pgrecall.wal.agent_places import DIRECTORY_MODE, prefetch_directory
from pgrecall.wal.archives import Archive, archive_store, control_of, data_directory_of
from pgrecall.wal.delivery import check_tablespaces, remove, write_verified
from pgrecall.wal.fetch import FetchResult, deliver, fetch_file
from pgrecall.wal.patience import keeps_trying

_LOG = logging.getLogger(__name__)

_SYSTEMS = 2
_IDLE_SECONDS = 60.0
_PAUSE_SECONDS = 5.0
_COPY_BYTES = 1 << 20
_SPARED_SEGMENTS = 8

Fact = str | int | float | bool | None


class _Stream:
    """One recovery: from which repository, where it is, and what was begun ahead of it."""

    def __init__(self, repository: RepositorySettings, system_identifier: int) -> None:
        self.repository = repository
        self.system_identifier = system_identifier
        self.lock = threading.Lock()
        self.opened: tuple[Archive, Generation, str] | None = None
        self.ahead: dict[str, Future[int | None]] = {}
        self.used_at = time.monotonic()
        self.resume_at = 0.0
        self.is_over = False


class Fetcher:
    """Serves fetches of one server's archive; a component of the agent.

    ``fetch`` may be called from any number of threads, with or without ``run``.
    """

    name = "fetcher"

    def __init__(
        self,
        settings: Settings,
        server: ServerSettings,
        environment: Mapping[str, str],
        directory: str = "",
    ) -> None:
        """Nothing is read or written yet. ``directory`` is its own; empty: the agent's."""
        keep_freed_memory()
        self._settings = settings
        self._server = server
        self._environment = environment
        self._directory = directory or prefetch_directory(settings, server)
        self._count = settings.agent.prefetch_segments
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._streams: dict[int, _Stream] = {}
        self._served = {"prefetched": 0, "direct": 0}

    def fetch(self, name: str, destination: str, pgdata: str) -> FetchResult | None:
        """Deliver an archived file, as fetch_file does; at once when it was fetched ahead.

        ``pgdata`` is the caller's: a relative ``destination`` begins there. None
        only when the file is proven absent in every repository, now. Raises what
        fetch_file raises; with restore.on_fetch_error = retry, AgentSilentError in
        place of StoreError: then the caller does the work, and waits, himself.
        """
        destination = os.path.join(pgdata, destination)
        file = WalFile(name)
        belongs_to = data_directory_of(destination, pgdata)
        control = control_of(belongs_to)
        system = control.system_identifier if control is not None else None
        if file.kind != SEGMENT and system is not None:
            self._drop(system)  # it is looking for another timeline
        if file.kind == SEGMENT and system is not None and self._count:
            found = self._take(file, destination, belongs_to, system)
            if found is not None:
                return found
        try:
            result = fetch_file(
                self._settings,
                self._server,
                name,
                destination,
                pgdata=pgdata,
                environment=self._environment,
            )
        except StoreError as error:
            if not keeps_trying(self._settings, destination, pgdata):
                raise
            # A thread of the agent would go on when the server was stopped long ago.
            raise AgentSilentError(
                f"{error.message}; who asks for {name} goes on asking by himself"
            ) from error
        if result is not None:
            self._count_served("direct")
            if file.kind == SEGMENT and control is not None and self._count:
                stream = self._stream(result.repository, control.system_identifier)
                self._go_on(stream, file, control.segment_bytes)
        return result

    def begin(self, name: str, repository: str, pgdata: str) -> None:
        """Fetch what follows a segment that the recovery in ``pgdata`` has from ``repository``.

        Nothing is begun for what is no segment, or without a pg_control. Raises
        SettingsError (no such repository), WalFormatError.
        """
        file, control = WalFile(name), control_of(pgdata)
        if file.kind == SEGMENT and control is not None and self._count:
            stream = self._stream(repository, control.system_identifier)
            self._go_on(stream, file, control.segment_bytes)

    def run(self, stop: threading.Event) -> None:
        """Let go of what no recovery has asked for in a minute; empty the directory at the end."""
        while not stop.wait(1.0):
            for system, stream in list(self._streams.items()):
                if time.monotonic() - stream.used_at > _IDLE_SECONDS:
                    self._drop(system)
        self.close()

    def close(self) -> None:
        """Drop everything that was fetched ahead, and end the threads."""
        for system in list(self._streams):
            self._drop(system)
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
            self._empty()

    def facts(self) -> Mapping[str, Fact]:
        """How requests were served since the start, and what lies ahead now."""
        ahead = [future for stream in list(self._streams.values()) for future in _futures(stream)]
        return {
            "prefetch_segments": self._count,
            "prefetch_ready": sum(future.done() for future in ahead),
            "prefetch_under_way": sum(not future.done() for future in ahead),
            "fetched_prefetched_total": self._served["prefetched"],
            "fetched_direct_total": self._served["direct"],
        }

    # --- a request ------------------------------------------------------------------

    def _take(
        self, file: WalFile, destination: str, pgdata: str, system: int
    ) -> FetchResult | None:
        """Deliver from what was fetched ahead; None when it must be fetched now."""
        stream = self._streams.get(system)
        if stream is None:
            return None
        with stream.lock:
            future = stream.ahead.pop(file.name, None)
        if future is None:
            self._drop(system)  # out of order, or another timeline
            return None
        try:
            size = future.result()
            if size is None or stream.opened is None:
                return None
            archive, generation, directory = stream.opened
            check_tablespaces(archive, self._server.name, generation, file, pgdata)
            path = f"{directory}/{file.name}"
            if not os.path.exists(path):
                return None  # somebody emptied the directory
            try:
                deliver(lambda aside: _move(path, aside, size), destination)
            finally:
                remove(path)
        except (DestinationError, SpaceError):
            raise
        except CancelledError:
            return None  # the agent is being stopped
        except PgrecallError as error:
            _LOG.warning("%s could not be fetched ahead: %s", file.name, error)
            return None
        self._count_served("prefetched")
        self._go_on(stream, file, generation.segment_bytes)
        return FetchResult(file.name, stream.repository.name, size, [])

    def _count_served(self, how: str) -> None:
        with self._lock:
            self._served[how] += 1

    # --- ahead of requests --------------------------------------------------------------

    def _stream(self, repository: str, system: int) -> _Stream:
        """The stream of a system, made anew when it is another repository's."""
        stream = self._streams.get(system)
        if stream is not None and stream.repository.name == repository:
            return stream
        self._drop(system)
        stream = _Stream(self._settings.repository(repository), system)
        with self._lock:
            self._streams[system] = stream
            oldest = sorted(self._streams.values(), key=lambda each: each.used_at)
        for surplus in oldest[: max(0, len(oldest) - _SYSTEMS)]:
            self._drop(surplus.system_identifier)
        return stream

    def _go_on(self, stream: _Stream, file: WalFile, segment_bytes: int) -> None:
        """Begin what is missing of the segments behind ``file``, and drop all others."""
        stream.used_at = time.monotonic()
        start = file.start(segment_bytes)
        wanted = [
            segment_name(file.timeline, start + number * segment_bytes, segment_bytes)
            for number in range(1, self._count + 1)
        ]
        pool = self._started()
        with stream.lock:
            for name in stream.ahead.keys() - set(wanted):
                self._discard(stream, name, stream.ahead.pop(name))
            if stream.is_over or time.monotonic() < stream.resume_at:
                return
            room = self._room(segment_bytes)
            room -= sum(not future.done() for future in stream.ahead.values())
            for name in wanted:
                future = stream.ahead.get(name)
                if future is not None and _was_absent(future):
                    future = None  # it may be there by now
                if future is None:
                    if room <= 0:
                        break
                    room -= 1
                    stream.ahead[name] = pool.submit(self._fetch_ahead, stream, WalFile(name))

    def _room(self, segment_bytes: int) -> int:
        """How many segments more the disk may hold; none where that cannot be told."""
        try:
            return free_bytes(self._directory) // segment_bytes - _SPARED_SEGMENTS
        except OSError:
            return 0

    def _fetch_ahead(self, stream: _Stream, file: WalFile) -> int | None:
        """In a thread: have the segment ready; its size, None when it is not there now."""
        try:
            archive, generation, directory = self._open(stream)
            # A thread that was given up may still be at the same segment, for the same place.
            part = f"{directory}/.{file.name}.{threading.get_ident()}.part"
            remove(part)
            size = write_verified(archive, self._server.name, generation, file, part)
            if size is not None:
                reached("prefetch.written")
                os.rename(part, f"{directory}/{file.name}")
        except OSError as error:
            stream.resume_at = time.monotonic() + _PAUSE_SECONDS
            raise SpaceError(
                f"cannot fetch ahead into {self._directory}: {error.strerror}",
                hint="the agent's directory needs room for agent.prefetch_segments",
            ) from error
        except PgrecallError:
            stream.resume_at = time.monotonic() + _PAUSE_SECONDS
            raise
        if size is None:
            self._give_up_behind(stream, file)
        return size

    def _give_up_behind(self, stream: _Stream, file: WalFile) -> None:
        """What follows a segment that is not there need not be asked for now."""
        with stream.lock:
            for name in [name for name in stream.ahead if name > file.name]:
                if stream.ahead[name].cancel():
                    del stream.ahead[name]

    def _open(self, stream: _Stream) -> tuple[Archive, Generation, str]:
        with stream.lock:
            if stream.opened is None:
                repository = stream.repository
                store = archive_store(self._settings, repository, self._environment)
                archive = Archive(repository.name, store, open_repository(store))
                generation = require_generation(
                    store, self._server.name, stream.system_identifier, "the data directory"
                )
                place = f"{archive.identity.repository_id}-{generation.number}"
                directory = f"{self._directory}/{encode_server(repository.name)}/{place}"
                os.makedirs(directory, DIRECTORY_MODE, exist_ok=True)
                stream.opened = archive, generation, directory
            return stream.opened

    def _started(self) -> ThreadPoolExecutor:
        """The threads; with the first, what an agent that was killed left behind is removed."""
        with self._lock:
            if self._pool is None:
                self._empty()
                os.makedirs(self._directory, DIRECTORY_MODE, exist_ok=True)
                threads = max(1, min(self._count, 2 * (os.cpu_count() or 1)))
                self._pool = ThreadPoolExecutor(threads, thread_name_prefix="wal-prefetch")
            return self._pool

    def _empty(self) -> None:
        """Remove the directory; what cannot be removed is no reason to fail."""
        with contextlib.suppress(OSError):
            remove_tree(self._directory)

    def _drop(self, system: int) -> None:
        """Forget a recovery and remove what was fetched ahead for it."""
        with self._lock:
            stream = self._streams.pop(system, None)
        if stream is None:
            return
        with stream.lock:
            stream.is_over = True
            while stream.ahead:
                self._discard(stream, *stream.ahead.popitem())

    def _discard(self, stream: _Stream, name: str, future: Future[int | None]) -> None:
        """Remove the file of a future that nobody wants any more, as soon as it is written."""

        def remove_it(_: object) -> None:
            if stream.opened is not None:
                with contextlib.suppress(OSError):
                    os.unlink(f"{stream.opened[2]}/{name}")

        if not future.cancel():
            future.add_done_callback(remove_it)


def _futures(stream: _Stream) -> list[Future[int | None]]:
    with stream.lock:
        return list(stream.ahead.values())


def _was_absent(future: Future[int | None]) -> bool:
    """Whether it has ended without a file: absent, or failed."""
    return future.done() and (future.exception() is not None or future.result() is None)


def _move(path: str, aside: str, size: int) -> int:
    """Rename, or copy where ``aside`` is on another file system; raises OSError."""
    try:
        os.rename(path, aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        target = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(path, "rb", buffering=0) as source:
                while piece := source.read(_COPY_BYTES):
                    write_all(target, piece)
        finally:
            os.close(target)
        os.unlink(path)
    return size
