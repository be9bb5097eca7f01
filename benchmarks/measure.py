"""Run commands and measure them with everything that they start: wall, CPU, memory of the tree.

``measure`` starts ``python -m benchmarks.measure`` as a process of its own. That process is the
subreaper of what it runs, so that daemons of a command (pgBackRest's asynchronous archiver) are
waited for and counted as well. CPU is the user and system time of all processes of the tree, as
wait4 reports it.

Memory is the sum of the proportional set sizes (PSS: a page that k processes share counts 1/k for
each; page cache that is merely mapped counts too) of all living processes of the tree; the largest
sum is the peak. Asking for it walks the page tables of what is measured and holds up its page
faults, so it is asked for after 10, 30, 70 and 150 ms, then every 100 ms: a peak that is shorter
is missed. Beside it stands the largest single process, by wait4's ru_maxrss, which misses nothing.
Linux hands the size of the process that starts a command on to it, so sizes below that of the
measuring process (``floor_bytes``) are not known.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_FIRST_SAMPLE_SECONDS = 0.01
_SAMPLE_SECONDS = 0.1
_SERVICE_SECONDS = 60.0
_POLL_SECONDS = 0.005
_ROOT = Path(__file__).resolve().parents[1]


class MeasureError(Exception):
    """A command failed; the message holds the end of what it wrote."""


@dataclass(frozen=True)
class Measurement:
    """One run. ``calls`` are the wall seconds of each command, in order.

    ``server_cpu_seconds`` is what the server's processes (PostgreSQL's, those that it started for
    archiving included, or the object store's) used meanwhile (resolution 10 ms);
    ``sampler_cpu_seconds`` what looking at the memory took. ``largest_bytes`` is the largest
    resident size of a single process, known only where it is above ``floor_bytes``.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    server_cpu_seconds: float = 0.0
    sampler_cpu_seconds: float = 0.0
    stored_bytes: int = 0
    largest_bytes: int = 0
    floor_bytes: int = 0
    calls: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Service:
    """A process that works beside the commands; ``ready`` is a path that it makes.

    Cold: its start and its end are in the clock. Warm: it runs before the clock starts and is
    ended after it; its start and its end count neither as wall nor as CPU time.
    """

    command: list[str]
    ready: str
    is_warm: bool = False
    settle_seconds: float = 2.0  # warm: its threads have begun, and looked once


def measure(
    commands: Sequence[Sequence[str]],
    *,
    environment: Mapping[str, str] | None = None,
    server: int = 0,
    service: Service | None = None,
    appearing: Sequence[Path] = (),
    samples: bool = True,
) -> Measurement:
    """Run the commands one after another and measure them together.

    ``server``: the process id of a server whose CPU time is reported beside. ``appearing``: empty
    files that are made when the clock starts. ``samples``: whether memory is looked at.
    Raises MeasureError when a command does not end with 0, or the service ends by itself.
    """
    with tempfile.TemporaryDirectory(prefix="measure-") as directory:
        log, specification = Path(directory, "log"), Path(directory, "specification.json")
        content = {
            "commands": [list(one) for one in commands],
            "service": vars(service) if service else None,
            "appearing": list(map(str, appearing)),
            "samples": samples,
        }
        specification.write_text(json.dumps(content))
        before = server_cpu_seconds(server) if server else 0.0
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.measure", str(specification), str(log)],
            cwd=_ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
        )
        try:
            output, _ = child.communicate()
        except BaseException:
            child.send_signal(signal.SIGTERM)
            child.wait()
            raise
        after = server_cpu_seconds(server) if server else 0.0
        if child.returncode != 0:
            written = log.read_text(errors="replace")[-4000:] if log.exists() else ""
            raise MeasureError(f"{' '.join(commands[0])} failed:\n{written}")
        return Measurement(**json.loads(output), server_cpu_seconds=round(after - before, 2))


def server_cpu_seconds(server: int) -> float:
    """User and system time of a process, its children, and all that they waited for."""
    return _cpu_seconds((server, *_children(server)))


def _cpu_seconds(pids: Iterable[int]) -> float:
    return sum(map(_cpu_ticks, pids)) / os.sysconf("SC_CLK_TCK")


def _cpu_ticks(pid: int) -> int:
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # ended meanwhile: its parent has waited for it and counts its time
    return sum(int(value) for value in content.rpartition(")")[2].split()[11:15])


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return found
    for task in tasks:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


# --- the measuring process -----------------------------------------------------------


class _Runner(threading.Thread):
    """Runs the commands and waits for everything that they left behind."""

    def __init__(self, specification: dict[str, Any], log: str) -> None:
        super().__init__(name="runner")
        self.calls: list[float] = []
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0
        self.largest_bytes = 0
        self.failed = False
        self.clock_runs = threading.Event()
        self._commands: list[list[str]] = specification["commands"]
        self._appearing: list[str] = specification["appearing"]
        self._service = Service(**specification["service"]) if specification["service"] else None
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._nothing = os.open(os.devnull, os.O_RDONLY)
        self._ended: set[int] = set()

    def run(self) -> None:
        try:
            if self._service is not None and self._service.is_warm:
                self._beside_warm(self._service)
            else:
                self._cold(self._service)
            with contextlib.suppress(ChildProcessError):
                while True:
                    self._wait(-1)
        except _FailedError:
            self.failed = True
        except OSError as error:
            os.write(self._log, f"{error}\n".encode())
            self.failed = True
        finally:
            self.clock_runs.set()

    def _cold(self, service: Service | None) -> None:
        """CPU is that of everything, to the end of the last process."""
        began = self._start_clock()
        pid = self._begin_service(service) if service else 0
        self._run_commands()
        if pid:
            self._end_service(pid)
        self.wall_seconds = time.monotonic() - began

    def _beside_warm(self, service: Service) -> None:
        """CPU is that of everything while the clock ran."""
        pid = self._begin_service(service)
        time.sleep(service.settle_seconds)
        before = self._used()
        began = self._start_clock()
        self._run_commands()
        self.wall_seconds = time.monotonic() - began
        used = self._used() - before
        self._end_service(pid)
        with contextlib.suppress(ChildProcessError):
            while True:
                self._wait(-1)
        self.cpu_seconds = used

    def _start_clock(self) -> float:
        self.clock_runs.set()
        began = time.monotonic()
        for path in self._appearing:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        return began

    def _run_commands(self) -> None:
        for command in self._commands:
            call = time.monotonic()
            if self._wait(self._spawn(command)) != 0:
                raise _FailedError
            self.calls.append(time.monotonic() - call)

    def _begin_service(self, service: Service) -> int:
        pid = self._spawn(service.command)
        deadline = time.monotonic() + _SERVICE_SECONDS
        while not os.path.exists(service.ready):
            has_ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            if has_ended or time.monotonic() > deadline:
                os.write(self._log, b"the service did not start\n")
                raise _FailedError
            time.sleep(_POLL_SECONDS)
        return pid

    def _end_service(self, pid: int) -> None:
        if pid in self._ended:
            os.write(self._log, b"the service ended by itself\n")
            raise _FailedError
        os.kill(pid, signal.SIGTERM)
        self._wait(pid)

    def _spawn(self, command: list[str]) -> int:
        actions = [
            (os.POSIX_SPAWN_DUP2, self._nothing, 0),
            (os.POSIX_SPAWN_DUP2, self._log, 1),
            (os.POSIX_SPAWN_DUP2, self._log, 2),
        ]
        return os.posix_spawn(command[0], command, os.environ, file_actions=actions)

    def _used(self) -> float:
        return self.cpu_seconds + _cpu_seconds(_descendants())

    def _wait(self, wanted: int) -> int:
        """Wait for a process, and count orphans that end meanwhile."""
        while True:
            pid, status, usage = os.wait4(-1, 0)
            self._ended.add(pid)
            self.cpu_seconds += usage.ru_utime + usage.ru_stime
            self.largest_bytes = max(self.largest_bytes, usage.ru_maxrss * 1024)
            if wanted in (-1, pid):
                return status


class _FailedError(Exception):
    """A command did not end with 0; the log says why."""


def _descendants() -> list[int]:
    found: list[int] = []
    level = _children(os.getpid())
    while level:
        found += level
        level = [child for pid in level for child in _children(pid)]
    return found


def _tree_bytes() -> int:
    total = 0
    for pid in _descendants():
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                content = file.read()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended, or begins just now
        start = content.find(b"\nPss:")
        if start >= 0:
            total += int(content[start + 5 : content.index(b"kB", start)]) * 1024
    return total


def _end_descendants(number: int, frame: object) -> None:
    del frame
    _end_all()
    sys.exit(128 + number)


def _end_all() -> None:
    for pid in _descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _own_peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main(argv: list[str]) -> int:
    """Run what the specification says; write the measurement as JSON to standard output."""
    specification, log = argv
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    content = json.loads(Path(specification).read_text())
    runner = _Runner(content, log)
    runner.daemon = True  # when we are told to end, the tree is ended and not waited for
    signal.signal(signal.SIGTERM, _end_descendants)
    runner.start()
    runner.clock_runs.wait()
    used = time.thread_time()  # this thread only looks at the memory
    peak, pause = 0, _FIRST_SAMPLE_SECONDS
    while runner.is_alive():
        runner.join(pause if content["samples"] else None)
        peak = max(peak, _tree_bytes()) if content["samples"] else 0
        pause = min(2 * pause, _SAMPLE_SECONDS)
    if runner.failed:
        _end_all()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        return 1
    measured = Measurement(
        wall_seconds=runner.wall_seconds,
        cpu_seconds=runner.cpu_seconds,
        peak_bytes=peak,
        sampler_cpu_seconds=time.thread_time() - used,
        largest_bytes=runner.largest_bytes,
        floor_bytes=_own_peak_bytes(),
        calls=runner.calls,
    )
    fields = {name: value for name, value in vars(measured).items() if name != "server_cpu_seconds"}
    print(json.dumps(fields))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
