"""Which PostgreSQL servers run on this host, and what their data directories say.

Source: PostgreSQL's ``src/include/utils/pidfile.h`` (lines of postmaster.pid).
"""

from __future__ import annotations

import glob
import os
import pwd
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from pgrecall.errors import DataDirectoryError
from pgrecall.system.processes import is_running

PID_FILE = "postmaster.pid"

_USUAL_PLACES = (
    "/var/lib/postgresql/*/*",  # Debian
    "/var/lib/pgsql/*/data",  # PGDG's packages for Red Hat
    "/var/lib/pgsql/data",
    "/var/lib/postgresql/data",  # the container image, and Alpine
    "/var/lib/postgres/data",
    "/opt/homebrew/var/postgresql@*",
    "/usr/local/var/postgresql@*",
)


class RunningServer(msgspec.Struct, frozen=True):
    """A postmaster, from its postmaster.pid.

    ``socket_directory`` and ``listen_address`` are empty when there is none.
    """

    data_directory: str
    pid: int
    port: int
    socket_directory: str
    listen_address: str

    @property
    def host(self) -> str:
        """What to connect to: the socket directory, else an address that reaches it from here."""
        if self.socket_directory:
            return self.socket_directory
        return "localhost" if self.listen_address in {"*", "0.0.0.0", "::"} else self.listen_address  # noqa: S104 (compared, not bound)


def running_servers(environment: Mapping[str, str]) -> list[RunningServer]:
    """The servers on this host whose postmaster.pid this user may read, by data directory.

    Looks at PGDATA of ``environment``, the usual places, and the working
    directory of every process (PostgreSQL's processes work in PGDATA).
    """
    found: dict[str, RunningServer] = {}
    for place in _places(environment):
        real = os.path.realpath(place)
        if real not in found:
            server = running_server(real)
            if server is not None:
                found[real] = server
    return [found[real] for real in sorted(found)]


def running_server(data_directory: str) -> RunningServer | None:
    """The server that works on ``data_directory``; None when none does, or it cannot be told."""
    try:
        lines = (Path(data_directory) / PID_FILE).read_text("utf-8", "surrogateescape").splitlines()
        pid, port = abs(int(lines[0])), int(lines[3])
    except (OSError, ValueError, IndexError):
        return None  # not running, not ours to read, or still starting
    if not is_running(pid):
        return None
    padded = [*lines, "", ""]
    return RunningServer(
        data_directory=data_directory,
        pid=pid,
        port=port,
        socket_directory=padded[4].strip(),
        listen_address=padded[5].strip(),
    )


def major_version(data_directory: str) -> int:
    """The major version in PG_VERSION; raises DataDirectoryError."""
    path = Path(data_directory) / "PG_VERSION"
    try:
        return int(path.read_text("ascii").strip().partition(".")[0])
    except (OSError, ValueError) as error:
        raise DataDirectoryError(
            f"{path} does not tell the major version of the data directory: {error}",
            hint="check the setting data_directory of the server",
        ) from error


def owner_name(data_directory: str) -> str:
    """The name of the operating system user that owns a directory; empty when it has none."""
    try:
        return pwd.getpwuid(os.stat(data_directory).st_uid).pw_name
    except (OSError, KeyError):
        return ""


def _places(environment: Mapping[str, str]) -> Iterator[str]:
    if environment.get("PGDATA"):
        yield environment["PGDATA"]
    for pattern in _USUAL_PLACES:
        yield from glob.glob(pattern)
    for link in glob.glob("/proc/[0-9]*/cwd"):
        try:
            directory = os.readlink(link)
        except OSError:
            continue  # gone meanwhile, or somebody else's
        if os.path.isfile(os.path.join(directory, PID_FILE)):
            yield directory
