"""Has the next segments of one recovery ready, in a process of its own.

What the agent does for recoveries (wal.prefetch), for one that has none: a restored
copy, a server on a new host. It listens in PGDATA, where restore_command asks first,
and lives as long as the recovery: the server's end, or the end of recovery, ends it.
Nothing depends on it; who gets no answer fetches for himself.

PostgreSQL waits for its start, so what it does not need is not loaded here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Mapping

from pgrecall.agent.listener import Listener
from pgrecall.errors import AgentSilentError, DataDirectoryError
from pgrecall.postgres.ahead_place import AHEAD_DIRECTORY, AHEAD_SOCKET
from pgrecall.settings import ServerSettings, Settings
from pgrecall.system.removal import remove_tree
from pgrecall.wal.fetch import FetchResult
from pgrecall.wal.outcomes import PushResult
from pgrecall.wal.prefetch import Fetcher

_log = logging.getLogger(__name__)

_LOOK_MILLISECONDS = 200
_IDLE_SECONDS = 60.0
_SIGNAL_FILES = ("recovery.signal", "standby.signal")

SERVER_ENDED = "the server ended"
RECOVERY_ENDED = "recovery ended"
IDLE = "nothing was asked for in a minute"


class Delivered:
    """The segment ``name`` that the recovery was given already, from ``repository``."""

    __slots__ = ("name", "repository")

    def __init__(self, name: str, repository: str) -> None:
        self.name = name
        self.repository = repository


class Served:
    """How it ended, one of the sentences above, and how requests were served."""

    __slots__ = ("direct", "ended_by", "prefetched")

    def __init__(self, ended_by: str, *, prefetched: int, direct: int) -> None:
        self.ended_by = ended_by
        self.prefetched = prefetched
        self.direct = direct


def serve_recovery(
    settings: Settings,
    server: ServerSettings,
    environment: Mapping[str, str],
    pgdata: str,
    delivered: Delivered | None = None,
) -> Served:
    """Serve the recovery of the server that runs in ``pgdata`` until it is over.

    What follows ``delivered`` is fetched at once, before anybody asks. Raises
    DataDirectoryError (no server runs there), AgentRunningError (one like this is at
    it), AgentPlaceError, SettingsError.
    """
    pgdata = os.path.abspath(pgdata)
    place = f"{pgdata}/{AHEAD_DIRECTORY}"
    with _Watch(pgdata) as watch:
        os.chdir("/")
        fetcher = Fetcher(settings, server, environment, f"{place}/segments")
        service = _Service(fetcher)
        listener = Listener(f"{pgdata}/{AHEAD_SOCKET}", service, server=server.name)
        try:
            if delivered is not None:
                fetcher.begin(delivered.name, delivered.repository, pgdata)
            ended_by = _serve(listener, fetcher, lambda: watch.over(service.asked_at))
        finally:
            fetcher.close()
    _log.info("fetched ahead", extra={"data_directory": pgdata, "ended_by": ended_by})
    with contextlib.suppress(OSError):
        remove_tree(place)
    facts = fetcher.facts()
    return Served(
        ended_by,
        prefetched=int(facts["fetched_prefetched_total"] or 0),
        direct=int(facts["fetched_direct_total"] or 0),
    )


class _Service:
    """What the listener serves: fetches, and nothing else."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self.asked_at = time.monotonic()

    def push(self, path: str, pgdata: str) -> PushResult:
        """Refused: a copy that recovers archives nothing."""
        del path, pgdata
        raise AgentSilentError("this process fetches ahead of a recovery, it archives nothing")

    def fetch(self, name: str, destination: str, pgdata: str) -> FetchResult | None:
        """As Fetcher.fetch."""
        self.asked_at = time.monotonic()
        return self._fetcher.fetch(name, destination, pgdata)


def _serve(listener: Listener, fetcher: Fetcher, over: Callable[[], str]) -> str:
    """Run both until ``over`` says why; what the listener raises is raised here."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def listen() -> None:
        try:
            listener.run(stop)
        except BaseException as error:  # noqa: BLE001 (raised again in the main thread)
            failures.append(error)

    threads = [
        threading.Thread(target=listen, name="listener", daemon=True),
        threading.Thread(target=fetcher.run, args=(stop,), name="fetcher", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        while not (why := over()) and not failures:
            pass  # ``over`` waits
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return why


class _Watch:
    """Tells when the recovery in ``pgdata`` is over; by the server's process, and its files."""

    def __init__(self, pgdata: str) -> None:
        """Raises DataDirectoryError when no server runs there."""
        self._pgdata = pgdata
        try:
            with open(f"{pgdata}/postmaster.pid", encoding="ascii", errors="replace") as file:
                # A server that was started by hand in a single-user mode has a negative number.
                self._process = os.pidfd_open(abs(int(file.readline())))
        except (OSError, ValueError) as error:
            raise DataDirectoryError(
                f"no server runs in {pgdata}: {error}",
                hint="wal fetch starts this process by itself when a recovery asks for WAL",
            ) from error
        self._poll = select.poll()
        self._poll.register(self._process, select.POLLIN)

    def over(self, asked_at: float) -> str:
        """Why it is over, looked for during a fifth of a second; empty: it goes on.

        ``asked_at``: the last request, by the monotonic clock.
        """
        if self._poll.poll(_LOOK_MILLISECONDS):
            return SERVER_ENDED
        if not any(os.path.exists(f"{self._pgdata}/{name}") for name in _SIGNAL_FILES):
            return RECOVERY_ENDED
        return IDLE if time.monotonic() - asked_at > _IDLE_SECONDS else ""

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._process)
