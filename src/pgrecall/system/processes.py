"""Processes of this host: which are alive, which work under a directory, and how they are ended."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_POLL_SECONDS = 0.01


def is_running(pid: int) -> bool:
    """True when a process with this id exists and is no zombie. Whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid) not in {"Z", "X"}


def wait_until_gone(pid: int, timeout_seconds: float) -> bool:
    """Wait until the process is gone; True when it is, False when the time is over.

    For processes that are no children of this one; reap children with waitpid instead.
    """
    deadline = time.monotonic() + timeout_seconds
    while is_running(pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def processes_under(directory: str | os.PathLike[str]) -> list[int]:
    """Ids of the processes whose program or working directory lies under ``directory``.

    Reads /proc, so it is empty where there is none; processes of other users are seen by root
    only. This process itself is left out.
    """
    root = os.path.realpath(directory)
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        for link in ("cwd", "exe"):
            try:
                target = str((entry / link).readlink())
            except OSError:
                continue  # gone meanwhile, a kernel thread, or somebody else's
            if target == root or target.startswith(root + "/"):
                found.append(int(entry.name))
                break
    return found


def working_directories() -> list[str]:
    """The working directories of all processes of this host that this user may look at."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found.append(str((entry / "cwd").readlink()))
        except OSError:
            continue  # gone meanwhile, a kernel thread, or somebody else's
    return found


def end_processes(pids: list[int], *, patience_seconds: float = 5.0) -> None:
    """Ask the processes to end (SIGTERM), and kill after ``patience_seconds`` those that stay."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience_seconds
        pids = [pid for pid in pids if not wait_until_gone(pid, deadline - time.monotonic())]


def _state(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    # The name in parentheses may hold anything, a closing parenthesis too.
    return text.rpartition(")")[2].strip()[:1]
