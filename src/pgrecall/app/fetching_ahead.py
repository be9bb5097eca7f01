"""``wal fetch-ahead``: has the next segments of one recovery ready; started by ``wal fetch``.

What the agent does for recoveries (wal.prefetch), for one that has none: a restored
copy, a server on a new host. It listens in PGDATA, where restore_command asks first,
and lives as long as the recovery: the server's end, or the end of recovery, ends it.
Nothing depends on it; who gets no answer fetches for himself.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from pgrecall.agent.listener import Listener
from pgrecall.agent.protocol import AHEAD_DIRECTORY, AHEAD_SOCKET
from pgrecall.app.context import RunContext
from pgrecall.errors import AgentSilentError, DataDirectoryError
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


class AheadResult(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended: ``ended_by`` is one of the sentences above."""

    data_directory: str
    started_at: datetime
    ended_at: datetime
    ended_by: str
    prefetched: int
    direct: int


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


def run_fetch_ahead(context: RunContext, pgdata: str) -> AheadResult:
    """Serve the recovery of the server that runs in ``pgdata`` until it is over.

    Raises DataDirectoryError (no server runs there), AgentRunningError (one like this
    is at it), AgentPlaceError.
    """
    pgdata = os.path.abspath(pgdata)
    started_at = datetime.now(UTC)
    place = f"{pgdata}/{AHEAD_DIRECTORY}"
    server = context.server
    with _Watch(pgdata) as watch:
        os.chdir("/")
        fetcher = Fetcher(context.settings, server, context.environment, f"{place}/segments")
        service = _Service(fetcher)
        listener = Listener(f"{pgdata}/{AHEAD_SOCKET}", service, server=server.name)
        try:
            ended_by = _serve(listener, fetcher, lambda: watch.over(service.asked_at))
        finally:
            fetcher.close()
    _log.info("fetched ahead", extra={"data_directory": pgdata, "ended_by": ended_by})
    shutil.rmtree(place, ignore_errors=True)
    facts = fetcher.facts()
    return AheadResult(
        data_directory=pgdata,
        started_at=started_at,
        ended_at=datetime.now(UTC),
        ended_by=ended_by,
        prefetched=int(facts["fetched_prefetched_total"] or 0),
        direct=int(facts["fetched_direct_total"] or 0),
    )


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
