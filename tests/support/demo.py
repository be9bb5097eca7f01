"""Runs of ``pgrecall demo`` in a temporary directory of their own, and what they leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from pgrecall.system.unprivileged import RUNTIME_VARIABLE

DEADLINE_SECONDS = 120.0
QUICK = ("--scale", "1")


class DemoRun:
    """One ``pgrecall demo`` as a process; ``place`` is its TMPDIR."""

    def __init__(self, place: Path, *arguments: str, argv: list[str] | None = None) -> None:
        self.place = place
        self.text = ""
        environment = {**os.environ, "TMPDIR": str(place)}
        environment.pop(RUNTIME_VARIABLE, None)  # of the tests' launcher, not of root's demo
        self.process = subprocess.Popen(
            argv or [sys.executable, "-m", "pgrecall", "demo", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, pattern: str) -> None:
        """Read its output up to a line that matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line
            if re.search(pattern, line):
                return
        raise AssertionError(f"it ended without {pattern!r}:\n{self.text}")

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Read the rest and wait; returns the exit status."""
        rest, _ = self.process.communicate(timeout=DEADLINE_SECONDS)
        self.text += rest
        return self.process.returncode

    def kill(self) -> None:
        """For the end of a test that has failed."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.communicate(timeout=DEADLINE_SECONDS)


def processes_of(directory: Path) -> list[str]:
    """Command lines of all processes that name the directory or work in it, but for our own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        try:
            cwd = str((entry / "cwd").readlink())
        except OSError:
            cwd = ""
        if state != "Z" and (str(directory) in words or cwd.startswith(str(directory))):
            found.append(f"{entry.name} {words}")
    return found


def assert_nothing_left(place: Path) -> None:
    """Neither a process nor a file. PostgreSQL's children may need a moment after their parent."""
    deadline = time.monotonic() + 5
    while processes_of(place) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_of(place) == []
    assert list(place.iterdir()) == []
