"""The servers that are copied, and what is in them; made from nothing."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_DEADLINE_SECONDS = 120
_FULL_SCALE = 200
_READ_BYTES = 4 << 20
_NAME_LENGTH = 24

# Four rows fill a page; a digest does not compress, and below 2,000 bytes nothing is toasted.
_NOISE = """
create table noise as select i as id,
  (select string_agg(sha512((i || '/' || j)::bytea), ''::bytea) from generate_series(1, 30) j)
  as body from generate_series(1, {rows}) i
"""
_DOCUMENTS = """
create table documents as select i as id, json_build_object(
  'id', i, 'customer', 'customer-' || (random() * 100000)::int,
  'email', 'user' || (random() * 1000000)::int || '@example.com',
  'status', (array['new', 'paid', 'packed', 'sent', 'returned'])[1 + (random() * 4)::int],
  'amount', round((random() * 1000)::numeric, 2), 'session', md5(i::text),
  'created', timestamp '2026-01-01' + i * interval '7 seconds',
  'note', 'the quick brown fox no. ' || (random() * 1000)::int || ' jumps over the lazy dog')::text
  as body from generate_series(1, {rows}) i
"""
_SMALL_TABLES = """
do $$ begin for i in {first}..{last} loop
  execute format('create table small_%s (id int primary key, body uuid)', i);
  execute format(
    'insert into small_%s select j, md5(j::text)::uuid from generate_series(1, 200) j', i);
end loop; end $$
"""
_TABLES_A_TRANSACTION = 250


class DatasetError(Exception):
    """A server could not be made, or did not do what was asked of it."""


@dataclass(frozen=True)
class Programs:
    """PostgreSQL's programs; ``share_directory`` is initdb's -L, empty where it finds its own."""

    bin_directory: Path
    share_directory: str = ""

    def path(self, name: str) -> str:
        """The program's path."""
        return str(self.bin_directory / name)

    def output(self, argv: list[str], **more: str) -> str:
        """Run one of them and return what it prints; raises DatasetError."""
        done = subprocess.run(
            [self.path(argv[0]), *argv[1:]],
            env={**os.environ, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise DatasetError(f"{' '.join(argv)} failed:\n{done.stdout[-4000:]}")
        return done.stdout


class Cluster:
    """One server: its data directory, and how it is reached (a socket, as user postgres)."""

    def __init__(
        self, programs: Programs, data_directory: Path, socket_directory: Path, port: int
    ) -> None:
        self.programs = programs
        self.data_directory = data_directory
        self.socket_directory = socket_directory
        self.port = port
        self._started_here = False

    def create(self) -> None:
        """initdb, and settings that make loading fast; archiving is on, to nowhere."""
        argv = ["initdb", "-D", str(self.data_directory), "-U", "postgres", "-A", "trust"]
        argv += ["--data-checksums", "--encoding=UTF8", "--no-locale", "--no-sync"]
        if self.programs.share_directory:
            argv += ["-L", self.programs.share_directory]
        self.programs.output(argv)
        with open(self.data_directory / "postgresql.conf", "a", encoding="utf-8") as file:
            file.write(
                "listen_addresses = ''\n"
                f"unix_socket_directories = '{self.socket_directory}'\n"
                f"port = {self.port}\n"
                "shared_buffers = 512MB\nmax_wal_size = 8GB\ncheckpoint_timeout = 1h\n"
                "fsync = off\nwal_level = replica\nautovacuum = off\n"
                "max_locks_per_transaction = 1024\n"
                "archive_mode = on\narchive_command = 'true'\n"
            )

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.is_running():
            return
        log = self.socket_directory / f"server-{self.port}.log"
        self.programs.output(
            ["pg_ctl", "-D", str(self.data_directory), "-w", "-l", str(log), "start"]
        )
        self._started_here = True

    def stop(self) -> None:
        """Stop it, if we started it."""
        if self._started_here:
            self.programs.output(["pg_ctl", "-D", str(self.data_directory), "-w", "stop"])
            self._started_here = False

    def is_running(self) -> bool:
        """True when a postmaster works in the data directory."""
        argv = [self.programs.path("pg_ctl"), "-D", str(self.data_directory), "status"]
        return subprocess.run(argv, stdout=subprocess.DEVNULL, check=False).returncode == 0

    @property
    def postmaster(self) -> int:
        """The postmaster's process id."""
        return int((self.data_directory / "postmaster.pid").read_text().split()[0])

    def sql(self, *statements: str, database: str = "postgres") -> str:
        """Run statements and return the last one's output, unaligned."""
        commands = [word for statement in statements for word in ("-c", statement)]
        argv = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", str(self.socket_directory)]
        argv += ["-p", str(self.port), "-U", "postgres", "-d", database, *commands]
        return self.programs.output(argv).strip()

    # --- archiving ---------------------------------------------------------------

    def archive_by(self, command: str) -> None:
        """Set archive_command, and wait until a segment has gone its way."""
        quoted = command.replace("'", "''")
        self.sql(f"alter system set archive_command = '{quoted}'", "select pg_reload_conf()")
        self.sql("select pg_create_restore_point('benchmark')")
        name = self.sql("select pg_walfile_name(pg_switch_wal())")
        # PostgreSQL tries three times, then pauses for a minute; it never counts as failed here.
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while self.sql("select coalesce(last_archived_wal, '') from pg_stat_archiver") < name:
            if time.monotonic() > deadline:
                raise DatasetError(f"segment {name} was not archived by: {command}")
            time.sleep(0.05)

    def await_archiver(self) -> None:
        """Wait until no segment waits to be archived; raises DatasetError when that takes long."""
        status = self.data_directory / "pg_wal" / "archive_status"
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while any(name.endswith(".ready") for name in os.listdir(status)):
            if time.monotonic() > deadline:
                raise DatasetError("WAL waits to be archived for too long")
            time.sleep(0.05)  # nothing tells when the archiver has renamed the last one

    def archive_as_before(self) -> None:
        """Give archive_command back to postgresql.conf."""
        self.sql("alter system reset archive_command", "select pg_reload_conf()")

    # --- contents ----------------------------------------------------------------

    def load(self, scale: int) -> None:
        """pgbench tables, incompressible bytea and JSON-like text: about 4 GB at scale 200."""
        self.sql("create database bench")
        self.programs.output(
            ["pgbench", "-i", "-q", "-s", str(scale), *self._target()], PGUSER="postgres"
        )
        for statement, rows in ((_NOISE, 262_144), (_DOCUMENTS, 1_750_000)):
            text = statement.format(rows=max(1, rows * scale // _FULL_SCALE))
            self.sql(text, database="bench")
        self.sql("vacuum freeze", "checkpoint", database="bench")

    def change_rows(self, count: int, scale: int) -> None:
        """Update so many rows, chosen at random, of what ``load(scale)`` has made."""
        rows = scale * 100_000
        self.sql(
            "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid IN"
            f" (SELECT 1 + (random() * {rows - 1})::int FROM generate_series(1, {count}))",
            database="bench",
        )

    def load_small_tables(self, count: int) -> None:
        """``count`` tables of two pages, each with its index and without a TOAST table."""
        self.sql("create database small")
        for first in range(1, count + 1, _TABLES_A_TRANSACTION):
            last = min(count, first + _TABLES_A_TRANSACTION - 1)
            self.sql(_SMALL_TABLES.format(first=first, last=last), database="small")
        self.sql("checkpoint")

    def collect_wal(self, destination: Path, count: int) -> list[Path]:
        """Segments of a pgbench run, as PostgreSQL hands them to archive_command.

        ``destination`` looks like a data directory as far as archiving looks at it: it has
        pg_control, and its pg_wal/archive_status says that all segments are ready. Frequent
        checkpoints make the WAL rich in page images, and the collection quick.
        """
        wal = destination / "pg_wal"
        (wal / "archive_status").mkdir(parents=True)
        (destination / "global").mkdir()
        for name in ("PG_VERSION", "global/pg_control"):
            shutil.copy(self.data_directory / name, destination / name)
        self.archive_by(f'test ! -e "{wal}/%f" && cp "%p" "{wal}/%f"')
        argv = [self.programs.path("pgbench"), "-n", "-c", "4", "-j", "2", "-T", "1800"]
        pgbench = subprocess.Popen(
            [*argv, *self._target()],
            env={**os.environ, "PGUSER": "postgres"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while len(list(wal.iterdir())) < count + 3:  # archive_status, one being written
                if pgbench.poll() is not None:
                    raise DatasetError(f"pgbench ended with {pgbench.returncode}")
                self.sql("checkpoint")
                time.sleep(0.2)
        finally:
            pgbench.send_signal(signal.SIGTERM)
            pgbench.wait()
        self.archive_by("true")
        files = sorted(path for path in wal.iterdir() if len(path.name) == _NAME_LENGTH)
        for path in files[count:]:
            path.unlink()
        return files[:count]

    def _target(self) -> list[str]:
        return ["-h", str(self.socket_directory), "-p", str(self.port), "bench"]


def directory_facts(directory: Path) -> tuple[int, int]:
    """Files below a directory and their bytes, pg_wal left out."""
    count = size = 0
    for root, names, files in os.walk(directory):
        if root == str(directory) and "pg_wal" in names:
            names.remove("pg_wal")
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(os.path.join(root, name)).st_size
                count += 1
    return count, size


def warm(directory: Path) -> None:
    """Read every file once, so that it is in the page cache."""
    buffer = bytearray(_READ_BYTES)
    for path in _files(directory):
        with contextlib.suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def touch_memory(size: int) -> None:
    """Have so many bytes of memory written once: what a virtual machine never touched is slow.

    In a process of its own, which ends with it.
    """
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        mmap.mmap(-1, size, flags=flags).close()
    finally:
        os._exit(0)


def free_memory_bytes() -> int:
    """MemFree of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemFree:"):
            return int(line.split()[1]) * 1024
    raise DatasetError("/proc/meminfo has no MemFree")


def _files(directory: Path) -> Iterator[str]:
    for root, _, files in os.walk(directory):
        for name in files:
            yield os.path.join(root, name)
