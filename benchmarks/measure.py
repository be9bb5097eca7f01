"""Run commands and measure them with everything that they start: wall, CPU, memory of the tree.

``measure`` starts ``python -m benchmarks.measure`` as a process of its own. That process is the
subreaper of what it runs, so that daemons of a command (pgBackRest's asynchronous archiver) are
waited for and counted as well. CPU is the user and system time of all processes of the tree, as
wait4 reports it. Memory is the sum of the proportional set sizes (PSS: a page that k processes
share counts 1/k for each; page cache that is merely mapped counts too) of all living processes
of the tree, sampled about every 20 ms; the largest sum is the peak.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_SECONDS = 0.02
_ROOT = Path(__file__).resolve().parents[1]


class MeasureError(Exception):
    """A command failed; the message holds the end of what it wrote."""


@dataclass(frozen=True)
class Measurement:
    """One run. ``calls`` are the wall seconds of each command, in order.

    ``server_cpu_seconds`` is what PostgreSQL's processes used meanwhile, those that it started
    for archiving included (resolution 10 ms); ``sampler_cpu_seconds`` what measuring took.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    server_cpu_seconds: float = 0.0
    sampler_cpu_seconds: float = 0.0
    stored_bytes: int = 0
    calls: list[float] = field(default_factory=list)


def measure(
    commands: Sequence[Sequence[str]],
    *,
    environment: Mapping[str, str] | None = None,
    postmaster: int = 0,
) -> Measurement:
    """Run the commands one after another and measure them together.

    Raises MeasureError when one of them does not end with 0.
    """
    with tempfile.TemporaryDirectory(prefix="measure-") as directory:
        log, specification = Path(directory, "log"), Path(directory, "specification.json")
        specification.write_text(json.dumps({"commands": [list(one) for one in commands]}))
        before = server_cpu_seconds(postmaster) if postmaster else 0.0
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
        after = server_cpu_seconds(postmaster) if postmaster else 0.0
        if child.returncode != 0:
            written = log.read_text(errors="replace")[-4000:] if log.exists() else ""
            raise MeasureError(f"{' '.join(commands[0])} failed:\n{written}")
        return Measurement(**json.loads(output), server_cpu_seconds=round(after - before, 2))


def server_cpu_seconds(postmaster: int) -> float:
    """User and system time of a postmaster, its children, and all that they waited for."""
    return sum(_cpu_ticks(pid) for pid in (postmaster, *_children(postmaster))) / os.sysconf(
        "SC_CLK_TCK"
    )


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

    def __init__(self, commands: list[list[str]], log: str) -> None:
        super().__init__(name="runner")
        self.calls: list[float] = []
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0
        self.failed = False
        self._commands = commands
        self._log = log

    def run(self) -> None:
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        actions = [
            (os.POSIX_SPAWN_DUP2, nothing, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        began = time.monotonic()
        for command in self._commands:
            call = time.monotonic()
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
            if self._wait(pid) != 0:
                self.failed = True
                break
            self.calls.append(time.monotonic() - call)
        self.wall_seconds = time.monotonic() - began
        with contextlib.suppress(ChildProcessError):
            while True:
                self._wait(-1)

    def _wait(self, wanted: int) -> int:
        """Wait for a process, and count orphans that end meanwhile."""
        while True:
            pid, status, usage = os.wait4(-1, 0)
            self.cpu_seconds += usage.ru_utime + usage.ru_stime
            if wanted in (-1, pid):
                return status


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
    for pid in _descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    sys.exit(128 + number)


def main(argv: list[str]) -> int:
    """Run what the specification says; write the measurement as JSON to standard output."""
    specification, log = argv
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    runner = _Runner(json.loads(Path(specification).read_text())["commands"], log)
    runner.daemon = True  # when we are told to end, the tree is ended and not waited for
    signal.signal(signal.SIGTERM, _end_descendants)
    used = time.process_time()
    runner.start()
    peak = 0
    while runner.is_alive():
        peak = max(peak, _tree_bytes())
        runner.join(_SAMPLE_SECONDS)
    if runner.failed:
        return 1
    measured = Measurement(
        wall_seconds=runner.wall_seconds,
        cpu_seconds=runner.cpu_seconds,
        peak_bytes=peak,
        sampler_cpu_seconds=time.process_time() - used,
        calls=runner.calls,
    )
    fields = {name: value for name, value in vars(measured).items() if name != "server_cpu_seconds"}
    print(json.dumps(fields))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
