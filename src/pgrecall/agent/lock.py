"""One agent for one server on one host: a lock that ends with the process, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pgrecall.errors import AgentPlaceError, AgentRunningError
from pgrecall.wal.agent_places import DIRECTORY_MODE

_LOCK = "agent.lock"
_LONGEST_PID = 32
_ASKING_SECONDS = 0.5
_POLL_SECONDS = 0.02


@contextmanager
def agent_lock(directory: str) -> Iterator[None]:
    """Hold the lock of the agent whose own directory is ``directory``; makes the directory.

    The lock (flock(2)) belongs to the open file: the kernel lets it go when the
    process is gone, so that nothing is left behind by SIGKILL. Raises
    AgentRunningError with the other's pid, AgentPlaceError when the directory
    cannot be made, is somebody else's, or is open to others.
    """
    _make_private(directory)
    path = os.path.join(directory, _LOCK)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        if not _taken(descriptor):
            pid = _read_pid(descriptor)
            raise AgentRunningError(
                f"an agent runs already for this server{f', pid {pid}' if pid else ''}: {path}",
                hint="end that one first, or give this one a server of its own (--server)",
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def running_agent(directory: str) -> int | None:
    """The pid of the agent that holds the lock of ``directory``; None when there is none.

    0: one runs, and its pid cannot be read. Asking takes the lock for a moment in
    shared mode, so that several may ask. Raises AgentPlaceError when it cannot be told.
    """
    try:
        descriptor = os.open(os.path.join(directory, _LOCK), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(descriptor) or 0
    finally:
        os.close(descriptor)
    return None


def _taken(descriptor: int) -> bool:
    """Take the lock; who only asks (running_agent) holds it for a moment that is waited for."""
    deadline = time.monotonic() + _ASKING_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True


def _make_private(directory: str) -> None:
    try:
        os.makedirs(os.path.dirname(directory), mode=0o755, exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(directory, DIRECTORY_MODE)
        facts = os.stat(directory)
    except OSError as error:
        raise _unusable(directory, error) from error
    if facts.st_uid != os.geteuid():
        raise AgentPlaceError(
            f"{directory} belongs to user {facts.st_uid}, and this agent runs as {os.geteuid()}",
            hint="run the agent as the user that PostgreSQL runs as, or set [agent] directory",
        )
    if facts.st_mode & 0o077:
        raise AgentPlaceError(
            f"{directory} is open to other users (mode {facts.st_mode & 0o7777:o})",
            hint=f"chmod 0700 {directory}: WAL in it holds all that the database holds",
        )


def _read_pid(descriptor: int) -> int:
    text = os.pread(descriptor, _LONGEST_PID, 0).split(b"\n")[0]
    return int(text) if text.isdigit() else 0


def _unusable(directory: str, error: OSError) -> AgentPlaceError:
    what = "may not be used by this user" if error.errno == errno.EACCES else str(error.strerror)
    return AgentPlaceError(
        f"the agent's directory {directory}: {what}",
        hint="make it for the user that the agent runs as, or set [agent] directory",
    )
