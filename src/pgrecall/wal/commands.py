"""The commands that PostgreSQL is given, as text for its configuration. Pure and light.

PostgreSQL replaces ``%p``, ``%f`` and ``%%`` and hands the rest to ``/bin/sh``;
a value in postgresql.conf is quoted once more (postgres.configuration.quote_setting).

Exit statuses, from PostgreSQL's pgarch.c, xlogarchive.c and fact 3: an archive
command may fail with 1 to 125. A restore command that ends with more than 125
ends recovery as an error, with 1 to 125 it says "there is no such file", which
promotes a server in archive recovery and makes a standby ask again later.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pgrecall.errors import EXIT_PROVEN_ABSENT

EXIT_UNKNOWN = 200
"""What the shell makes of "unknown" in archive recovery: more than 125, and no signal's number."""


def archive_command(pgrecall: Sequence[str], config: str, server: str) -> str:
    """archive_command; ``pgrecall`` is how to run it (program and first arguments).

    All three may hold any character but NUL.
    """
    return f'{_program(pgrecall, config, server)} wal push "%p"'


def client_archive_command(
    client: str, socket: str, server: str, fallback: Sequence[str] = ()
) -> str:
    """archive_command through the client without Python, which asks the agent at ``socket``.

    ``fallback``: program and configuration with which it does the work itself when no
    agent answers; empty: it fails then, and PostgreSQL tries again.
    """
    words = [client, "push", "--socket", socket, "--server", server, *_fallback(fallback)]
    return f'{_shell(words)} "%p"'


def restore_command(pgrecall: Sequence[str], config: str, server: str, *, standby: bool) -> str:
    """restore_command for archive recovery, or for a standby.

    The first segment that is delivered starts a process beside the server, which
    fetches the next ones ahead until recovery ends (cli.wal_ahead).

    In archive recovery only "proven absent" becomes 1, everything else (a crash of
    pgrecall, an unreachable repository, a program that is not found) 200. A
    standby would shut down at that: there everything becomes 1, and it asks again.
    """
    return _mapped(f'{_program(pgrecall, config, server)} wal fetch --ahead %f "%p"', standby)


def client_restore_command(
    client: str,
    sockets: Sequence[str],
    server: str,
    fallback: Sequence[str] = (),
    *,
    standby: bool = False,
) -> str:
    """restore_command through the client, which asks at each of ``sockets`` until one answers.

    ``fallback`` as in client_archive_command; it fetches ahead from then on, at
    agent.protocol.AHEAD_SOCKET, which is then to be the first of ``sockets``.
    """
    words = [client, "fetch"]
    for socket in sockets:
        words += ["--socket", socket]
    words += ["--server", server, *_fallback(fallback), *(["--ahead"] if fallback else [])]
    return _mapped(f'{_shell(words)} %f "%p"', standby)


def _mapped(fetch: str, standby: bool) -> str:
    """What PostgreSQL is told of the exit statuses of ``fetch`` (see restore_command)."""
    if standby:
        return f"{fetch} || exit 1"
    return f"{fetch} || {{ [ $? -eq {EXIT_PROVEN_ABSENT} ] && exit 1; exit {EXIT_UNKNOWN}; }}"


def _fallback(fallback: Sequence[str]) -> list[str]:
    if not fallback:
        return []
    program, config = fallback
    return ["--fallback", program, "--config", config]


def _program(pgrecall: Sequence[str], config: str, server: str) -> str:
    return _shell([*pgrecall, "--config", config, "--server", server])


def _shell(words: Sequence[str]) -> str:
    return shlex.join(words).replace("%", "%%")
