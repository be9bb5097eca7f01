"""Where a recovery without an agent has its next segments fetched to, and whose that is. Light.

The directory is PGDATA's (AHEAD_DIRECTORY). Who fetches ahead holds a lock there, from
before the process is there until it is gone; a process that is killed leaves the
directory, and nobody holds the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from pgrecall.system.removal import remove_tree

AHEAD_DIRECTORY = "pg_wal/pgrecall_ahead"
"""In PGDATA, while a recovery without an agent runs: where its next segments are fetched to."""

AHEAD_SOCKET = f"{AHEAD_DIRECTORY}/fetch.sock"
"""There they are asked for; restore_command runs in PGDATA, so the path needs no more."""

AHEAD_LOCK = f"{AHEAD_DIRECTORY}/lock"
"""Held (flock) for the process that fetches ahead from before it is there until it is gone."""

_MODE = 0o700
_FILE_MODE = 0o600
_LOCK_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


def take(pgdata: str) -> int | None:
    """Make the directory and take its lock: the descriptor; None when somebody else has it.

    Raises OSError.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{pgdata}/{AHEAD_DIRECTORY}", _MODE)
    lock = os.open(f"{pgdata}/{AHEAD_LOCK}", _LOCK_FLAGS | os.O_CREAT, _FILE_MODE)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink:
            return lock
        # Who had it has just removed the directory, and this file with it.
    os.close(lock)
    return None


def is_abandoned(pgdata: str) -> bool:
    """Whether the directory is there and nobody is at it; raises OSError when it cannot be told."""
    if not os.path.isdir(f"{pgdata}/{AHEAD_DIRECTORY}"):
        return False
    # A process that was started by hand has the lock beside its socket only.
    return all(_is_free(f"{pgdata}/{name}") for name in (AHEAD_LOCK, f"{AHEAD_SOCKET}.lock"))


def remove_abandoned(pgdata: str) -> bool:
    """Remove the directory if nobody is at it; True: that was done.

    Nobody else can begin to use it meanwhile. Raises OSError.
    """
    if not os.path.isdir(f"{pgdata}/{AHEAD_DIRECTORY}"):
        return False
    lock = take(pgdata)
    if lock is None:
        return False
    try:
        if not _is_free(f"{pgdata}/{AHEAD_SOCKET}.lock"):
            return False
        remove_tree(f"{pgdata}/{AHEAD_DIRECTORY}")
    finally:
        os.close(lock)
    return True


def _is_free(path: str) -> bool:
    try:
        lock = os.open(path, _LOCK_FLAGS)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
