"""One segment through the very command that PostgreSQL is going to be given."""

from __future__ import annotations

import os
import pwd
import re
import subprocess

from pgrecall.errors import ArchivingRefusedError
from pgrecall.postgres.actions import switch_wal
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.instance import running_postmaster

_SECONDS = 300
_PLACEHOLDER = re.compile(r"%(.)")


def may_probe(pgdata: str) -> bool:
    """Whether the command can be run as PostgreSQL would run it: as its user, in ``pgdata``."""
    return bool(pgdata) and os.geteuid() in {0, os.stat(pgdata).st_uid}


def probe_push(connection: Connection, command: str, pgdata: str) -> str:
    """Finish a segment and archive it with ``command``; returns its name when it is durable.

    By the shell, in PGDATA, as the server's user and with its environment, as the
    archiver does (pgarch.c). The segment is the server's own, so that it may stay in the archive.
    Raises ArchivingRefusedError with what the command said.
    """
    name = switch_wal(connection, message="pgrecall wal enable").file
    values = {"p": f"pg_wal/{name}", "f": name, "%": "%"}
    line = _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), command)
    user, group, groups = _identity(pgdata)
    try:
        finished = subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=pgdata,
            env=_environment(pgdata),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SECONDS,
            check=False,
            user=user,
            group=group,
            extra_groups=groups,
        )
    except subprocess.TimeoutExpired as error:
        raise ArchivingRefusedError(
            f"archiving {name} did not end within {_SECONDS} seconds: archiving stays off",
            hint="is the repository reachable from the server's host? `pgrecall check` looks",
        ) from error
    if finished.returncode != 0:
        said = finished.stdout.decode(errors="replace").strip()
        raise ArchivingRefusedError(
            f"archiving {name} failed with status {finished.returncode}, so archiving stays off: "
            f"{said or 'it said nothing'}",
            hint=f"mend what it says; tried in {pgdata}: {line}",
        )
    return name


def _identity(pgdata: str) -> tuple[int | None, int | None, list[int] | None]:
    """User, group and other groups of the command: the server's also when this is root."""
    if os.geteuid() != 0:
        return None, None, None
    found = os.stat(pgdata)
    try:
        name = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        return found.st_uid, found.st_gid, []
    return found.st_uid, found.st_gid, os.getgrouplist(name, found.st_gid)


def _environment(pgdata: str) -> dict[str, str]:
    """The postmaster's environment, which is where its secrets and PATH come from."""
    pid = running_postmaster(pgdata)
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return dict(os.environ)  # no /proc: ours is the nearest
    pairs = (entry.partition(b"=") for entry in entries if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
