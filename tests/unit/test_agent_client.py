"""The client for images without Python: as the one in Python, with an empty environment."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.agent import asking, protocol
from pgrecall.agent.client_file import client_kind, client_path, install_client
from pgrecall.agent.listener import Listener
from pgrecall.errors import AgentSilentError, InterruptedRunError, NotOwnerError, WalFormatError
from pgrecall.wal.archives import data_directory_of
from tests.support.bare_root import can_change_root
from tests.support.listener_scene import served, short_directory, wait_until
from tests.support.socket_scene import ABSENT, DESTINATION, HeldService, SocketScene

UNKNOWN = AgentSilentError.exit_status


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[SocketScene]:
    """The scene without anybody at work."""
    with short_directory() as run_directory:
        yield SocketScene(tmp_path, run_directory)


@pytest.fixture
def scene(quiet: SocketScene) -> Iterator[SocketScene]:
    """With the agent."""
    with served(quiet.listener):
        yield quiet


def start(scene: SocketScene, *words: str, **options: Any) -> subprocess.Popen[str]:
    path = client_path()
    assert path is not None, "no client was built: is there a C compiler?"
    return subprocess.Popen(
        [path, *words],
        **{
            "cwd": scene.pgdata,
            "env": {},
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **options,
        },
    )


def run(scene: SocketScene, *words: str, **options: Any) -> tuple[int, str, str]:
    process = start(scene, *words, **options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_it_is_linked_statically() -> None:
    """Wherever that can be done; an image that is its user has nothing to load."""
    asked = ["cc", "-print-file-name=libc.a"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip("NOT PROVEN HERE: there is no static C library")
    assert client_kind() == "static"


def test_it_says_what_the_other_client_says() -> None:
    path = Path(str(client_path())).with_name("pgrecall_client.c")
    source = path.read_text(encoding="utf-8")
    values = dict(re.findall(r"^\t(\w+) = ([\w <*]+),", source, re.MULTILINE))
    assert f'#define PROTOCOL "{protocol.VERSION}"' in source
    assert f'#define ASIDE "{protocol.ASIDE}"' in source
    assert int(values["SILENT"]) == AgentSilentError.exit_status
    assert int(values["INTERRUPTED"]) == InterruptedRunError.exit_status
    assert int(values["SILENCE_SECONDS"]) == protocol.SILENCE_SECONDS
    assert int(values["LONGEST_SECONDS"]) == asking._LONGEST_SECONDS
    assert values["REQUEST_BYTES"] == f"{protocol.MAXIMUM_REQUEST_BYTES >> 10} << 10"
    assert values["REPLY_BYTES"] == f"{protocol.MAXIMUM_REPLY_BYTES >> 10} << 10"


def test_there_and_back(scene: SocketScene) -> None:
    socket_words = ("--socket", scene.socket)
    for _ in range(2):
        assert run(scene, "push", *socket_words, f"pg_wal/{scene.name}") == (0, "", "")
    assert run(scene, "fetch", *socket_words, scene.name, DESTINATION) == (0, "", "")
    assert scene.delivered.read_bytes() == scene.content
    assert scene.delivered.stat().st_mode & 0o777 == 0o600
    assert run(scene, "fetch", *socket_words, ABSENT, DESTINATION) == (64, "", "")
    assert scene.leftovers() == ["RECOVERYXLOG"]
    environment = {"PGRECALL_AGENT_SOCKET": scene.socket}
    path = f"{scene.pgdata}/pg_wal/{scene.name}"
    assert run(scene, "push", "--server=main", "--", path, env=environment, cwd="/")[0] == 0


def test_it_needs_nothing_beside_itself(quiet: SocketScene) -> None:
    """In a root of its own: no C library, no shell, no /proc, no /dev, no environment."""
    why = can_change_root()
    if why or client_kind() != "static":
        pytest.skip(f"NOT PROVEN HERE: {why or 'the client is not static'}")
    install_client(str(quiet.path))
    inside = ["unshare", "--user", "--map-root-user", "--root", str(quiet.path)]
    inside += ["--wd", "/pgdata", "/pgrecall-client"]

    def ask(*words: str) -> tuple[int, str]:
        argv = [shutil.which("unshare") or "unshare", *inside[1:], *words]
        finished = subprocess.run(argv, env={}, capture_output=True, text=True, check=False)
        return finished.returncode, finished.stderr

    assert sorted(path.name for path in quiet.path.iterdir()) == [
        "one",
        "pgdata",
        "pgrecall-client",
    ]
    with served(Listener(str(quiet.path / "run" / "agent.sock"), quiet.service)):
        socket_words = ("--socket", "/run/agent.sock")
        assert ask("push", *socket_words, f"pg_wal/{quiet.name}") == (0, "")
        assert ask("push", *socket_words, f"/pgdata/pg_wal/{quiet.name}") == (0, "")
        assert ask("fetch", *socket_words, quiet.name, DESTINATION) == (0, "")
        assert quiet.delivered.read_bytes() == quiet.content
        assert ask("fetch", *socket_words, ABSENT, DESTINATION) == (64, "")
        status, said = ask("push", *socket_words, "pg_wal/nonsense")
        assert status == WalFormatError.exit_status
        assert "nonsense" in said
    assert ask("push", *socket_words, f"pg_wal/{quiet.name}")[0] == UNKNOWN


def test_it_starts_at_once(scene: SocketScene) -> None:
    """No figure for a benchmark: only that nothing is far out of the way."""
    taken = []
    for _ in range(10):
        began = time.perf_counter()
        assert run(scene, "push")[0] == 2
        taken.append(time.perf_counter() - began)
    assert min(taken) < 0.05


@pytest.mark.parametrize(
    "file",
    [
        *("pg_wal/X", "X", "./pg_wal/X", "pg_wal/../pg_wal/X", "/tmp/X", "{pgdata}/pg_wal/X"),
        *("{pgdata}/X", "../copy/pg_wal/X", "{pgdata}//../copy/./pg_wal//X", "pg_wal/pg_wal/X"),
        *("../../../../../../../../../../../../{pgdata}/pg_wal/X", "X/.."),
    ],
)
def test_the_data_directory_is_chosen_as_without_an_agent(
    scene: SocketScene, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.make_pgdata("copy")
    (scene.pgdata / "pg_wal" / "pg_wal").mkdir()
    monkeypatch.chdir(scene.pgdata)
    path = file.format(pgdata=scene.pgdata)
    seen: list[str] = []
    original = scene.listener.accept_call

    def look(*arguments: Any) -> Any:
        call = original(*arguments)
        seen.append(call.request.pgdata)
        return call

    monkeypatch.setattr(scene.listener, "accept_call", look)
    status, _, text = run(scene, "push", "--socket", scene.socket, path)
    assert status == (UNKNOWN if path.endswith("..") else 33 if "/tmp" not in path else status)
    assert text
    if not path.endswith(".."):
        assert seen == [data_directory_of(path, str(scene.pgdata))]


def test_what_fails_is_told(scene: SocketScene) -> None:
    copy = scene.make_pgdata("copy")
    scene.mark_copy(copy, "r1")
    scene.write(scene.name, scene.content, copy)
    status, out, err = run(
        scene, "push", "--socket", scene.socket, f"pg_wal/{scene.name}", cwd=copy
    )
    assert (status, out) == (NotOwnerError.exit_status, "")
    assert err.startswith(f"pgrecall: {copy} is the restored copy r1")
    assert "\nHINT: " in err


@pytest.mark.parametrize(
    "words",
    [
        *([], ["push"], ["drop", "x"], ["push", "x"], ["push", "--socket", "s", "a", "b"]),
        *(["fetch", "--socket", "s", "a"], ["push", "--socket"], ["push", "--sock", "s", "x"]),
        *(["--help"], ["push", "--socket=", "x"], ["a", "b", "c", "d"]),
    ],
)
def test_wrong_words(quiet: SocketScene, words: list[str]) -> None:
    """Also with --help: an archive_command that says 0 would have archived."""
    status, out, err = run(quiet, *words)
    assert (status, out) == (2, "")
    assert "pgrecall-client: usage:" in err


# --- without an agent -----------------------------------------------------------------------


def test_without_an_agent_nothing_is_known(quiet: SocketScene) -> None:
    for words in (("push", f"pg_wal/{quiet.name}"), ("fetch", quiet.name, DESTINATION)):
        status, out, err = run(quiet, *words, "--socket", quiet.socket)
        assert (status, out) == (UNKNOWN, "")
        assert err.startswith(f"pgrecall-client: no agent answers at {quiet.socket}")
    assert quiet.leftovers() == []


def test_another_server_is_refused(scene: SocketScene) -> None:
    words = ("push", "--socket", scene.socket, "--server", "other", f"pg_wal/{scene.name}")
    status, _, err = run(scene, *words)
    assert status == UNKNOWN
    assert "serves 'main', not 'other'" in err


def test_the_fallback_gets_all_it_needs(quiet: SocketScene) -> None:
    program = quiet.path / "fall back"
    program.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\nexit 64\n')
    program.chmod(0o755)
    words = ("--socket", quiet.socket, "--fallback", str(program), "--config", "/a b")
    status, out, err = run(quiet, "fetch", *words, "--server=s", "-x", cwd="/")
    assert status == 2  # no such option
    status, out, err = run(
        quiet, "fetch", *words, "--server=s", "--log-level", "debug", "--", "-x", "y z"
    )
    assert (status, out.splitlines()) == (
        64,
        [
            *("--config", "/a b", "--server", "s", "--log-level", "debug", "wal", "fetch"),
            *("--no-agent", "--", "-x", "y z"),
        ],
    )
    assert err.startswith("DEBUG pgrecall-client: without an agent: ")
    gone = ("push", "--socket", quiet.socket, "--fallback", "/gone", "x")
    status, _, err = run(quiet, *gone)
    assert status == UNKNOWN
    assert "cannot run the fallback /gone: No such file or directory" in err


SAYINGS = {
    "nothing": [],
    "empty": [b""],
    "garbage": [b"accepted", b"\xff\xfe\x00\x00"],
    "done too short": [b"done"],
    "done without facts": [b"done\0000"],
    "done without text": [b"done\0000\0{}"],
    "no number": [b"accepted", b"done\0x\0{}\0"],
    "a negative number": [b"accepted", b"done\000-1\0{}\0"],
    "not ASCII": [b"done\0\xc2\xb2\0{}\0"],
    "a long number": [b"accepted", b"done\0004294967296\0{}\0"],
    "refused": [b"refused\0because"],
    "refused without a reason": [b"refused"],
    "goes away at work": [b"accepted", b"working"],
}


@pytest.mark.parametrize("verb", ["push", "fetch"])
@pytest.mark.parametrize("says", SAYINGS.values(), ids=list(SAYINGS))
def test_an_agent_that_talks_nonsense_did_nothing(
    quiet: SocketScene, verb: str, says: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For both clients: neither a success nor "absent" can come of it."""
    monkeypatch.chdir(quiet.pgdata)
    words = (f"pg_wal/{quiet.name}",) if verb == "push" else (quiet.name, DESTINATION)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(quiet.socket)
        listening.listen(5)

        def talk() -> None:
            for _ in range(2):
                connected, _ = listening.accept()
                connected.recv(65536)
                for message in says:
                    connected.send(message)
                connected.close()

        thread = threading.Thread(target=talk)
        thread.start()
        status, _, _ = run(quiet, verb, "--socket", quiet.socket, *words)
        with pytest.raises(AgentSilentError):
            if verb == "push":
                asking.ask_push(quiet.socket, "", *words)
            else:
                asking.ask_fetch(quiet.socket, "", *words)
        thread.join(30)
    assert status == UNKNOWN
    assert quiet.leftovers() == []


@pytest.mark.parametrize("number", [64, 126, 200, 255, 999])
def test_no_status_can_be_misread(quiet: SocketScene, number: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(quiet.socket)
        listening.listen(5)

        def talk() -> None:
            for _ in range(2):
                connected, _ = listening.accept()
                connected.recv(65536)
                connected.send(f"done\0{number}\0{{}}\0text".encode())
                connected.close()

        thread = threading.Thread(target=talk)
        thread.start()
        pushed = run(quiet, "push", "--socket", quiet.socket, f"pg_wal/{quiet.name}")
        fetched = run(quiet, "fetch", "--socket", quiet.socket, quiet.name, DESTINATION)
        thread.join(30)
    assert pushed == (1, "", "text")
    assert fetched == (64 if number == 64 else 1, "", "text")


def test_a_signal_ends_it_as_a_failure(quiet: SocketScene) -> None:
    """And what the agent delivers then is tidied up."""
    quiet.push_new(quiet.name, quiet.content)
    service = HeldService(quiet)
    with served(Listener(quiet.socket, service)) as at_work:
        for number in (signal.SIGTERM, signal.SIGKILL):
            words = ("fetch", "--socket", quiet.socket, quiet.name, DESTINATION)
            client = start(quiet, *words)
            assert service.begun.acquire(timeout=30)
            client.send_signal(number)
            client.communicate(timeout=30)
            expected = InterruptedRunError.exit_status if number == signal.SIGTERM else -number
            assert client.returncode == expected
            service.let.release()
        wait_until(lambda: at_work.facts()["abandoned"] == 2)
        wait_until(lambda: quiet.leftovers() == [])


def test_closed_streams_get_nothing_of_it(scene: SocketScene) -> None:
    def close_all() -> None:
        for number in range(3):
            os.close(number)

    words = ("push", "--socket", scene.socket, f"pg_wal/{scene.name}")
    client = start(scene, *words, stdin=None, stdout=None, stderr=None, preexec_fn=close_all)
    assert client.wait(30) == 0
    client = start(
        scene, *words[:3], "nonsense", stdin=None, stdout=None, stderr=None, preexec_fn=close_all
    )
    assert client.wait(30) == 33
