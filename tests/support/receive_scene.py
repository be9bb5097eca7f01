"""A server, a repository, and a receiver between them: in a thread, or as the program."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pgrecall
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import segment_name
from pgrecall.postgres.control import read_control
from pgrecall.repository.identity import (
    System,
    add_generation,
    create_repository,
    latest_generation,
)
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.repository.wal_tails import StoredTail, find_tail
from pgrecall.settings import (
    AgentSettings,
    ReceiveSettings,
    RepositorySettings,
    ServerSettings,
    Settings,
)
from pgrecall.store.base import Store
from pgrecall.store.opening import open_store, prepare_store
from pgrecall.system.clock import SystemClock
from pgrecall.wal.agent_places import spool_directory
from pgrecall.wal.receive import Receiver, Terms
from tests.support.postgresql import DEADLINE_SECONDS, POLL_SECONDS, PostgresServer

SOURCE = str(Path(pgrecall.__file__).parents[1])
PROGRAM = [
    "env",
    f"PYTHONPATH={SOURCE}",
    sys.executable,
    "-c",
    "import sys; from pgrecall.cli.entry import main; sys.exit(main())",
]


class ReceiveScene:
    """One server called ``main`` and a local repository ``one`` that knows it."""

    def __init__(
        self,
        directory: Path,
        pg: PostgresServer,
        *,
        repository: RepositorySettings | None = None,
        environment: dict[str, str] | None = None,
        **receive: Any,
    ) -> None:
        self.directory = directory
        self.pg = pg
        self.environment = environment or {}
        self.repository = repository or RepositorySettings(
            name="one", store="local", path=str(directory / "repository"), retries=0
        )
        self.receive = ReceiveSettings().replace(**{"tail_seconds": 0.2, **receive})
        self.config = directory / "pgrecall.toml"
        prepare_store(self.repository)
        self.store: Store = open_store(self.repository, self.environment, is_anchored=False)
        now = SystemClock().now()
        create_repository(self.store, now)
        control = read_control(pg.pgdata)
        self.segment_bytes = control.segment_bytes
        system = System(
            control.system_identifier,
            pg.installation.major,
            control.segment_bytes,
            control.block_bytes,
        )
        add_generation(self.store, "main", system, now)
        self.write_config()

    # --- settings ----------------------------------------------------------------

    @property
    def server(self) -> ServerSettings:
        """How the receiver reaches the server: as from another host, without its PGDATA."""
        return self.pg.settings.replace(data_directory="")

    @property
    def settings(self) -> Settings:
        return Settings(
            servers={"main": self.server},
            repositories={self.repository.name: self.repository},
            agent=AgentSettings().replace(directory=str(self.directory / "agent")),
            receive=self.receive,
        )

    @property
    def spool(self) -> Path:
        return Path(spool_directory(self.settings, self.server))

    def write_config(self, more: str = "") -> None:
        self.config.write_text(
            "[servers.main]\n"
            f'host = "{self.pg.host}"\nport = {self.pg.port}\nuser = "postgres"\n'
            "[wal]\nretry_seconds = 0\n"
            f'[agent]\ndirectory = "{self.directory / "agent"}"\n'
            f"[receive]\ntail_seconds = {self.receive.tail_seconds}\n"
            f"is_synchronous = {str(self.receive.is_synchronous).lower()}\n"
            f'[repositories.one]\nstore = "local"\npath = "{self.repository.path}"\n{more}',
            encoding="utf-8",
        )

    # --- receiving -----------------------------------------------------------------

    def receiver(self, **terms: Any) -> Receiver:
        return Receiver(self.settings, self.server, self.environment, Terms(**terms))

    @contextmanager
    def receiving(self, **terms: Any) -> Iterator[Running]:
        """A receiver in a thread; stopped at the end, and what it raised is raised."""
        running = Running(self.receiver(**terms))
        try:
            yield running
        finally:
            running.stop()
        if running.error is not None:
            raise running.error

    def start_program(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """``pgrecall wal receive`` as a process of its own."""
        argv = [PROGRAM[0], *(f"{k}={v}" for k, v in environment.items()), *PROGRAM[1:]]
        return subprocess.Popen(
            [*argv, "--config", str(self.config), "wal", "receive", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    # --- what is there ---------------------------------------------------------------

    def archive(self) -> WalArchive:
        generation = latest_generation(self.store, "main")
        assert generation is not None
        return WalArchive(self.store, "main", generation)

    def tail(self, segment: str) -> StoredTail | None:
        generation = latest_generation(self.store, "main")
        assert generation is not None
        return find_tail(self.store, "main", generation, segment)

    def current(self) -> tuple[str, Lsn]:
        """The segment that the server writes, and its flush position."""
        lsn = Lsn.parse(str(self.pg.value("SELECT pg_current_wal_flush_lsn()::text")))
        timeline = int(str(self.pg.value("SELECT timeline_id FROM pg_control_checkpoint()")))
        return segment_name(timeline, lsn, self.segment_bytes), lsn

    def fill(self, megabytes: int = 1) -> None:
        """Write so much WAL."""
        self.pg.sql(
            "SELECT pg_logical_emit_message(true, 'test', repeat('x', 1000000))"
            f" FROM generate_series(1, {megabytes})"
        )

    def switch(self) -> str:
        """Fill the rest of the segment that is written; its name."""
        self.pg.sql("SELECT pg_logical_emit_message(true, 'test', 'not empty')")
        name, _ = self.current()
        self.pg.sql("SELECT pg_switch_wal()")
        return name


class Running:
    """A receiver at work in a thread."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="test-receiver", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.receiver.run(self._stop)
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits
            self.error = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive(), "the receiver does not end"

    def join(self) -> BaseException | None:
        """Wait until it ends by itself; what it raised."""
        self._thread.join(DEADLINE_SECONDS)
        if self._thread.is_alive():
            self.stop()
            raise AssertionError(f"it goes on: {dict(self.receiver.facts())}")
        error, self.error = self.error, None
        return error

    def wait(self, condition: Callable[[], object], what: str) -> Any:
        """Poll until the condition holds; an error of the receiver is raised."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (value := condition()):
            if self.error is not None:
                raise self.error
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not in time; {dict(self.receiver.facts())}")
            time.sleep(POLL_SECONDS)
        return value

    def wait_streaming(self) -> None:
        self.wait(lambda: self.receiver.facts()["state"] == "streaming", "streaming")

    def wait_flushed(self, lsn: Lsn) -> None:
        self.wait(
            lambda: Lsn.parse(str(self.receiver.facts()["flushed_to"])) >= lsn, f"{lsn} flushed"
        )
