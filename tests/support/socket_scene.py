"""A data directory with WAL, a repository, and an agent's socket between them."""

from __future__ import annotations

import threading
from pathlib import Path

from pgrecall.agent.listener import Listener
from tests.support.listener_scene import PlainService
from tests.support.wal_scene import Scene, build_segments

ABSENT = "0000000100000000000000FF"
DESTINATION = "pg_wal/RECOVERYXLOG"


class SocketScene(Scene):
    """A scene with an agent; tests stand in PGDATA, as PostgreSQL's commands do."""

    def __init__(self, path: Path, run_directory: Path) -> None:
        super().__init__(path)
        ((self.name, self.content),) = build_segments(1).items()
        self.write(self.name, self.content)
        self.service = PlainService(self.settings, self.server)
        self.socket = str(run_directory / "agent.sock")
        self.listener = Listener(self.socket, self.service, server="main")

    @property
    def delivered(self) -> Path:
        return self.pgdata / DESTINATION

    def leftovers(self) -> list[str]:
        return sorted({path.name for path in (self.pgdata / "pg_wal").iterdir()} - {self.name})


class HeldService(PlainService):
    """Begins, and goes on when it is let."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.settings, scene.server)
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def push(self, path: str, pgdata: str):  # type: ignore[no-untyped-def]
        self.begun.release()
        assert self.let.acquire(timeout=30)
        return super().push(path, pgdata)

    def fetch(self, name: str, destination: str, pgdata: str):  # type: ignore[no-untyped-def]
        self.begun.release()
        assert self.let.acquire(timeout=30)
        return super().fetch(name, destination, pgdata)
