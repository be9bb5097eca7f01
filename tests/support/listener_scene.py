"""An agent's socket with the plain transfer behind it, in this process or in one of its own.

``python -m tests.support.listener_scene CONFIG SOCKET`` serves until SIGTERM; it says
"listening" when clients can come.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pgrecall.agent.listener import Listener
from pgrecall.errors import PgrecallError
from pgrecall.settings import ServerSettings, Settings, load_settings
from pgrecall.wal.fetch import FetchResult, fetch_file
from pgrecall.wal.push import PushResult, push_file

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 30.0


class PlainService:
    """Does what the commands do themselves, and keeps what it was asked."""

    def __init__(self, settings: Settings, server: ServerSettings) -> None:
        self.settings = settings
        self.server = server
        self.asked: list[tuple[str, ...]] = []

    def push(self, path: str, pgdata: str) -> PushResult:
        self.asked.append(("push", path, pgdata))
        return push_file(self.settings, self.server, path, pgdata=pgdata, environment=os.environ)

    def fetch(self, name: str, destination: str, pgdata: str) -> FetchResult | None:
        self.asked.append(("fetch", name, destination, pgdata))
        return fetch_file(
            self.settings, self.server, name, destination, pgdata=pgdata, environment=os.environ
        )


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory of ours (0700) with a path that fits a socket's address."""
    with tempfile.TemporaryDirectory(prefix="agent-") as path:
        yield Path(path)


@contextlib.contextmanager
def served(listener: Listener) -> Iterator[Listener]:
    """A listener at work in a thread of this process."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            listener.run(stop)
        except PgrecallError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: failures or listener.facts()["is_listening"])
        if failures:
            raise failures[0]
        yield listener
    finally:
        stop.set()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


def wait_until(condition: object, *, seconds: float = DEADLINE_SECONDS) -> None:
    """Poll a condition up to a deadline."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


class AgentProcess:
    """The same in a process of its own, which can be stopped and killed."""

    def __init__(self, config: Path, socket: Path, **environment: str) -> None:
        self.socket = socket
        self.python_path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.listener_scene", str(config), str(socket)],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": self.python_path,
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "listening\n"

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def agent_process(config: Path, socket: Path, **environment: str) -> Iterator[AgentProcess]:
    """An agent that is ended whatever happens."""
    agent = AgentProcess(config, socket, **environment)
    try:
        yield agent
    finally:
        agent.end()


def main(config: str, socket: str) -> None:
    """Serve until SIGTERM."""
    settings = load_settings(config, os.environ)
    server = settings.server()
    listener = Listener(socket, PlainService(settings, server), server=server.name)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def tell() -> None:
        wait_until(lambda: listener.facts()["is_listening"])
        print("listening", flush=True)

    threading.Thread(target=tell, daemon=True).start()
    listener.run(stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
