"""The agent and its clients are killed and stopped; archiving and recovery go on without.

Seen from PostgreSQL: a push that ends with 0 is durable, whoever did it; a fetch
delivers whole files only, and "absent" is proven. An agent that answers nothing is
given up within about a second, and the client does the work itself.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgrecall
from pgrecall.agent.client_file import client_path
from tests.support.listener_scene import (
    AgentProcess,
    agent_process,
    short_directory,
    wait_until,
)
from tests.support.wal_scene import Scene, build_segments

SOURCE = str(Path(pgrecall.__file__).parents[1])
ABSENT = "0000000100000000000000FF"
DESTINATION = "pg_wal/RECOVERYXLOG"
# The agent is given up after one second; the rest is for a busy machine.
GIVEN_UP_SECONDS = 10.0


class FaultScene(Scene):
    """A scene whose agents and clients are processes; both clients are tried."""

    def __init__(self, path: Path, socket: Path) -> None:
        super().__init__(path)
        self.config = path / "pgrecall.toml"
        self.config.write_text(
            f'[servers.main]\ndata_directory = "{self.pgdata}"\n[wal]\nretry_seconds = 0\n'
            f'[repositories.one]\nstore = "local"\npath = "{path / "one"}"\n'
            f'[agent]\nsocket = "{socket}"\n'
        )
        self.socket = socket
        self.segments = build_segments(3)
        for name, content in self.segments.items():
            self.write(name, content)
        self.program = path / "pgrecall"
        self.program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m pgrecall "$@"\n')
        self.program.chmod(0o755)

    def client(self, kind: str, *words: str) -> subprocess.Popen[str]:
        """``words``: push or fetch, and its files. The fallback of C is the Python program."""
        if kind == "python":
            argv = [str(self.program), "--config", str(self.config), "wal", *words]
        else:
            path = client_path()
            assert path is not None, "no client was built: is there a C compiler?"
            argv = [path, words[0], "--socket", str(self.socket), "--config", str(self.config)]
            argv += ["--fallback", str(self.program), *words[1:]]
        return subprocess.Popen(
            argv,
            cwd=self.pgdata,
            env={"PYTHONPATH": SOURCE, "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, kind: str, *words: str) -> tuple[int, str, str]:
        process = self.client(kind, *words)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def agent(self, **environment: str) -> AgentProcess:
        return AgentProcess(self.config, self.socket, **environment)

    def leftovers(self) -> list[str]:
        found = {path.name for path in (self.pgdata / "pg_wal").iterdir()}
        return sorted(found - set(self.segments))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[FaultScene]:
    with short_directory() as directory:
        yield FaultScene(tmp_path, directory / "agent.sock")


@pytest.mark.parametrize("kind", ["python", "c"])
def test_an_agent_that_is_killed_before_answers_nobody(scene: FaultScene, kind: str) -> None:
    """The socket's file is still there."""
    name = next(iter(scene.segments))
    with agent_process(scene.config, scene.socket) as agent:
        assert scene.run(kind, "push", f"pg_wal/{name}") == (0, "", "")
        agent.send(signal.SIGKILL)
        agent.process.wait(30)
    assert scene.socket.is_socket()
    for name, content in scene.segments.items():
        assert scene.run(kind, "push", f"pg_wal/{name}") == (0, "", "")
        assert scene.run(kind, "fetch", name, DESTINATION) == (0, "", "")
        assert (scene.pgdata / DESTINATION).read_bytes() == content
    assert scene.run(kind, "fetch", ABSENT, DESTINATION) == (64, "", "")
    # The next one takes the place.
    with agent_process(scene.config, scene.socket):
        assert scene.run(kind, "fetch", ABSENT, DESTINATION) == (64, "", "")


@pytest.mark.parametrize("kind", ["python", "c"])
@pytest.mark.parametrize("fault", ["agent.push", "push.put", "push.stored", "agent.push-done"])
def test_an_agent_that_is_killed_while_it_pushes(scene: FaultScene, kind: str, fault: str) -> None:
    name, content = next(iter(scene.segments.items()))
    with agent_process(scene.config, scene.socket, PGRECALL_FAULT_KILL=fault) as agent:
        began = time.monotonic()
        assert scene.run(kind, "push", f"pg_wal/{name}") == (0, "", "")
        assert time.monotonic() - began < GIVEN_UP_SECONDS
        assert agent.process.wait(30) == -signal.SIGKILL
    assert scene.fetched(name) == content


@pytest.mark.parametrize("kind", ["python", "c"])
@pytest.mark.parametrize("fault", ["agent.fetch", "fetch.written", "agent.fetch-done"])
def test_an_agent_that_is_killed_while_it_fetches(scene: FaultScene, kind: str, fault: str) -> None:
    name, content = next(iter(scene.segments.items()))
    scene.push(scene.pgdata / "pg_wal" / name)
    with agent_process(scene.config, scene.socket, PGRECALL_FAULT_KILL=fault) as agent:
        assert scene.run(kind, "fetch", name, DESTINATION) == (0, "", "")
        assert agent.process.wait(30) == -signal.SIGKILL
    assert (scene.pgdata / DESTINATION).read_bytes() == content
    # What the transfer itself wrote aside is as after a kill of the transfer.
    if fault != "fetch.written":
        assert scene.leftovers() == ["RECOVERYXLOG"]


@pytest.mark.parametrize("kind", ["python", "c"])
def test_an_agent_that_is_stopped_is_given_up(scene: FaultScene, kind: str) -> None:
    """SIGSTOP: it accepts connections still, as the kernel does that, and says nothing."""
    with agent_process(scene.config, scene.socket) as agent:
        agent.send(signal.SIGSTOP)
        for name, content in scene.segments.items():
            began = time.monotonic()
            assert scene.run(kind, "push", f"pg_wal/{name}") == (0, "", "")
            assert 0.9 < time.monotonic() - began < GIVEN_UP_SECONDS
            assert scene.fetched(name) == content
        agent.send(signal.SIGCONT)
        assert scene.run(kind, "fetch", next(iter(scene.segments)), DESTINATION)[0] == 0


@pytest.mark.parametrize("kind", ["python", "c"])
@pytest.mark.parametrize("point", ["agent.fetch", "fetch.written"])
def test_an_agent_that_wakes_up_delivers_nothing_late(
    scene: FaultScene, kind: str, point: str
) -> None:
    """It was stopped at work and given up. PostgreSQL asks for the next segment under the same
    destination; what the agent was about must not come there any more."""
    (first, content), (second, wanted), _ = scene.segments.items()
    for name in (first, second):
        scene.push(scene.pgdata / "pg_wal" / name)
    held = scene.socket.parent / point
    pause = {"PGRECALL_FAULT_PAUSE": f"{point}:{scene.socket.parent}"}
    with agent_process(scene.config, scene.socket, **pause) as agent:
        client = scene.client(kind, "fetch", first, DESTINATION)
        wait_until(held.exists)
        agent.send(signal.SIGSTOP)
        assert client.communicate(timeout=60) == ("", "")
        assert client.returncode == 0
        assert (scene.pgdata / DESTINATION).read_bytes() == content
        assert scene.run(kind, "fetch", second, DESTINATION)[0] == 0
        held.unlink()
        agent.send(signal.SIGCONT)
        assert scene.run(kind, "fetch", ABSENT, "pg_wal/RECOVERYHISTORY")[0] == 64
        wait_until(lambda: scene.leftovers() == ["RECOVERYXLOG"])
        assert (scene.pgdata / DESTINATION).read_bytes() == wanted


@pytest.mark.parametrize("kind", ["python", "c"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_that_is_ended_leaves_nothing(
    scene: FaultScene, kind: str, number: signal.Signals
) -> None:
    name, content = next(iter(scene.segments.items()))
    scene.push(scene.pgdata / "pg_wal" / name)
    held = scene.socket.parent / "agent.fetch"
    pause = {"PGRECALL_FAULT_PAUSE": f"agent.fetch:{scene.socket.parent}"}
    with agent_process(scene.config, scene.socket, **pause):
        client = scene.client(kind, "fetch", name, DESTINATION)
        wait_until(held.exists)
        client.send_signal(number)
        client.communicate(timeout=30)
        assert client.returncode == (-number if number == signal.SIGKILL else 62)
        held.unlink()
        # Both may be seen: the file that nobody wants, and then that it is gone.
        assert scene.run(kind, "fetch", name, "pg_wal/RECOVERYHISTORY")[0] == 0
        wait_until(lambda: scene.leftovers() == ["RECOVERYHISTORY"])
        assert (scene.pgdata / "pg_wal" / "RECOVERYHISTORY").read_bytes() == content


def test_an_agent_that_ends_lets_go_of_its_clients(scene: FaultScene) -> None:
    """SIGTERM: what takes too long is done by the client."""
    name, content = next(iter(scene.segments.items()))
    held = scene.socket.parent / "push.put"
    pause = {"PGRECALL_FAULT_PAUSE": f"push.put:{scene.socket.parent}"}
    with agent_process(scene.config, scene.socket, **pause) as agent:
        client = scene.client("python", "push", f"pg_wal/{name}")
        wait_until(held.exists)
        agent.send(signal.SIGTERM)
        assert client.communicate(timeout=60) == ("", "")
        assert client.returncode == 0
        assert scene.fetched(name) == content
        assert agent.process.wait(30) == 0
    assert not scene.socket.exists()


def test_two_agents_never_serve_one_socket(scene: FaultScene) -> None:
    with agent_process(scene.config, scene.socket) as first:
        second = subprocess.run(
            [sys.executable, "-m", "tests.support.listener_scene", scene.config, scene.socket],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": first.python_path},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 1
        assert f"another agent (pid {first.process.pid}) listens at" in second.stderr
        assert scene.run("c", "fetch", ABSENT, DESTINATION) == (64, "", "")


@pytest.mark.parametrize("room", [0, 1, 2, 3, 4, 6])
def test_an_agent_without_descriptors_lives_on(scene: FaultScene, room: int) -> None:
    """Nobody is served then, and everybody does it himself; afterwards all is as before."""
    name = next(iter(scene.segments))
    with agent_process(scene.config, scene.socket) as agent:
        assert scene.run("c", "push", f"pg_wal/{name}") == (0, "", "")
        pid = agent.process.pid
        highest = max(int(number) for number in os.listdir(f"/proc/{pid}/fd"))
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + room, before[1]))
        for kind in ("python", "c"):
            assert scene.run(kind, "push", f"pg_wal/{name}") == (0, "", "")
            assert scene.run(kind, "fetch", ABSENT, DESTINATION) == (64, "", "")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        wait_until(lambda: alone(scene, "fetch", name, DESTINATION) == 0)
        assert agent.process.poll() is None


def alone(scene: FaultScene, *words: str) -> int:
    """The exit status of the client in C without a fallback."""
    path = client_path()
    assert path is not None
    return subprocess.run(
        [path, words[0], "--socket", str(scene.socket), *words[1:]],
        cwd=scene.pgdata,
        env={},
        capture_output=True,
        check=False,
    ).returncode
