"""Starts the process that fetches ahead of a recovery which has no agent (light).

``wal fetch --ahead`` comes here when it has delivered a segment: more will be asked
for. The process is on its own from then on (app.fetching_ahead); PostgreSQL does
not wait for it, and finds it at AHEAD_SOCKET.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from pgrecall.agent.protocol import AHEAD_DIRECTORY, AHEAD_LOCK
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.settings import ServerSettings, Settings

LOG_NAME = "log"
"""In AHEAD_DIRECTORY: what the process said; removed with everything else when it ends well."""

_MODE = 0o700
_FILE_MODE = 0o600


def start_ahead(settings: Settings, server: ServerSettings, pgdata: str) -> bool:
    """Start it for the recovery in ``pgdata``, unless it is there already; True: started.

    Who holds the lock is there, or about to be. Raises OSError when that cannot be done.
    """
    if not settings.agent.prefetch_segments or not os.path.exists(f"{pgdata}/postmaster.pid"):
        return False
    pgdata = os.path.abspath(pgdata)
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{pgdata}/{AHEAD_DIRECTORY}", _MODE)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(f"{pgdata}/{AHEAD_LOCK}", flags, _FILE_MODE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _spawn(settings, server, pgdata, lock)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _spawn(settings: Settings, server: ServerSettings, pgdata: str, lock: int) -> None:
    words = pgrecall_command()
    words += ["--config", os.path.abspath(settings.path), "--server", server.name]
    words += ["wal", "fetch-ahead", pgdata]
    log = f"{pgdata}/{AHEAD_DIRECTORY}/{LOG_NAME}"
    # The lock goes with the process, as descriptor 3. It is no child of the server's session: a
    # signal to its group must not end it, and it holds none of the server's pipes.
    actions = [
        (os.POSIX_SPAWN_DUP2, lock, 3),
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    os.posix_spawn(words[0], words, os.environ, file_actions=actions, setsid=True)
