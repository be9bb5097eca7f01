"""The agent as a process: signals, systemd, and a snapshot for who asks how it is."""

from __future__ import annotations

import logging
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType

import msgspec

from pgrecall import __version__
from pgrecall.agent.notify import Notifier
from pgrecall.agent.supervisor import ComponentStatus, Spec, Supervisor
from pgrecall.errors import PgrecallError
from pgrecall.wal.agent_places import DIRECTORY_MODE

_log = logging.getLogger(__name__)

SNAPSHOT = "agent.json"
_SNAPSHOT_SECONDS = 2.0
_ENDING = (signal.SIGTERM, signal.SIGINT)

Plan = Callable[[], Sequence[Spec]]


class AgentSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent says of itself every few seconds, in the file ``state/agent.json``."""

    pid: int
    server: str
    tool_version: str
    started_at: datetime
    written_at: datetime
    components: tuple[ComponentStatus, ...]


_SNAPSHOTS = msgspec.json.Decoder(AgentSnapshot)


class AgentProcess:
    """Runs a supervisor in the main thread until SIGTERM or SIGINT; SIGHUP plans anew."""

    def __init__(
        self, server: str, state_directory: str, supervisor: Supervisor, notifier: Notifier
    ) -> None:
        self._server = server
        self._path = os.path.join(state_directory, SNAPSHOT)
        self._supervisor = supervisor
        self._notifier = notifier
        self._started_at = datetime.now(UTC)
        self._is_snapshot_failing = False

    def run(self, plan: Plan, again: Plan, finish: Callable[[], None]) -> tuple[str, list[str]]:
        """Work until a signal ends it; returns its name, and the components that did not end.

        ``plan`` gives the components of the start; what it raises ends the agent
        before it has begun. ``again`` reads the settings anew for SIGHUP; what it
        raises is logged, and the components go on as they are. ``finish`` is called
        when all have ended; further signals do not cut it short.
        """
        with _signals() as signals:
            self._supervisor.apply(plan())
            self._notifier.ready(f"serving {self._server}")
            _log.info("the agent runs", extra={"server": self._server, "pid": os.getpid()})
            try:
                ended_by = self._loop(signals, again)
            finally:
                self._notifier.stopping()
                stuck = self._supervisor.stop()
                finish()
                self._write_snapshot()
        _log.info("the agent ends", extra={"server": self._server, "ended_by": ended_by})
        return ended_by, stuck

    def _loop(self, signals: queue.SimpleQueue[int], again: Plan) -> str:
        wait = _SNAPSHOT_SECONDS
        if self._notifier.watchdog_seconds:
            wait = min(wait, self._notifier.watchdog_seconds / 3)
        while True:
            self._notifier.alive()
            self._write_snapshot()
            try:
                number = signals.get(timeout=wait)
            except queue.Empty:
                continue
            if number in _ENDING:
                return signal.Signals(number).name
            self._reload(again)

    def _reload(self, again: Plan) -> None:
        self._notifier.reloading(time.monotonic_ns() // 1000)
        try:
            changed = self._supervisor.apply(again())
        except PgrecallError as error:
            _log.error(
                "the settings are refused, the old ones go on: %s",
                error.message,
                extra={"code": error.code, "hint": error.hint},
            )
        else:
            _log.info("the settings were read again", extra={"restarted": ", ".join(changed)})
        self._notifier.ready(f"serving {self._server}")

    def _write_snapshot(self) -> None:
        snapshot = AgentSnapshot(
            pid=os.getpid(),
            server=self._server,
            tool_version=__version__,
            started_at=self._started_at,
            written_at=datetime.now(UTC),
            components=tuple(self._supervisor.statuses()),
        )
        aside = f"{self._path}.new"
        try:
            os.makedirs(os.path.dirname(self._path), DIRECTORY_MODE, exist_ok=True)
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.encode(snapshot))
            os.rename(aside, self._path)
        except OSError as error:
            # A full disk must not end archiving, which is what may empty it.
            if not self._is_snapshot_failing:
                _log.warning("cannot write %s: %s", self._path, error.strerror)
            self._is_snapshot_failing = True
        else:
            self._is_snapshot_failing = False


def read_snapshot(state_directory: str) -> AgentSnapshot | None:
    """What an agent said of itself last; None when none ever did, or it cannot be read."""
    try:
        with open(os.path.join(state_directory, SNAPSHOT), "rb") as file:
            return _SNAPSHOTS.decode(file.read())
    except (OSError, msgspec.DecodeError):
        return None


@contextmanager
def _signals() -> Iterator[queue.SimpleQueue[int]]:
    """Inside, SIGTERM, SIGINT and SIGHUP arrive in the queue, in order."""
    # A SimpleQueue may be put to by a handler that interrupts its own get; an Event may not.
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        arrived.put(number)

    previous = {number: signal.signal(number, remember) for number in (*_ENDING, signal.SIGHUP)}
    try:
        yield arrived
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
