"""The process that fetches ahead of a recovery which has no agent: started, and entered (light).

``wal fetch --ahead`` comes here when it has delivered a segment: more will be asked
for. The process is on its own from then on (app.serving_recovery); PostgreSQL does
not wait for it, and finds it at AHEAD_SOCKET.
"""

from __future__ import annotations

import os

from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.postgres.ahead_place import AHEAD_DIRECTORY, take
from pgrecall.settings import ServerSettings, Settings
from pgrecall.wal.fetch import FetchResult

LOG_NAME = "log"
"""In AHEAD_DIRECTORY: what the process said; removed with everything else when it ends well."""

_FILE_MODE = 0o600


def start_ahead(
    settings: Settings, server: ServerSettings, pgdata: str, result: FetchResult
) -> bool:
    """Start it for the recovery in ``pgdata``, unless it is there already; True: started.

    ``result``: what the recovery was just given. Who holds the lock is there, or about
    to be. Raises OSError when that cannot be done.
    """
    if not settings.agent.prefetch_segments or not os.path.exists(f"{pgdata}/postmaster.pid"):
        return False
    pgdata = os.path.abspath(pgdata)
    lock = take(pgdata)
    if lock is None:
        return False
    config = os.path.abspath(settings.path)
    words = ahead_words(config, server.name, pgdata, result.name, result.repository)
    try:
        _spawn([*pgrecall_command(), *words], f"{pgdata}/{AHEAD_DIRECTORY}/{LOG_NAME}", lock)
    finally:
        os.close(lock)
    return True


def ahead_words(config: str, server: str, pgdata: str, segment: str, repository: str) -> list[str]:
    """The command line of the process; what it serves, and what was delivered last."""
    options = ["--config", config, "--server", server]
    return [*options, "wal", "fetch-ahead", pgdata, segment, repository]


def _spawn(words: list[str], log: str, lock: int) -> None:
    # The lock goes with the process, as descriptor 3. It is no child of the server's session: a
    # signal to its group must not end it, and it holds none of the server's pipes.
    actions = [
        (os.POSIX_SPAWN_DUP2, lock, 3),
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    os.posix_spawn(words[0], words, os.environ, file_actions=actions, setsid=True)
