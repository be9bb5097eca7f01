"""Where the copy of a drill lives: a directory that is gone afterwards, whatever happens.

A drill that was killed leaves its directory, and maybe a server in it; the next drill there
finds both, by the process that the directory names, and removes them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgrecall.errors import PostgresError, SettingsError
from pgrecall.model.findings import Finding
from pgrecall.postgres.instance import running_postmaster
from pgrecall.system.held_signals import signals_held
from pgrecall.system.processes import is_running, wait_until_gone

_PREFIX = "pgrecall-drill-"
_OWNER = "owner.json"
_STOP_SECONDS = 60.0


@contextmanager
def drill_place(directory: str) -> Iterator[Path]:
    """A directory of its own below ``directory``; at the end what runs in it is stopped.

    Raises SettingsError when nothing can be made there.
    """
    with signals_held():
        try:
            place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory))
        except OSError as error:
            raise SettingsError(
                f"drill.directory {directory}: {error.strerror}", hint="make it, or name another"
            ) from error
        (place / _OWNER).write_text(
            json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8"
        )
    try:
        yield place
    finally:
        remove_place(place)


def remove_abandoned(directory: str) -> list[Finding]:
    """Stop and remove what killed drills of this user and host have left; a finding for each."""
    removed = []
    for place in sorted(Path(directory).glob(_PREFIX + "*")):
        if not _is_abandoned(place):
            continue
        remove_place(place)
        removed.append(
            Finding(
                severity="warn",
                code="drill-abandoned",
                subject=str(place),
                message="a drill or rescue that was killed had left it; it was removed",
            )
        )
    return removed


def remove_place(place: Path) -> None:
    """Stop the server that runs in a drill's directory, and remove all of it."""
    for data in place.glob("*/PG_VERSION"):
        stop_instance(data.parent)
    shutil.rmtree(place, ignore_errors=True)


def stop_instance(pgdata: Path) -> None:
    """Stop the postmaster of a copy, at once: nobody needs what it has not written."""
    pid = running_postmaster(pgdata)
    if pid is None:
        return
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        if wait_until_gone(pid, _STOP_SECONDS):
            return
    raise PostgresError(f"process {pid}, the server in {pgdata}, does not end")


def _is_abandoned(place: Path) -> bool:
    """Whether its drill is surely over: a process of this host that is gone."""
    try:
        if place.stat().st_uid != os.geteuid():
            return False
        owner = json.loads((place / _OWNER).read_text(encoding="utf-8"))
        return owner["host"] == socket.gethostname() and not is_running(int(owner["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False
