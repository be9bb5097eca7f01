"""The commands that PostgreSQL is given where its image has no Python. Pure and light.

As wal.commands, by the self-contained client; exit statuses mean the same there.
"""

from __future__ import annotations

import shlex

from pgrecall.errors import EXIT_PROVEN_ABSENT
from pgrecall.wal.commands import EXIT_UNKNOWN


def client_archive_command(client: str, socket: str, server: str) -> str:
    """archive_command; ``client`` and ``socket`` are paths as PostgreSQL's host sees them.

    ``server`` is the name that the agent must serve. All may hold any character but NUL.
    """
    return f'{_words(client, "push", socket, server)} "%p"'


def client_restore_command(client: str, socket: str, server: str, *, standby: bool = False) -> str:
    """restore_command for archive recovery, or for a standby; see wal.commands.restore_command."""
    fetch = f'{_words(client, "fetch", socket, server)} %f "%p"'
    if standby:
        return f"{fetch} || exit 1"
    return f"{fetch} || {{ [ $? -eq {EXIT_PROVEN_ABSENT} ] && exit 1; exit {EXIT_UNKNOWN}; }}"


def _words(client: str, verb: str, socket: str, server: str) -> str:
    words = [client, verb, "--socket", socket, "--server", server]
    return shlex.join(words).replace("%", "%%")
