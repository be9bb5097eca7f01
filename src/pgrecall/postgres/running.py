"""An instance that somebody runs: found by what its postmaster.pid says."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from pgrecall.errors import DataDirectoryError
from pgrecall.postgres.instance import running_postmaster

_ANY_ADDRESS = {"*": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound


class RunningInstance(msgspec.Struct, frozen=True):
    """Lines of postmaster.pid (miscadmin.h). ``host`` is a socket directory or an address.

    ``word`` is starting, stopping, ready, standby (runs, and lets nobody connect), or empty.
    """

    pid: int
    port: int
    host: str
    word: str


def running_instance(pgdata: str) -> RunningInstance | None:
    """The instance that runs on ``pgdata``; None when none does. Raises DataDirectoryError."""
    pid = running_postmaster(pgdata)
    if pid is None:
        return None
    path = Path(pgdata, "postmaster.pid")
    try:
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    except OSError as error:
        raise DataDirectoryError(f"{path} cannot be read: {error.strerror}") from error
    if len(lines) < 6 or not lines[3].isdigit():
        return RunningInstance(pid, 0, "", "starting")
    socket_directory, address = lines[4], lines[5]
    if socket_directory:
        host = os.path.join(os.path.realpath(pgdata), socket_directory)
    else:
        host = _ANY_ADDRESS.get(address, address)
    return RunningInstance(pid, int(lines[3]), host, lines[7] if len(lines) > 7 else "")
