"""The agent's socket, and those who ask at it; no server, real segments, a real repository."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pgrecall.agent import asking, listener
from pgrecall.agent.asking import ask_fetch, ask_push
from pgrecall.agent.calls import Call, Peer
from pgrecall.agent.listener import Listener
from pgrecall.agent.protocol import (
    MAXIMUM_REPLY_BYTES,
    MAXIMUM_REQUEST_BYTES,
    PUSH,
    VERSION,
    Request,
    decode_request,
    join,
    split,
)
from pgrecall.cli import diagnostics
from pgrecall.errors import (
    AgentSilentError,
    NotOwnerError,
    WalConflictError,
    WalFormatError,
)
from pgrecall.wal.archives import data_directory_of
from pgrecall.wal.fetch import FetchResult
from tests.support.listener_scene import PlainService, served, short_directory, wait_until
from tests.support.socket_scene import ABSENT, DESTINATION, HeldService, SocketScene
from tests.support.wal_scene import build_segments


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


def speak(path: str, message: bytes, descriptors: list[int]) -> list[list[str]]:
    """Say one thing and hear everything."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connected:
        connected.settimeout(10)
        connected.connect(path)
        passed = struct.pack(f"{len(descriptors)}i", *descriptors)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if descriptors else []
        connected.sendmsg([message], rights)
        heard = []
        while said := connected.recv(65536):
            heard.append(split(said))
            if heard[-1][0] in ("done", "refused"):
                break
        return heard


@pytest.fixture
def directories(quiet: SocketScene) -> Iterator[list[int]]:
    opened = [os.open(path, os.O_PATH) for path in (".", "pg_wal")]
    yield opened
    for descriptor in opened:
        os.close(descriptor)


# --- there and back --------------------------------------------------------------------


def test_there_and_back(scene: SocketScene) -> None:
    for outcome in ("created", "already-stored"):
        pushed = ask_push(scene.socket, "", f"pg_wal/{scene.name}")
        facts = json.loads(pushed.facts)
        assert (pushed.status, pushed.text, facts["outcome"]) == (0, "", outcome)
        assert facts["name"] == scene.name
    fetched = ask_fetch(scene.socket, "main", scene.name, DESTINATION)
    assert (fetched.status, fetched.text) == (0, "")
    assert scene.delivered.read_bytes() == scene.content
    assert scene.delivered.stat().st_mode & 0o777 == 0o600
    absent = ask_fetch(scene.socket, "main", ABSENT, DESTINATION)
    assert (absent.status, absent.text) == (64, "")
    assert scene.leftovers() == ["RECOVERYXLOG"]
    facts = scene.listener.facts()
    assert (facts["pushes"], facts["fetches"], facts["failures"]) == (2, 2, 0)


def test_absolute_paths_and_a_pg_wal_that_is_a_link(scene: SocketScene) -> None:
    away = scene.path / "wal of its own"
    (scene.pgdata / "pg_wal").rename(away)
    (scene.pgdata / "pg_wal").symlink_to(away)
    os.chdir("/")
    assert ask_push(scene.socket, "", f"{scene.pgdata}/pg_wal/{scene.name}").status == 0
    os.chdir(scene.pgdata)
    assert ask_fetch(scene.socket, "", scene.name, DESTINATION).status == 0
    assert (away / "RECOVERYXLOG").read_bytes() == scene.content


@pytest.mark.parametrize(
    "file",
    [
        *("pg_wal/X", "X", "./pg_wal/X", "pg_wal/../pg_wal/X", "/tmp/X", "{pgdata}/pg_wal/X"),
        *("{pgdata}/X", "../copy/pg_wal/X", "{pgdata}/../copy/pg_wal/./X", "pg_wal/pg_wal/X"),
    ],
)
def test_the_data_directory_is_chosen_as_without_an_agent(quiet: SocketScene, file: str) -> None:
    """A copy beside production must never pass for production."""
    quiet.make_pgdata("copy")
    path = file.format(pgdata=quiet.pgdata)
    assert asking._data_directory(path) == data_directory_of(path, str(quiet.pgdata))


def test_outside_of_a_data_directory_the_settings_are_needed(scene: SocketScene) -> None:
    os.chdir(scene.path)
    with pytest.raises(AgentSilentError, match="data directory"):
        ask_fetch(scene.socket, "", scene.name, "segment")
    assert scene.service.asked == []


# --- what is refused --------------------------------------------------------------------


def test_a_restored_copy_is_refused(scene: SocketScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts 1 and 2: it runs with production's configuration, and asks production's agent."""
    copy = scene.make_pgdata("copy")
    scene.mark_copy(copy, "r1")
    scene.write(scene.name, scene.content, copy)
    monkeypatch.chdir(copy)
    pushed = ask_push(scene.socket, "main", f"pg_wal/{scene.name}")
    assert pushed.status == NotOwnerError.exit_status
    assert f"{copy} is the restored copy r1" in pushed.text
    assert "/proc/self" not in pushed.text
    assert not scene.object_path(scene.name).exists()
    assert scene.listener.facts()["last_failure"] == json.loads(pushed.facts)["message"]


def test_errors_are_told_as_without_an_agent(
    scene: SocketScene, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content, kind in (
        (scene.name, build_segments(1, salt=1)[scene.name], WalConflictError),
        ("0000000100000000000000AA", b"x" * 1000, WalFormatError),
        ("nonsense", b"", WalFormatError),
    ):
        scene.push_new(scene.name, scene.content)
        scene.write(name, content)
        with pytest.raises(kind) as caught:
            scene.push(Path("pg_wal") / name)
        asked = ask_push(scene.socket, "", f"pg_wal/{name}")
        if kind is not WalConflictError:  # names the time of the push
            assert json.loads(asked.facts)["message"] == caught.value.message
        assert json.loads(asked.facts)["exit_status"] == asked.status == kind.exit_status
        caught.value.message = json.loads(asked.facts)["message"]
        diagnostics.report_error(caught.value, as_json=False)
        assert capsys.readouterr().err == asked.text


def test_another_server_is_refused(scene: SocketScene) -> None:
    with pytest.raises(AgentSilentError, match="serves 'main', not 'other'"):
        ask_push(scene.socket, "other", f"pg_wal/{scene.name}")


def test_strangers_are_refused(scene: SocketScene, directories: list[int]) -> None:
    message = Request(PUSH, "", ".", f"pg_wal/{scene.name}").encode()
    with pytest.raises(AgentSilentError, match="neither root"):
        scene.listener.accept_call(
            message, [os.dup(one) for one in directories], Peer(1, 54321, 54321)
        )


def test_a_server_of_another_user_is_served_in_its_own_directories(
    scene: SocketScene, directories: list[int]
) -> None:
    allowed = Listener(scene.socket, scene.service, owner=54321)
    message = Request(PUSH, "", ".", f"pg_wal/{scene.name}").encode()
    with pytest.raises(AgentSilentError, match="not the caller's"):
        allowed.accept_call(message, [os.dup(one) for one in directories], Peer(1, 54321, 54321))
    call = allowed.accept_call(
        message, [os.dup(one) for one in directories], Peer(1, os.geteuid(), 0)
    )
    call.close()


GARBAGE = [
    b"x",
    b"\0",
    b"\0" * 100,
    bytes(range(256)),
    b"GET / HTTP/1.1\r\n\r\n",
    join(["pgrecall-agent/2", "push", "", ".", "pg_wal/X"]),
    join([VERSION]),
    join([VERSION, "drop", "", ".", "x"]),
    join([VERSION, "push", "", "."]),
    join([VERSION, "push", "", ".", "x", "y"]),
    join([VERSION, "push", "", ".", "pg_wal/"]),
    join([VERSION, "push", "", ".", "pg_wal/.."]),
    join([VERSION, "fetch", "", ".", "pg_wal/R", "name"]),
    join([VERSION, "fetch", "", ".", "pg_wal/R", "name", "PG_VERSION"]),
    join([VERSION, "fetch", "", ".", "pg_wal/R", "name", "R.pgrecall-"]),
    join([VERSION, "fetch", "", ".", "pg_wal/R", "name", "R.pgrecall-/../x"]),
    b"y" * (MAXIMUM_REQUEST_BYTES + 1),
    join([VERSION, "push", "", ".", "z" * MAXIMUM_REQUEST_BYTES]),
]


@pytest.mark.parametrize("message", GARBAGE, ids=lambda message: repr(message[:40]))
def test_garbage_is_refused(scene: SocketScene, directories: list[int], message: bytes) -> None:
    for passed in (directories, []):
        ((word, text),) = speak(scene.socket, message, passed)
        assert word == "refused"
        assert text
    assert scene.service.asked == []
    assert ask_push(scene.socket, "", f"pg_wal/{scene.name}").status == 0


@pytest.mark.parametrize("count", [0, 1, 3, 9, 20])
def test_the_wrong_number_of_descriptors(
    scene: SocketScene, directories: list[int], count: int
) -> None:
    message = Request(PUSH, "", ".", f"pg_wal/{scene.name}").encode()
    before = len(os.listdir("/proc/self/fd"))
    ((word, _),) = speak(scene.socket, message, [directories[0]] * count)
    assert word == "refused"
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_descriptors_that_are_no_data_directory(scene: SocketScene, directories: list[int]) -> None:
    message = Request(PUSH, "", ".", f"pg_wal/{scene.name}").encode()
    with open(os.devnull) as null:
        for pgdata in (null.fileno(), directories[1]):
            ((word, text),) = speak(scene.socket, message, [pgdata, directories[1]])
            assert word == "refused"
            assert "director" in text


def test_a_request_that_comes_back(scene: SocketScene) -> None:
    name = "ü\udcff.x"
    request = Request("fetch", "sé", "/pg\udcfe data", name)
    request.name, request.aside = "n", f"{name}.pgrecall-0a"
    found = decode_request(request.encode())
    assert (found.server, found.pgdata, found.path) == ("sé", "/pg\udcfe data", name)
    assert (found.name, found.aside) == ("n", f"{name}.pgrecall-0a")


# --- clients on their bad days ------------------------------------------------------------


def test_long_work_is_waited_for(quiet: SocketScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a silent agent would be."""
    monkeypatch.setattr(asking, "_TIMEOUT", struct.pack("ll", 0, 200_000))
    monkeypatch.setattr(listener, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(listener, "_TICK_SECONDS", 0.02)
    service = HeldService(quiet)
    with served(Listener(quiet.socket, service)), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask_push, quiet.socket, "", f"pg_wal/{quiet.name}")
        assert service.begun.acquire(timeout=30)
        threading.Timer(0.6, service.let.release).start()
        assert asked.result(30).status == 0


def test_a_client_that_goes_leaves_nothing(quiet: SocketScene, directories: list[int]) -> None:
    """Killed before, while, and after its file is delivered aside."""
    quiet.push_new(quiet.name, quiet.content)
    service = HeldService(quiet)
    request = Request("fetch", "", ".", DESTINATION)
    request.name, request.aside = quiet.name, "RECOVERYXLOG.pgrecall-aa"
    passed = struct.pack("2i", *directories)
    with served(Listener(quiet.socket, service)) as at_work:
        before = len(os.listdir("/proc/self/fd"))
        for reads_to_the_end in (False, True):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.settimeout(10)
                client.connect(quiet.socket)
                client.sendmsg([request.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
                assert service.begun.acquire(timeout=30)
                if reads_to_the_end:
                    service.let.release()
                    while not client.recv(65536).startswith(b"done"):
                        pass
                    assert quiet.leftovers() == ["RECOVERYXLOG.pgrecall-aa"]
            if not reads_to_the_end:
                service.let.release()
                wait_until(lambda: at_work.facts()["abandoned"] == 1)
            wait_until(lambda: quiet.leftovers() == [])
            wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_remains_of_killed_processes_are_removed_in_time(scene: SocketScene) -> None:
    scene.push(scene.pgdata / "pg_wal" / scene.name)
    old, young = "RECOVERYXLOG.pgrecall-0a.pgrecall-7", "RECOVERYXLOG.pgrecall-0b"
    others = ["RECOVERYHISTORY.pgrecall-0c", "RECOVERYXLOG", scene.name]
    for name in (old, young, *others):
        path = scene.pgdata / "pg_wal" / name
        path.write_bytes(b"x")
        if name != young:
            os.utime(path, (0, 0))
    assert ask_fetch(scene.socket, "", ABSENT, DESTINATION).status == 64
    assert scene.leftovers() == sorted({young, *others} - {scene.name})
    assert (scene.pgdata / "pg_wal" / scene.name).exists()


def test_clients_that_say_nothing_or_too_much(
    quiet: SocketScene, directories: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_SILENT_CLIENT_SECONDS", 0.1)
    service = HeldService(quiet)
    with served(Listener(quiet.socket, service)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
            silent.settimeout(10)
            silent.connect(quiet.socket)
            assert silent.recv(1000) == b""
        message = Request(PUSH, "", ".", f"pg_wal/{quiet.name}").encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as twice:
            twice.settimeout(10)
            twice.connect(quiet.socket)
            passed = struct.pack("2i", *directories)
            for _ in range(2):
                twice.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
            while twice.recv(1000):
                pass
        service.let.release()


def test_two_hundred_clients_at_once(scene: SocketScene) -> None:
    code = (
        "import struct, sys; from pgrecall.agent import asking\n"
        "from pgrecall.agent.asking import ask_push, ask_fetch\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "asking._TIMEOUT = struct.pack('ll', 20, 0)  # on a busy machine, nobody is to give up\n"
        "socket, name = sys.argv[1:]\n"
        "def one(n):\n"
        "    if n % 2: return ask_push(socket, '', f'pg_wal/{name}').status\n"
        "    return ask_fetch(socket, '', name, f'pg_wal/RECOVERY{n}').status\n"
        "with ThreadPoolExecutor(200) as pool: print(sorted(pool.map(one, range(200))))\n"
    )
    assert ask_push(scene.socket, "", f"pg_wal/{scene.name}").status == 0
    said = subprocess.run(
        [sys.executable, "-c", code, scene.socket, scene.name],
        check=False,
        capture_output=True,
        text=True,
    )
    assert said.stderr == ""
    assert said.stdout == f"{[0] * 200}\n"
    assert len(scene.leftovers()) == 100
    for name in scene.leftovers():
        assert (scene.pgdata / "pg_wal" / name).read_bytes() == scene.content


def test_more_clients_than_there_is_room_for_wait(
    quiet: SocketScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_MOST_CONNECTIONS", 2)
    with served(quiet.listener), ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(ask_push, quiet.socket, "", f"pg_wal/{quiet.name}") for _ in range(10)]
        assert [one.result(30).status for one in asked] == [0] * 10


class BrokenService(PlainService):
    """Has a bug."""

    def push(self, path: str, pgdata: str):  # type: ignore[no-untyped-def]
        raise ZeroDivisionError


def test_a_bug_of_the_agent_is_no_answer(quiet: SocketScene) -> None:
    broken = BrokenService(quiet.settings, quiet.server)
    with served(Listener(quiet.socket, broken)) as at_work:
        with pytest.raises(AgentSilentError, match="ZeroDivisionError"):
            ask_push(quiet.socket, "", f"pg_wal/{quiet.name}")
        assert at_work.facts()["failures"] == 1


def test_a_bug_of_the_listener_is_no_answer_either(
    quiet: SocketScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Call, "carry_out", lambda *_: 1 / 0)
    with served(quiet.listener), pytest.raises(AgentSilentError, match="the agent failed"):
        ask_push(quiet.socket, "", f"pg_wal/{quiet.name}")


class WordyService(PlainService):
    """Says more than a message holds, in characters that take the most room."""

    def push(self, path: str, pgdata: str):  # type: ignore[no-untyped-def]
        raise WalFormatError("\N{MUSICAL SYMBOL G CLEF}" * 50_000, hint="\0\udcff" * 50_000)

    def fetch(self, name: str, destination: str, pgdata: str):  # type: ignore[no-untyped-def]
        Path(destination).write_bytes(b"x")
        return FetchResult(name, "one", 1, ["\N{MUSICAL SYMBOL G CLEF}" * 10_000] * 50)


def test_no_reply_is_too_long(quiet: SocketScene) -> None:
    with served(Listener(quiet.socket, WordyService(quiet.settings, quiet.server))):
        pushed = ask_push(quiet.socket, "", f"pg_wal/{quiet.name}")
        fetched = ask_fetch(quiet.socket, "", quiet.name, DESTINATION)
    assert pushed.status == WalFormatError.exit_status
    assert json.loads(pushed.facts)["code"] == "wal-format"
    assert len(pushed.text) > 3000
    assert fetched.status == 0
    assert fetched.text.count("WARNING") == 50
    for answer in (pushed, fetched):
        reply = len(answer.facts.encode()) + len(answer.text.encode()) + 10
        assert 30_000 < reply < MAXIMUM_REPLY_BYTES
