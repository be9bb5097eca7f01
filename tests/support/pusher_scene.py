"""A data directory whose segments are ready, and a pusher at work on it in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pgrecall.settings import AgentSettings
from pgrecall.wal.pusher import Pusher
from tests.support.wal_scene import Scene, build_segments

DEADLINE_SECONDS = 30.0
POLL_SECONDS = 0.01


class PusherScene(Scene):
    """A scene with an agent's directory; ``ready`` files are what PostgreSQL wants archived."""

    def __init__(self, path: Path, **options: object) -> None:
        super().__init__(path, **options)  # type: ignore[arg-type]
        self.settings.agent = AgentSettings(directory=str(path / "agent"), push_workers=2)
        self.state = path / "agent" / "main" / "state"
        self.status = self.pgdata / "pg_wal" / "archive_status"
        self.status.mkdir()

    def pusher(self, **agent: int) -> Pusher:
        self.settings.agent = self.settings.agent.replace(**agent)
        return Pusher(self.settings, self.server, {}, pgdata=str(self.pgdata))

    def make_ready(self, count: int, *, salt: int = 0) -> dict[str, bytes]:
        """``count`` segments from 3 on, written and ready."""
        segments = build_segments(count, segment_bytes=self.segment_bytes, salt=salt)
        for name, content in segments.items():
            self.write(name, content)
            (self.status / f"{name}.ready").touch()
        return segments

    def is_stored(self, name: str, repository: str = "one") -> bool:
        return self.object_path(name, repository).exists()


@contextmanager
def at_work(pusher: Pusher) -> Iterator[None]:
    """``run`` in a thread, ended at the end; what it raises is raised here."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            pusher.run(stop)
        except BaseException as error:  # noqa: BLE001 (raised by the thread that waits)
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(POLL_SECONDS)
