"""A real server, a repository in a directory, and backups of the one in the other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import pgrecall
from pgrecall.app.backing_up import BackupResult, run_backup
from pgrecall.app.catalog import BackupList, list_backups
from pgrecall.app.context import RunContext, Surroundings
from pgrecall.app.requests import BackupRequest
from pgrecall.codec.crc import crc32c
from pgrecall.model.manifest import Completion, FileEntry, ManifestRoot
from pgrecall.postgres.control import read_control
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.contents import Contents
from pgrecall.repository.identity import System, add_generation, create_repository
from pgrecall.repository.pack_source import pieces_by_frame
from pgrecall.repository.packs import PackReader
from pgrecall.settings import load_settings
from pgrecall.store.base import Store
from pgrecall.store.local import LocalStore
from pgrecall.system.clock import SystemClock
from pgrecall.system.progress import NoProgress
from pgrecall.wal.commands import archive_command
from tests.support.postgresql import Installation, PostgresServer, ServerFactory, Templates

ROOT = Path(__file__).resolve().parents[2]
SOURCE = str(Path(pgrecall.__file__).parents[1])
PROGRAM = "import sys; from pgrecall.cli.entry import main; sys.exit(main())"
COMMAND = ["env", f"PYTHONPATH={SOURCE}", sys.executable, "-c", PROGRAM]
DEADLINE_SECONDS = 60.0


@contextmanager
def shared_scene(
    templates: Templates,
    installation: Installation,
    directories: pytest.TempPathFactory,
    **settings: str,
) -> Iterator[BackupScene]:
    """A scene for all tests of a module, archiving; ``settings`` are of its server."""
    factory = ServerFactory(templates, installation, directories.mktemp("server"))
    try:
        scene = BackupScene(directories.mktemp("scene"), factory(**settings))
        scene.archive()
        yield scene
    finally:
        factory.destroy()


def always(plan: msgspec.Struct, *, question: str = "") -> bool:
    """Approve whatever is asked."""
    return True


class Hooks(NoProgress):
    """Calls a function in the run's own thread when a phase begins, or bytes are done."""

    def __init__(
        self,
        phases: Mapping[str, Callable[[], object]] | None = None,
        advance: Callable[[int], object] = lambda done_bytes: None,
    ) -> None:
        self.seen: list[str] = []
        self._phases = dict(phases or {})
        self._advance = advance

    def phase(self, name: str) -> None:
        """Call what was given for this phase, the first time."""
        self.seen.append(name)
        hook = self._phases.pop(name, None)
        if hook is not None:
            hook()

    def advance(self, done_bytes: int) -> None:
        """Call what was given."""
        self._advance(done_bytes)


class BackupScene:
    """``server`` and the repository ``repository``; ``name`` is the server's in the settings."""

    def __init__(
        self, directory: Path, server: PostgresServer, *, name: str = "main", pgdata: str = ""
    ) -> None:
        self.directory = directory
        self.server = server
        self.name = name
        self.repository = directory / "repository"
        self.config = directory / "pgrecall.toml"
        self.write_config(pgdata or str(server.pgdata))
        LocalStore(str(self.repository)).create_root()
        now = SystemClock().now()
        create_repository(self.store, now)
        control = read_control(server.pgdata)
        major = server.installation.major
        system = System(
            control.system_identifier, major, control.segment_bytes, control.block_bytes
        )
        add_generation(self.store, name, system, now)

    def write_config(self, pgdata: str, **backup: object) -> None:
        """Write pgrecall.toml; ``backup`` are keys of its table of that name."""
        table = {"archive_timeout_seconds": 30, **backup}
        lines = [
            f"[servers.{json.dumps(self.name, ensure_ascii=False)}]",
            f"data_directory = {json.dumps(pgdata, ensure_ascii=False)}",
            f'host = "{self.server.host}"',
            f"port = {self.server.port}",
            'user = "postgres"',
            f'bin_directory = "{self.server.installation.bin_directory}"',
            "[repositories.one]",
            'store = "local"',
            f"path = {json.dumps(str(self.repository), ensure_ascii=False)}",
            "[wal]",
            "retry_seconds = 0",
            "[backup]",
            *(f"{key} = {json.dumps(value)}" for key, value in table.items()),
        ]
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @property
    def store(self) -> LocalStore:
        """The repository's store."""
        return LocalStore(str(self.repository))

    @property
    def archive_command(self) -> str:
        """For the server's configuration."""
        return archive_command(COMMAND, str(self.config), self.name)

    def archive(self) -> None:
        """Let the server archive into the repository."""
        self.server.configure(archive_command=self.archive_command)
        self.server.reload()

    def context(self, progress: NoProgress | None = None, **flags: Any) -> RunContext:
        """As the command line makes it; ``flags`` are settings of [backup]."""
        settings = load_settings(
            str(self.config), {}, {f"backup.{key}": value for key, value in flags.items()}
        )
        surroundings = Surroundings(
            environment={}, progress=progress or NoProgress(), run_id="r-test", approve=always
        )
        return RunContext(settings, surroundings)

    def backup(
        self,
        *,
        with_wal: bool = True,
        full: bool = True,
        progress: NoProgress | None = None,
        **flags: Any,
    ) -> BackupResult:
        """Take a backup in this process: a full one unless ``full`` is false."""
        request = BackupRequest(with_wal=with_wal, full=full)
        return run_backup(self.context(progress, **flags), request)

    def taken(self, **options: Any) -> Completion:
        """Take a backup in this process; its completion record."""
        backup = self.backup(**options).backup
        assert backup is not None
        return backup

    def listed(self) -> BackupList:
        """``backups list``."""
        return list_backups(self.context())

    def ids(self) -> list[str]:
        """The complete backups; there must be no findings."""
        listed = self.listed()
        assert listed.findings == ()
        return [line.backup_id for line in listed.backups]

    def start(
        self, *words: str, kill: str = "", pause: str = "", **options: Any
    ) -> subprocess.Popen[str]:
        """Run the command line; ``kill`` and ``pause`` are as in system/faults.py."""
        environment = {"PYTHONPATH": SOURCE, "PATH": os.environ["PATH"]}
        if kill:
            environment["PGRECALL_FAULT_KILL"] = kill
        if pause:
            environment["PGRECALL_FAULT_PAUSE"] = f"{pause}:{self.directory}"
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "--config", str(self.config), *words],
            cwd=self.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *words: str, status: int = 0, **options: Any) -> str:
        """Run the command line and return what it printed; it must end with ``status``."""
        process = self.start(*words, **options)
        output, errors = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == status, (process.returncode, output, errors)
        return output if status in (0, 42) else errors

    def wait_paused(self, point: str, process: subprocess.Popen[str]) -> Path:
        """Wait until the run has reached the point where it is to pause; unlink to go on."""
        path = self.directory / point

        def is_there() -> bool:
            assert process.poll() is None, process.communicate()
            return path.exists()

        wait_until(is_there, f"the run reaches {point}")
        return path

    def manifest(self, backup: Completion) -> tuple[ManifestRoot, dict[bytes, FileEntry]]:
        """Root and entries of a backup."""
        reader = Catalog(self.store, self.name).manifest(backup)
        return reader.root, {entry.path_bytes(): entry for entry in reader.files()}

    def completion(self, backup_id: str) -> Completion:
        """One complete backup."""
        return Catalog(self.store, self.name).get(backup_id)

    def read_files(self, backup: Completion, store: Store | None = None) -> dict[bytes, bytes]:
        """Every file's content, read through our own readers, and held to its CRC."""
        return read_files(store or self.store, self.name, backup)

    def contents(self, backup: Completion, target: Path) -> Path:
        """The backup's files, brought back by the program in docs/format.md."""
        target.mkdir()
        directory = layout.backup_prefix(self.name, backup.backup_id)
        by_hand(self.repository / directory, target)
        return target

    def restored(self, backup: Completion, target: Path, *arguments: str) -> Path:
        """The backup restored by ``pgrecall restore`` to where it becomes consistent."""
        words = ("restore", "--backup", backup.backup_id, "--target-dir", str(target), "--yes")
        self.run(*words, *arguments)
        return target

    def temporary_files(self) -> list[str]:
        """What writers of backups left behind; a push may be under way beside them."""
        return [found.key for found in self.store.leftovers() if "/backups/" in found.key]

    def assert_server_is_clean(self) -> None:
        """No session of ours, no slot, and no backup under way on the server."""
        self.server.wait_until(
            lambda: (
                not self.server.sql(
                    "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pgrecall%'"
                )
            ),
            "the sessions of the backup are gone",
        )
        assert self.server.sql("SELECT slot_name FROM pg_replication_slots") == []
        if self.server.installation.major < 15:
            assert self.server.value("SELECT pg_is_in_backup()") is False


def started(
    factory: ServerFactory, directory: Path, installation: Installation | None = None
) -> PostgresServer:
    """A restored directory, started and through its recovery."""
    server = factory.adopt(directory, installation)
    server.start()
    server.wait_until(
        lambda: not server.value("SELECT pg_is_in_recovery()"), "the recovery is over"
    )
    return server


def relation(server: PostgresServer, table: str) -> str:
    """Path of a table's first file below PGDATA."""
    return str(server.value("SELECT pg_relation_filepath(%s)", table))


def read_files(store: Store, server: str, backup: Completion) -> dict[bytes, bytes]:
    """Every file's content of a backup; raises what a restore would."""
    manifest = Catalog(store, server).manifest(backup)
    packs = []
    for entry in manifest.packs():
        key = layout.pack_key(server, entry.owner or backup.backup_id, entry.number)
        pack = PackReader(key, store.reader(key), entry.footer_digest)
        assert pack.stored_bytes == entry.stored_bytes
        packs.append(pack)
    contents = Contents(len(packs), manifest.root.server.block_bytes)
    contents.read(manifest.files())
    table = contents.table
    made = {index: bytearray(table.sizes[index]) for index in table.files()}
    for number, pack in enumerate(packs):
        for frame, pieces in pieces_by_frame(pack, contents.runs_of(number)).items():
            raw = pack.raw(frame)
            for index, at, start, length in pieces.tolist():
                made[index][at : at + length] = raw[start : start + length]
    files = {table.path(index): bytes(content) for index, content in made.items()}
    for index, content in made.items():
        assert len(content) == table.sizes[index]
        assert crc32c(content) == contents.crcs[index], table.path(index)
    for pack in packs:
        pack.close()
    return files


def by_hand(backup: Path, target: Path) -> None:
    """Run the program that docs/format.md gives for restoring without pgrecall."""
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(import json.*?)```", text, re.DOTALL)
    arguments, sys.argv = sys.argv, ["by-hand", str(backup), str(target)]
    try:
        exec(compile(program, "docs/format.md", "exec"), {"__name__": "by_hand"})
    finally:
        sys.argv = arguments


def tree(directory: Path, *, without: Sequence[str] = ()) -> dict[str, bytes | None]:
    """Every file's content, and None for directories, by path; links are followed."""
    found: dict[str, bytes | None] = {}
    for parent, directories, files in os.walk(directory, followlinks=True):
        at = Path(parent)
        for name in directories:
            found[str((at / name).relative_to(directory))] = None
        for name in files:
            found[str((at / name).relative_to(directory))] = (at / name).read_bytes()
    return {
        path: content
        for path, content in found.items()
        if not any(path == name or path.startswith(name + "/") for name in without)
    }


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll until ``condition`` holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def our_threads() -> list[str]:
    """Names of the threads that a backup starts."""
    names = ("copy", "commit", "catalog")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def copy_directory(source: Path, target: Path) -> Path:
    """``cp -a``."""
    shutil.copytree(source, target, symlinks=True)
    return target
