"""The whole product around one server: configuration, repository, archiving, backups, restores."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pgrecall.app.backing_up import run_backup
from pgrecall.app.context import RunContext, Surroundings
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.app.recovering import (
    RecoveryResult,
    RecoveryStatus,
    recovery_promote,
    recovery_resume,
    recovery_status,
)
from pgrecall.app.requests import BackupRequest, RecoveryRequest, RestoreRequest
from pgrecall.app.restoring import RestoreResult, run_restore
from pgrecall.errors import ArchiveTimeoutError
from pgrecall.model.manifest import Completion
from pgrecall.model.targets import Latest, RecoveryTarget
from pgrecall.postgres.control import read_control
from pgrecall.postgres.instance import running_postmaster
from pgrecall.repository.identity import (
    System,
    add_generation,
    create_repository,
    latest_generation,
)
from pgrecall.repository.opening import open_store
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import RepositorySettings, load_settings
from pgrecall.store.base import Store
from pgrecall.store.opening import prepare_store
from pgrecall.system.clock import SystemClock
from pgrecall.system.processes import wait_until_gone
from pgrecall.system.progress import NoProgress
from pgrecall.wal.commands import archive_command
from tests.support.postgresql import SUPERUSER, PostgresServer, ServerFactory

SERVER = "main"


class Approvals:
    """Says yes to every plan, and keeps what it was shown."""

    def __init__(self) -> None:
        self.plans: list[msgspec.Struct] = []
        self.questions: list[str] = []

    def __call__(self, plan: msgspec.Struct, *, question: str = "") -> bool:
        self.plans.append(plan)
        self.questions.append(question)
        return True


class Product:
    """A server with a local repository, into which it archives through the real program."""

    def __init__(self, directory: Path, server: PostgresServer) -> None:
        self.directory = directory
        self.server = server
        self.repository = RepositorySettings(
            name="one", store="local", path=str(directory / "repository"), retries=0
        )
        self.config = directory / "pgrecall.toml"
        self.approvals = Approvals()
        self.copies: list[Path] = []
        self._configure()

    @classmethod
    def start(
        cls, factory: ServerFactory, directory: Path, *, segment_mib: int = 1, **settings: object
    ) -> Product:
        """A new server that archives; ``settings`` are of postgresql.conf."""
        installation = settings.pop("installation", None)
        server = factory(
            installation,  # type: ignore[arg-type]
            start=False,
            segment_mib=segment_mib,
            **{"min_wal_size": f"{8 * segment_mib}MB", **settings},  # type: ignore[arg-type]
        )
        product = cls(directory, server)
        server.start()
        return product

    def _configure(self) -> None:
        server = self.server
        self.config.write_text(
            f"[servers.{SERVER}]\n"
            f"data_directory = {json.dumps(str(server.pgdata))}\n"
            f'host = "{server.host}"\nport = {server.port}\nuser = "{SUPERUSER}"\n'
            f"bin_directory = {json.dumps(str(server.installation.bin_directory))}\n"
            "[wal]\nretry_seconds = 0\n"
            '[backup]\nlevel = 1\nworkers = 2\narchive_timeout_seconds = 15\ncheckpoint = "fast"\n'
            f'[repositories.one]\nstore = "local"\npath = {json.dumps(self.repository.path)}\n',
            encoding="utf-8",
        )
        prepare_store(self.repository)
        store = self._make_repository()
        control = read_control(server.pgdata)
        major = server.installation.major
        system = System(
            control.system_identifier, major, control.segment_bytes, control.block_bytes
        )
        add_generation(store, SERVER, system, SystemClock().now())
        server.configure(
            archive_command=archive_command(pgrecall_command(), str(self.config), SERVER)
        )

    def _make_repository(self) -> Store:
        store = open_store(self.repository, {}, is_anchored=False)
        create_repository(store, SystemClock().now())
        return store

    # --- the product --------------------------------------------------------------

    def context(self) -> RunContext:
        """What a command is given."""
        settings = load_settings(str(self.config), {}, {})
        surroundings = Surroundings(
            environment=dict(os.environ),
            progress=NoProgress(),
            run_id="test",
            approve=self.approvals,
        )
        return RunContext(settings, surroundings)

    def backup(self, **wishes: Any) -> Completion:
        """Take a backup."""
        try:
            result = run_backup(self.context(), BackupRequest(**wishes))
        except ArchiveTimeoutError as error:
            raise AssertionError(f"{error}\n{self.server.log[-4000:]}") from error
        assert result.backup is not None
        return result.backup

    def restore(
        self, target_dir: Path, target: RecoveryTarget | None = None, **wishes: Any
    ) -> RestoreResult:
        """Restore into ``target_dir``; an instance that it starts is ended by ``close``."""
        self.copies.append(target_dir)
        # Tests look at an archive that nobody but they themselves changes, unless they say so.
        wishes = {"switch_wal": False, **wishes}
        request = RestoreRequest(target=target or Latest(), target_dir=str(target_dir), **wishes)
        return run_restore(self.context(), request)

    def status(self, target_dir: Path) -> RecoveryStatus:
        """``recovery status``."""
        return recovery_status(self.context(), RecoveryRequest(target_dir=str(target_dir)))

    def resume(self, target_dir: Path) -> RecoveryResult:
        """``recovery resume``."""
        return recovery_resume(self.context(), RecoveryRequest(target_dir=str(target_dir)))

    def promote(self, target_dir: Path, *, take_over: bool = False) -> RecoveryResult:
        """``recovery promote``."""
        request = RecoveryRequest(target_dir=str(target_dir), take_over=take_over)
        return recovery_promote(self.context(), request)

    def cli(
        self, *words: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the program as a user does."""
        return subprocess.run(
            self.command(*words),
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def command(self, *words: str) -> list[str]:
        """The argv of the program."""
        return [*pgrecall_command(), "--config", str(self.config), *words]

    # --- what is there --------------------------------------------------------------

    def archive(self) -> WalArchive:
        """The WAL archive, read anew."""
        store = open_store(self.repository, {})
        generation = latest_generation(store, SERVER)
        assert generation is not None
        return WalArchive(store, SERVER, generation)

    def objects(self) -> dict[str, str]:
        """Digest of every object of the repository by its path.

        The journal of runs is left out, and their leases: a killed run leaves its own.
        """
        root = Path(self.repository.path)
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file()
            and not {"runs", "chains", "leases"} & set(path.relative_to(root).parts)
        }

    def path_of(self, key: str) -> Path:
        """The file of an object."""
        return Path(self.repository.path, key)

    def switch(self, server: PostgresServer | None = None) -> str:
        """End the segment that is written now, and wait until it is archived; its name."""
        chosen = server or self.server
        chosen.sql("SELECT pg_logical_emit_message(true, 'test', 'not empty')")
        name = str(chosen.value("SELECT pg_walfile_name(pg_current_wal_lsn())"))
        chosen.sql("SELECT pg_switch_wal()")
        archive = self.archive()
        chosen.wait_until(lambda: archive.has(name), f"{name} archived")
        return name

    def connected(self, pgdata: Path) -> PostgresServer:
        """A handle for SQL to an instance that a restore has started."""
        status = self.status(pgdata)
        server = PostgresServer(self.server.installation, pgdata)
        os.rmdir(server.host)
        server.host, server.port = status.host, status.port
        return server

    def stop(self, pgdata: Path) -> None:
        """Stop the instance of a copy cleanly."""
        self.end(pgdata, signal.SIGINT)

    def end(self, pgdata: Path, number: signal.Signals = signal.SIGQUIT) -> None:
        """End the instance of a copy, if there is one."""
        pid = running_postmaster(pgdata)
        if pid is not None:
            os.kill(pid, number)
            # Its parent, which is this process, never waits for an instance that it let go.
            while running_postmaster(pgdata) == pid:
                reap(pid)

    def close(self) -> None:
        """End every copy."""
        for pgdata in self.copies:
            self.end(pgdata)


def reap(pid: int) -> None:
    """Wait shortly for a process that may be a child."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    wait_until_gone(pid, 0.02)
