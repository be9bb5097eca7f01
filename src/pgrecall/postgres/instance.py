"""An instance that we start ourselves: a restored one, the demo's, a throwaway one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from pgrecall.errors import (
    DataDirectoryError,
    PostgresError,
    PostgresRightsError,
    PostgresUnreachableError,
    RecoveryError,
)
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.control import read_control
from pgrecall.postgres.recovery import RecoveryReport, parse_recovery_log, recovery_state
from pgrecall.postgres.tools import find_program
from pgrecall.settings import ServerSettings
from pgrecall.system.processes import is_running

Phase = Literal["starting", "recovering", "paused", "open", "shut-down"]
StopMode = Literal["smart", "fast", "immediate"]

_POLL_SECONDS = 0.02
_STOP_TIMEOUT_SECONDS = 120.0
_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
# A socket's path is limited to 107 bytes on Linux, 103 elsewhere (sockaddr_un).
_SOCKET_PATH_BYTES = 103
# What the log must be like to be read; given on the command line, so it wins over every file.
_LOG_SETTINGS = {
    "lc_messages": "C",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "warning",
}
_LOG_LINES_SHOWN = 12


class InstanceSettings(msgspec.Struct, frozen=True):
    """How an instance is started.

    ``overrides`` are settings for the command line, which win over every configuration file.
    ``user`` and ``database`` are for questions about its recovery. ``log_path`` receives the
    server's log, appended.
    """

    bin_directory: str
    pgdata: str
    port: int
    socket_directory: str
    log_path: str
    user: str = ""
    database: str = "postgres"
    overrides: dict[str, str] = {}


class Instance:
    """A postmaster that is a child of this process, in a session of its own.

    Use as a context manager: leaving it stops the server, however it is left, unless keep() was
    called. After keep() the server lives on without us.
    """

    def __init__(self, settings: InstanceSettings) -> None:
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0
        self._is_kept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_kept and error is None:
            self._let_go()
            return
        self.stop("fast" if error is None else "immediate")

    @property
    def pid(self) -> int:
        """Process id of the postmaster; raises PostgresError before the start."""
        if self._process is None:
            raise PostgresError(f"the instance of {self.settings.pgdata} was not started")
        return self._process.pid

    @property
    def server(self) -> ServerSettings:
        """How to connect to it."""
        return ServerSettings(
            name=Path(self.settings.pgdata).name,
            data_directory=self.settings.pgdata,
            host=self.settings.socket_directory,
            port=self.settings.port,
            user=self.settings.user,
            database=self.settings.database,
            bin_directory=self.settings.bin_directory,
        )

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the postmaster; returns at once, see wait().

        Raises DataDirectoryError when an instance runs on the directory already, PostgresError
        when the socket's path is too long, ToolMissingError, PostgresRightsError as root.
        """
        if os.geteuid() == 0:
            raise PostgresRightsError(
                "PostgreSQL refuses to run as root",
                hint="run the command as the user that owns the data directory",
            )
        settings = self.settings
        socket_path = f"{settings.socket_directory}/.s.PGSQL.{settings.port}"
        if len(os.fsencode(socket_path)) > _SOCKET_PATH_BYTES:
            raise PostgresError(
                f"the path of the socket {socket_path} is longer than {_SOCKET_PATH_BYTES} bytes",
                hint="choose a shorter directory for the socket",
            )
        other = running_postmaster(settings.pgdata)
        if other is not None:
            raise DataDirectoryError(
                f"an instance runs on {settings.pgdata} already (process {other})",
                hint="stop it first",
            )
        argv = [str(find_program(settings.bin_directory, "postgres")), "-D", settings.pgdata]
        argv += ["-p", str(settings.port), "-k", settings.socket_directory]
        for name, value in {**settings.overrides, **_LOG_SETTINGS}.items():
            argv += ["-c", f"{name}={value}"]
        with open(settings.log_path, "ab") as log:
            self._log_offset = log.tell()
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
                env=dict(os.environ if environment is None else environment),
            )

    def connect(self, purpose: str) -> Connection:
        """A session with the instance; see connection.connect."""
        return connect(self.server, application_name="pgrecall", purpose=purpose)

    def log_since_start(self) -> str:
        """What the instance has logged since start()."""
        with open(self.settings.log_path, "rb") as log:
            log.seek(self._log_offset)
            return log.read().decode("utf-8", errors="replace")

    def report(self) -> RecoveryReport:
        """What the log since start() says of recovery."""
        return parse_recovery_log(self.log_since_start())

    def phase(self) -> Phase:
        """What the instance does now.

        ``open`` accepts writes; ``paused`` waits at its target; ``shut-down`` has ended as its
        target action asked, or by a clean stop. Raises RecoveryError, with the lines of the log
        that explain it, when the instance has failed.
        """
        if self._process is None:
            raise PostgresError(f"the instance of {self.settings.pgdata} was not started")
        status = self._process.poll()
        if status is not None:
            return self._ended(status)
        word = _status_word(self.settings.pgdata, self._process.pid)
        if word == "standby":
            return "recovering"  # with hot_standby=off: nobody may connect before the end
        if word != "ready":
            return "starting"
        # A hot standby is "ready" as well; only pg_control tells it from an open server.
        if read_control(self.settings.pgdata).state == "in production":
            return "open"
        return "paused" if self._is_paused() else "recovering"

    def wait(
        self,
        until: tuple[Phase, ...] = ("open", "paused", "shut-down"),
        *,
        timeout_seconds: float | None = None,
        on_phase: Callable[[Phase], None] | None = None,
    ) -> Phase:
        """Wait for one of the phases and return it.

        ``on_phase`` is called at every look (about 50 times a second). Without a timeout it
        waits as long as recovery takes. Raises RecoveryError when the instance fails, or when
        the time is over (the instance is left as it is).
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            phase = self.phase()
            if on_phase is not None:
                on_phase(phase)
            if phase in until:
                return phase
            if phase == "shut-down":
                raise self._failed("has ended before it was ready")
            if deadline is not None and time.monotonic() > deadline:
                raise self._failed(f"is still {phase} after {timeout_seconds:g} seconds")
            time.sleep(_POLL_SECONDS)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the instance and wait until it is gone; may be called several times.

        Raises PostgresError when it does not end within two minutes (and it is then killed).
        """
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(_SIGNALS[mode])
        try:
            process.wait(_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            raise PostgresError(
                f"the instance of {self.settings.pgdata} did not stop within "
                f"{_STOP_TIMEOUT_SECONDS:g} seconds and was killed",
                hint=f"its log is {self.settings.log_path}",
            ) from error

    def keep(self) -> None:
        """Let the server live on when the context is left without an error."""
        self._is_kept = True

    def _let_go(self) -> None:
        if self._process is not None and self._process.returncode is None:
            # Popen would complain about a child that outlives it, which is what is wanted here.
            self._process.returncode = 0
        self._process = None

    def _is_paused(self) -> bool:
        try:
            with self.connect("asking for the state of recovery") as connection:
                return recovery_state(connection).is_paused
        except PostgresUnreachableError:
            return False  # ended or promoted between two looks; the next one tells
        except PostgresRightsError:
            return self.report().is_paused

    def _ended(self, status: int) -> Phase:
        if status == 0:
            return "shut-down"
        raise self._failed(f"has ended with status {status}")

    def _failed(self, what: str) -> RecoveryError:
        lines = self.report().trouble or tuple(self.log_since_start().splitlines())
        shown = "\n  ".join(lines[-_LOG_LINES_SHOWN:])
        return RecoveryError(
            f"the instance of {self.settings.pgdata} {what}" + (f":\n  {shown}" if shown else ""),
            hint=f"the whole log is {self.settings.log_path}",
        )


def running_postmaster(pgdata: str | os.PathLike[str]) -> int | None:
    """Process id of the postmaster that runs on ``pgdata`` on this host, or None.

    A postmaster.pid whose process is gone, or is another program than one that works in this
    directory, counts as left over (where /proc tells; elsewhere any living process counts).
    """
    directory = os.path.realpath(pgdata)
    try:
        lines = Path(directory, "postmaster.pid").read_text(errors="replace").splitlines()
        pid = abs(int(lines[0]))
    except (FileNotFoundError, NotADirectoryError, ValueError, IndexError):
        return None
    except OSError as error:
        raise DataDirectoryError(
            f"{directory}/postmaster.pid cannot be read: {error.strerror}",
            hint="run the command as the user that owns the data directory",
        ) from error
    if not is_running(pid):
        return None
    try:
        working_directory = str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return pid  # somebody else's process: taken for the postmaster, to be safe
    return pid if working_directory == directory else None


def _status_word(pgdata: str, pid: int) -> str:
    """The eighth line of postmaster.pid: starting, stopping, ready or standby (miscadmin.h)."""
    try:
        lines = Path(pgdata, "postmaster.pid").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[7].strip() if len(lines) >= 8 and lines[0] == str(pid) else ""
