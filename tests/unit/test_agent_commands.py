"""``wal push|fetch`` by way of an agent, ``wal client``, and the commands for PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.agent import client_file
from pgrecall.cli import entry, tree
from pgrecall.errors import ToolMissingError, WalFormatError
from pgrecall.wal.commands import client_archive_command, client_restore_command
from tests.support.json_schema import require_valid
from tests.support.listener_scene import served, short_directory
from tests.support.socket_scene import ABSENT, DESTINATION, SocketScene

# Loaded when an agent answers at a socket that is named; settings and all that is behind them not.
NOT_NEEDED = ("tomllib", "json", "re", "pgrecall.settings", "pgrecall.store", "pgrecall.wal")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SocketScene]:
    with short_directory() as run_directory:
        scene = SocketScene(tmp_path, run_directory)
        (tmp_path / "pgrecall.toml").write_text(
            f'[servers.main]\n[agent]\nsocket = "{scene.socket}"\n[wal]\nretry_seconds = 0\n'
            f'[repositories.one]\nstore = "local"\npath = "{tmp_path / "one"}"\n'
        )
        monkeypatch.chdir(scene.pgdata)
        with served(scene.listener):
            yield scene


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The entry point sets its own."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def config(scene: SocketScene) -> list[str]:
    return ["--config", str(scene.path / "pgrecall.toml")]


def asked(scene: SocketScene) -> int:
    return len(scene.service.asked)


def test_a_socket_that_is_named_needs_no_settings(
    scene: SocketScene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["wal", "push", f"pg_wal/{scene.name}"]
    assert entry.main([*words, "--agent-socket", scene.socket]) == 0
    monkeypatch.setenv("PGRECALL_AGENT_SOCKET", scene.socket)
    assert entry.main(words) == 0
    assert entry.main(["wal", "fetch", scene.name, DESTINATION]) == 0
    assert entry.main(["wal", "fetch", ABSENT, DESTINATION]) == 64
    assert asked(scene) == 4
    assert capsys.readouterr() == ("", "")


def test_what_is_loaded_then(scene: SocketScene) -> None:
    code = (
        "import sys; from pgrecall.cli.entry import main; status = main(sys.argv[1:]);"
        "print(status, *sorted(sys.modules))"
    )
    words = ["wal", "push", f"pg_wal/{scene.name}", f"--agent-socket={scene.socket}"]
    said = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    status, *modules = said.stdout.split()
    assert status == "0"
    assert not set(NOT_NEEDED).intersection(modules)


def test_the_settings_name_the_socket(scene: SocketScene) -> None:
    assert entry.main([*config(scene), "wal", "push", f"pg_wal/{scene.name}"]) == 0
    assert asked(scene) == 1
    # One repository alone is no question for the agent, which serves all of them.
    only = [*config(scene), "--repository", "one"]
    assert entry.main([*only, "wal", "fetch", scene.name, DESTINATION]) == 0
    assert entry.main([*config(scene), "wal", "fetch", "--no-agent", ABSENT, DESTINATION]) == 64
    assert asked(scene) == 1


def test_json_is_the_same_with_and_without(
    scene: SocketScene, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = (
        ["wal", "push", f"pg_wal/{scene.name}"],
        ["wal", "fetch", scene.name, DESTINATION],
        ["wal", "fetch", ABSENT, DESTINATION],
        ["wal", "push", "pg_wal/nonsense-\udcff"],
    )
    scene.push_new(scene.name, scene.content)
    for words in calls:
        said = []
        for more in ([], ["--no-agent"]):
            status = entry.main([*config(scene), *words, "--json", *more])
            captured = capsys.readouterr()
            assert captured.err == ""
            document = json.loads(captured.out)
            require_valid(document)
            said.append((status, document))
        assert said[0] == said[1]
    assert asked(scene) == len(calls)


def test_errors_are_said_once(scene: SocketScene, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for more in ([], ["--no-agent"]):
        status = entry.main([*config(scene), "wal", "push", "pg_wal/nonsense", *more])
        assert status == WalFormatError.exit_status
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[0].count("pgrecall: ") == 1


def test_silence_is_said_only_when_asked_for(
    scene: SocketScene, capsys: pytest.CaptureFixture[str]
) -> None:
    push = [*config(scene), "wal", "push", f"pg_wal/{scene.name}", "--agent-socket", "/gone"]
    assert entry.main(push) == 0
    assert capsys.readouterr().err == ""
    assert entry.main([*push, "--log-level", "debug"]) == 0
    assert "without an agent: the agent at /gone does not answer" in capsys.readouterr().err
    assert asked(scene) == 0


# --- the client ----------------------------------------------------------------------------


def test_the_client_is_installed_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "pgrecall-client"
    assert tree.run(["wal", "client", "--install", str(tmp_path), "--dry-run"]) == 0
    assert not place.exists()
    capsys.readouterr()
    assert tree.run(["wal", "client", "--install", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    require_valid(document)
    assert document["installed"] == str(place)
    assert place.read_bytes() == Path(str(client_file.client_path())).read_bytes()
    assert place.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["pgrecall-client"]
    # What is there already is replaced only when that is wanted.
    assert tree.run(["wal", "client", "--install", str(place)]) == 61
    assert tree.run(["wal", "client", "--install", str(place), "--yes"]) == 0
    assert tree.run(["wal", "client", "--install", f"{tmp_path}/no/such", "--yes"]) == 52


def test_without_a_compiler_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client_file, "NAME", "pgrecall-client-that-was-not-built")
    assert client_file.client_kind() == ""
    assert tree.run(["wal", "client"]) == ToolMissingError.exit_status
    assert tree.run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["client"] == ""


@pytest.mark.parametrize("first", ["/bin/sh", sys.executable])
def test_a_program_that_needs_a_loader_is_dynamic(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_file, "client_path", lambda: os.path.realpath(first))
    assert client_file.client_kind() == "dynamic"


def test_commands_for_postgresql(tmp_path: Path) -> None:
    """Quoted for the shell, percent signs for PostgreSQL; statuses as in fact 3."""
    client = tmp_path / "the client's 100%"
    program = '#!/bin/sh\nfor word in "$@"; do echo "$word"; done\nexit $STATUS\n'
    client.write_text(program)
    client.chmod(0o755)

    def run(command: str, status: int) -> tuple[int, list[str]]:
        parts = command.split("%%")
        parts = [part.replace("%p", "pg wal/X").replace("%f", "X") for part in parts]
        said = subprocess.run(
            ["/bin/sh", "-c", "%".join(parts)],
            env={"STATUS": str(status)},
            capture_output=True,
            text=True,
            check=False,
        )
        return said.returncode, said.stdout.splitlines()

    words = ["--socket", "/s 1", "--server", "m'1"]
    archive = client_archive_command(str(client), "/s 1", "m'1")
    assert run(archive, 0) == (0, ["push", *words, "pg wal/X"])
    for standby, statuses in (
        (False, {0: 0, 64: 1, 1: 200, 74: 200, 143: 200}),
        (True, {0: 0, 64: 1, 1: 1, 74: 1}),
    ):
        restore = client_restore_command(str(client), ["/s 1"], "m'1", standby=standby)
        for status, expected in statuses.items():
            assert run(restore, status) == (expected, ["fetch", *words, "X", "pg wal/X"])
    client.unlink()
    assert run(client_restore_command(str(client), ["s"], "m"), 0)[0] == 200
