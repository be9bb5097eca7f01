"""The tools that are compared: how each is set up afresh, and the commands that are measured."""

from __future__ import annotations

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.dataset import Cluster, DatasetError, Programs
from benchmarks.measure import Service
from benchmarks.places import LocalPlace, RepositoryPlace, bytes_below
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.postgres.control import read_control
from pgrecall.repository.identity import System, add_generation, create_repository
from pgrecall.repository.key_changes import create_encrypted_repository
from pgrecall.repository.opening import open_store
from pgrecall.store.opening import open_store as open_plain_store
from pgrecall.store.opening import prepare_store

Commands = list[list[str]]

PGRECALL = "pgrecall"
PGBACKREST = "pgBackRest"


class Tool(ABC):
    """One tool in one configuration; all that it writes lies in ``place``."""

    family: str
    can_restore = True

    def __init__(self, label: str, place: Path) -> None:
        self.label = label
        self.name = f"{self.family} {label}".strip()
        self.place = place

    def fresh(self, cluster: Cluster, data_directory: Path | None = None) -> None:
        """An empty repository; outside what is measured.

        ``data_directory``: one that only archiving looks at (``collect_wal``), not the server's.
        """
        if self.place.exists():
            shutil.rmtree(self.place)
        self.place.mkdir(parents=True)
        self.set_up(cluster, data_directory or cluster.data_directory)

    def archive(self, cluster: Cluster) -> None:
        """Let the server archive through this tool, as its user would."""
        cluster.archive_by(self.archive_command())

    @abstractmethod
    def set_up(self, cluster: Cluster, data_directory: Path) -> None:
        """Write the configuration, make the repository."""

    @abstractmethod
    def archive_command(self) -> str:
        """For archive_command."""

    @abstractmethod
    def backup(self, cluster: Cluster) -> Commands:
        """A full backup with a fast checkpoint."""

    @abstractmethod
    def stored_bytes(self) -> int:
        """Bytes of the newest backup, WAL left out."""

    def restore(self, target: Path) -> Commands:
        """The newest backup into an empty directory, to be recovered until it is consistent."""
        raise NotImplementedError(self.name)

    def push(self, segments: Sequence[Path]) -> Commands:
        """Archive segments, one process for each."""
        raise NotImplementedError(self.name)

    def service(self) -> Service | None:
        """What has to run beside ``push``."""
        return None

    def wal_bytes(self) -> int:
        """Bytes of the archived WAL."""
        raise NotImplementedError(self.name)


class Pgrecall(Tool):
    """This project, as it is installed beside the running Python."""

    family = PGRECALL

    def __init__(
        self,
        label: str,
        place: Path,
        program: Path,
        settings: str = "",
        repository: RepositoryPlace | None = None,
    ) -> None:
        super().__init__(label, place)
        self._program = str(program)
        self._settings = settings
        self._config = str(place / "pgrecall.toml")
        self._repository = repository or LocalPlace(place / "repo")

    def set_up(self, cluster: Cluster, data_directory: Path) -> None:
        self._repository.renew()
        settings = self._repository.settings()
        Path(self._config).write_text(
            "[servers.main]\n"
            f'data_directory = "{data_directory}"\n'
            f'host = "{cluster.socket_directory}"\nport = {cluster.port}\nuser = "postgres"\n'
            f'bin_directory = "{cluster.programs.bin_directory}"\n'
            f"{self._repository.toml()}{self._settings}",
            encoding="utf-8",
        )
        prepare_store(settings)
        now = datetime.now(UTC)
        plain = open_plain_store(settings, os.environ, is_anchored=False)
        if settings.encryption:
            create_encrypted_repository(settings, os.environ, plain, now)
        else:
            create_repository(plain, now)
        store = open_store(settings, os.environ)
        control = read_control(data_directory)
        system = System(
            control.system_identifier, control.majors[0], control.segment_bytes, control.block_bytes
        )
        add_generation(store, "main", system, now)

    def archive_command(self) -> str:
        return f'{self._program} --config {self._config} wal push "%p"'

    def backup(self, cluster: Cluster) -> Commands:
        del cluster
        return [[*self._start(), "backup", "--checkpoint", "fast"]]

    def stored_bytes(self) -> int:
        return self._repository.bytes_below("servers/main/backups")

    def restore(self, target: Path) -> Commands:
        words = ["restore", "--yes", "--immediate", "--target-dir", str(target)]
        return [[*self._start(), *words]]

    def push(self, segments: Sequence[Path]) -> Commands:
        return [[*self._start(), "wal", "push", str(path)] for path in segments]

    def wal_bytes(self) -> int:
        return self._repository.bytes_below("servers/main/wal")

    def _start(self) -> list[str]:
        return [self._program, "--config", self._config]


class PgBackRest(Tool):
    """pgBackRest with its own defaults, two processes, and the options of the label."""

    family = PGBACKREST

    def __init__(
        self,
        label: str,
        place: Path,
        program: Path,
        options: dict[str, str],
        repository: RepositoryPlace | None = None,
    ) -> None:
        super().__init__(label, place)
        self._program = str(program)
        self._options = options
        self._config = str(place / "pgbackrest.conf")
        self._repository = repository or LocalPlace(place / "repo")

    def set_up(self, cluster: Cluster, data_directory: Path) -> None:
        for name in ("repo", "log", "lock", "spool"):
            (self.place / name).mkdir()
        self._repository.renew()
        options = {
            **self._repository.pgbackrest(),
            "log-path": str(self.place / "log"),
            "lock-path": str(self.place / "lock"),
            "spool-path": str(self.place / "spool"),
            "log-level-file": "off",
            "log-level-console": "warn",
            "repo1-retention-full": "2",
            "process-max": "2",
            "start-fast": "y",
            **self._options,
        }
        lines = ["[global]", *(f"{name}={value}" for name, value in options.items()), "[main]"]
        lines += [
            f"pg1-path={data_directory}",
            f"pg1-socket-path={cluster.socket_directory}",
            f"pg1-port={cluster.port}",
            "pg1-user=postgres",
        ]
        Path(self._config).write_text("\n".join(lines) + "\n", encoding="utf-8")
        is_server = data_directory == cluster.data_directory
        _run([*self._start(), *([] if is_server else ["--no-online"]), "stanza-create"])

    def archive_command(self) -> str:
        return f'{" ".join(self._start())} archive-push "%p"'

    def backup(self, cluster: Cluster) -> Commands:
        del cluster
        return [[*self._start(), "--type=full", "backup"]]

    def stored_bytes(self) -> int:
        if not isinstance(self._repository, LocalPlace):
            return self._repository.bytes_below("backup/main")
        return sum(
            bytes_below(path)
            for path in (self.place / "repo" / "backup" / "main").iterdir()
            if path.is_dir() and not path.is_symlink() and path.name[0].isdigit()
        )

    def restore(self, target: Path) -> Commands:
        return [[*self._start(), f"--pg1-path={target}", "--type=immediate", "restore"]]

    def push(self, segments: Sequence[Path]) -> Commands:
        return [[*self._start(), "archive-push", str(path)] for path in segments]

    def wal_bytes(self) -> int:
        return self._repository.bytes_below("archive")

    def _start(self) -> list[str]:
        return [self._program, f"--config={self._config}", "--stanza=main"]


class IncrementalPgBackRest(PgBackRest):
    """The same command takes what has changed, once there is a full backup."""

    def backup(self, cluster: Cluster) -> Commands:
        """An incremental backup; a full one where there is none."""
        del cluster
        return [[*self._start(), "--type=incr", "backup"]]


_ZST3 = {"compress-type": "zst", "compress-level": "3"}
BLOCKS = _ZST3 | {"repo1-bundle": "y", "repo1-block": "y"}


def file_and_block_tools(place: Path, pgbackrest: Path | None) -> list[Tool]:
    """pgrecall; and pgBackRest, where there is one, incremental by files and by blocks."""
    tools: list[Tool] = [Pgrecall("", place / "pgrecall", Path(pgrecall_command()[0]))]
    if pgbackrest:
        tools.append(IncrementalPgBackRest("zst:3", place / "file", pgbackrest, _ZST3))
        tools.append(IncrementalPgBackRest("zst:3 block", place / "block", pgbackrest, BLOCKS))
    return tools


class BaseBackup(Tool):
    """pg_basebackup into tar files; WAL goes to the archive, a plain directory."""

    family = "pg_basebackup"
    can_restore = False

    def __init__(self, label: str, place: Path, programs: Programs) -> None:
        super().__init__(label, place)
        self._programs = programs

    def set_up(self, cluster: Cluster, data_directory: Path) -> None:
        del cluster, data_directory
        (self.place / "wal").mkdir()

    def archive_command(self) -> str:
        return f'cp "%p" "{self.place}/wal/%f"'

    def backup(self, cluster: Cluster) -> Commands:
        argv = [self._programs.path("pg_basebackup"), "-h", str(cluster.socket_directory)]
        argv += ["-p", str(cluster.port), "-U", "postgres", "-D", str(self.place / "backup")]
        argv += ["-c", "fast", "-X", "none", "-Ft"]
        if self.label:
            argv.append(f"--compress={self.label}")
        return [argv]

    def stored_bytes(self) -> int:
        return bytes_below(self.place / "backup")


def pgbackrest_tools(program: Path, place: Path) -> list[Tool]:
    """The configurations for backup and restore."""
    chosen = {
        "zst:1": {"compress-level": "1"},
        "zst:3": {"compress-level": "3"},
        "zst:3 bundle+block": {
            "compress-level": "3",
            "repo1-bundle": "y",
            "repo1-block": "y",
        },
    }
    return [
        PgBackRest(label, place / f"pgbackrest-{number}", program, {"compress-type": "zst"} | more)
        for number, (label, more) in enumerate(chosen.items())
    ]


def pgbackrest_archivers(
    program: Path, place: Path, new_place: Callable[[], RepositoryPlace | None] = lambda: None
) -> list[Tool]:
    """The configurations for archiving; ``new_place``: where each has its repository."""
    chosen = {
        "sync zst:1": {"compress-level": "1"},
        "sync zst:3": {"compress-level": "3"},
        "async zst:1": {"compress-level": "1", "archive-async": "y"},
        "async zst:3": {"compress-level": "3", "archive-async": "y"},
    }
    return [
        PgBackRest(
            label,
            place / f"archiver-{number}",
            program,
            {"compress-type": "zst"} | more,
            new_place(),
        )
        for number, (label, more) in enumerate(chosen.items())
    ]


def base_backup_tools(programs: Programs, place: Path) -> list[Tool]:
    """pg_basebackup with what it was built with."""
    supports = programs.output(["pg_config", "--configure"]) if _has_pg_config(programs) else ""
    labels = [
        label
        for label, option in (("client-zstd:1", "zstd"), ("client-lz4", "lz4"))
        if not supports or f"--with-{option}" in supports
    ]
    return [
        BaseBackup(label, place / f"basebackup-{number}", programs)
        for number, label in enumerate(labels or [""])
    ]


def _has_pg_config(programs: Programs) -> bool:
    return Path(programs.path("pg_config")).exists()


def _run(argv: list[str]) -> None:
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise DatasetError(f"{' '.join(argv)} failed:\n{done.stdout[-4000:]}")
