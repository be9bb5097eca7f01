"""Where the agent listens: private, one agent at a time, and who believes whom there."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.agent import asking
from pgrecall.agent.asking import ask_push
from pgrecall.agent.calls import Call, Peer
from pgrecall.agent.listener import Listener
from pgrecall.agent.protocol import PUSH, Request
from pgrecall.errors import AgentPlaceError, AgentRunningError, AgentSilentError
from tests.support.listener_scene import served, short_directory
from tests.support.socket_scene import SocketScene


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SocketScene]:
    """The scene without anybody at work."""
    with short_directory() as run_directory:
        scene = SocketScene(tmp_path, run_directory)
        monkeypatch.chdir(scene.pgdata)
        yield scene


@pytest.fixture
def scene(quiet: SocketScene) -> Iterator[SocketScene]:
    """With the agent."""
    with served(quiet.listener):
        yield quiet


@pytest.fixture
def directories(quiet: SocketScene) -> Iterator[list[int]]:
    opened = [os.open(path, os.O_PATH) for path in (".", "pg_wal")]
    yield opened
    for descriptor in opened:
        os.close(descriptor)


def test_the_socket_is_private_and_goes_with_the_agent(quiet: SocketScene) -> None:
    path = Path(quiet.socket).parent / "made" / "agent.sock"
    with served(Listener(str(path), quiet.service)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()
    with pytest.raises(AgentSilentError, match="No such file"):
        ask_push(str(path), "", f"pg_wal/{quiet.name}")


def test_a_second_agent_is_refused_and_a_leftover_replaced(scene: SocketScene) -> None:
    second = Listener(scene.socket, scene.service)
    with pytest.raises(AgentRunningError, match=f"pid {os.getpid()}"), served(second):
        pass
    assert ask_push(scene.socket, "", f"pg_wal/{scene.name}").status == 0


def test_a_socket_that_a_killed_agent_left_behind(quiet: SocketScene) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(quiet.socket)
    with pytest.raises(AgentSilentError, match="refused"):
        ask_push(quiet.socket, "", f"pg_wal/{quiet.name}")
    for _ in range(2):  # run may be called again
        with served(quiet.listener):
            assert ask_push(quiet.socket, "", f"pg_wal/{quiet.name}").status == 0


def test_places_that_cannot_be_used(quiet: SocketScene) -> None:
    directory = Path(quiet.socket).parent
    (directory / "file").write_text("mine")
    (directory / "open").mkdir()
    (directory / "open").chmod(0o777)
    for path, why in (
        (directory / "file", "is no socket"),
        (directory / "open" / "agent.sock", "open to others"),
        (directory / "file" / "agent.sock", "cannot listen"),
    ):
        stop = threading.Event()
        stop.set()  # if it did listen, then not for long
        with pytest.raises(AgentPlaceError, match=why):
            Listener(str(path), quiet.service).run(stop)
    assert (directory / "file").read_text() == "mine"


def test_a_path_longer_than_an_address(quiet: SocketScene) -> None:
    path = Path(quiet.socket).parent / ("d" * 100) / "agent.sock"
    with served(Listener(str(path), quiet.service)):
        assert ask_push(str(path), "", f"pg_wal/{quiet.name}").status == 0


def test_nobody_but_root_and_oneself_is_believed(
    scene: SocketScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stranger:
        size = 12

        def unpack(self, raw: bytes) -> tuple[int, int, int]:
            return 1, 54321, 54321

    with monkeypatch.context() as patched:
        patched.setattr(asking, "_CREDENTIALS", Stranger())
        with pytest.raises(AgentSilentError, match="is not believed"):
            ask_push(scene.socket, "", f"pg_wal/{scene.name}")
    assert scene.service.asked == []


def test_calls_that_are_closed_twice(scene: SocketScene, directories: list[int]) -> None:
    message = Request(PUSH, "", ".", f"pg_wal/{scene.name}").encode()
    call = Call(message, [os.dup(one) for one in directories], Peer(1, os.geteuid(), 0))
    call.close()
    call.close()
