"""Runs jobs as processes of their own: what becomes of one cannot hurt the agent's WAL work."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import IO, NamedTuple

import msgspec

from pgrecall.agent.schedule import JOBS, Due
from pgrecall.errors import AgentPlaceError
from pgrecall.model.ids import RUN, new_id
from pgrecall.model.runs import RUN_ID_VARIABLE, TRIGGER_VARIABLE, Trigger
from pgrecall.system.clock import Clock
from pgrecall.wal.agent_places import DIRECTORY_MODE

_log = logging.getLogger(__name__)

_LARGEST_OUTPUT = 1 << 20


class Ended(NamedTuple):
    """A job's process has ended.

    ``status`` as subprocess has it (negative: the signal). ``error_code`` and
    ``message`` are those that it printed, empty when it printed none.
    """

    job: str
    run_id: str
    trigger: Trigger
    began_at: datetime
    ended_at: datetime
    status: int
    error_code: str
    message: str


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    run_id: str
    trigger: Trigger
    began_at: datetime


class JobRunner:
    """Starts ``program`` with the words of a job, and notices when it ends. Not thread-safe.

    A lock in ``directory`` is handed to each process: as long as it lives, also
    when this one was killed meanwhile, the same job is not started again.
    """

    def __init__(
        self,
        program: Callable[[], Sequence[str]],
        directory: str,
        environment: Mapping[str, str],
        clock: Clock,
    ) -> None:
        self._program = program
        self._directory = directory
        # systemd's notifications are between it and the agent.
        self._environment = {
            name: value
            for name, value in environment.items()
            if name not in {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
        }
        self._clock = clock
        self._running: dict[str, _Running] = {}

    @property
    def running(self) -> list[str]:
        """The jobs whose processes this one started and that have not ended."""
        return sorted(self._running)

    def start(self, due: Due) -> str | None:
        """Start a job; returns its run id, or None when one of its kind is at work still.

        Raises AgentPlaceError when the lock cannot be made, OSError when the
        program cannot be started.
        """
        if due.job in self._running:
            return None
        lock = self._lock(due.job)
        if lock is None:
            return None
        began_at = self._clock.now()
        run_id = new_id(RUN, began_at)
        trigger = Trigger("schedule", due.planned_at, due.is_late, due.missed)
        output = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 (closed when it ended)
        try:
            process = subprocess.Popen(
                [*self._program(), *JOBS[due.job], "--json"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                env={
                    **self._environment,
                    RUN_ID_VARIABLE: run_id,
                    TRIGGER_VARIABLE: msgspec.json.encode(trigger).decode(),
                },
                pass_fds=[lock],
                start_new_session=True,  # a Ctrl-C on the terminal is answered by the agent
            )
        except BaseException:
            output.close()
            raise
        finally:
            os.close(lock)
        self._running[due.job] = _Running(process, output, run_id, trigger, began_at)
        return run_id

    def is_busy(self, job: str) -> bool:
        """Whether a process of this job is at work, an earlier agent's too."""
        if job in self._running:
            return True
        lock = self._lock(job)
        if lock is None:
            return True
        os.close(lock)
        return False

    def ended(self) -> list[Ended]:
        """Those that have ended since this was asked last; never waits."""
        gone = [job for job, one in self._running.items() if one.process.poll() is not None]
        return [self._take(job) for job in gone]

    def stop(self, patience_seconds: float) -> list[Ended]:
        """Ask all to end (SIGTERM), kill those that do not in time; returns how they ended."""
        for one in self._running.values():
            one.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience_seconds
        for job, one in self._running.items():
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.warning("a job does not end and is killed", extra={"job": job})
                one.process.kill()
                one.process.wait()
        return [self._take(job) for job in list(self._running)]

    def _take(self, job: str) -> Ended:
        one = self._running.pop(job)
        with one.output as output:
            output.seek(0)
            code, message = _error_of(output.read(_LARGEST_OUTPUT))
        return Ended(
            job,
            one.run_id,
            one.trigger,
            one.began_at,
            self._clock.now(),
            one.process.returncode,
            code,
            message,
        )

    def _lock(self, job: str) -> int | None:
        """A descriptor that holds the job's lock; None when a process holds it."""
        path = os.path.join(self._directory, f"job-{job}.lock")
        try:
            os.makedirs(self._directory, DIRECTORY_MODE, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AgentPlaceError(
                f"cannot write {path}: {error.strerror}",
                hint="the agent's user must own its directory",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor


def _error_of(output: bytes) -> tuple[str, str]:
    """Code and message of the error that a command printed with --json; empty for none."""
    try:
        document = json.loads(output)
    except ValueError:
        return "", ""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return "", ""
    return str(error.get("code", "")), str(error.get("message", ""))
