"""Runtimes that another user can execute, and processes that are ended."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pgrecall.errors import PostgresRightsError
from pgrecall.system import unprivileged
from pgrecall.system.processes import end_processes, is_running, processes_under
from pgrecall.system.runtime_copy import (
    copy_environment,
    copy_tree,
    point_libraries_to_origin,
)
from pgrecall.system.unprivileged import choose_account, run_unprivileged

SHOW = (
    "import sys, pgrecall, psycopg, msgspec; print(sys.base_prefix, sys.prefix, pgrecall.__file__)"
)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runtime")
    return copy_environment(directory, with_interpreter=True).parent


def test_a_copy_runs_without_any_environment_variable(copied: Path) -> None:
    root = copied.parents[1]
    argv = [str(copied / "python"), "-c", SHOW]
    finished = subprocess.run(argv, env={}, capture_output=True, text=True, check=True)
    places = finished.stdout.split()
    assert len(places) == 3
    assert all(Path(place).is_relative_to(root) for place in places), places


def test_a_copy_uses_its_own_shared_library(copied: Path) -> None:
    code = "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libpython' in line})"
    argv = [str(copied / "python"), "-c", code]
    finished = subprocess.run(argv, env={}, capture_output=True, text=True, check=True)
    assert all(
        Path(place).is_relative_to(copied.parents[1]) for place in finished.stdout.split()
    ), finished.stdout


def test_console_scripts_of_a_copy_use_its_interpreter(copied: Path) -> None:
    first = (copied / "pgrecall").read_text().splitlines()[0]
    assert first == f"#!{copied / 'python'}"
    if (copied / "pytest").exists():
        finished = subprocess.run(
            [str(copied / "pytest"), "--version"],
            env={},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "pytest" in finished.stdout + finished.stderr


def test_a_copied_tree_is_readable_by_all_and_leaves_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True, mode=0o700)
    for name, mode in (("plain", 0o644), ("secretive", 0o600), ("sub/program", 0o700)):
        (source / name).write_text(name)
        (source / name).chmod(mode)
    (source / "left").mkdir()
    (source / "link").symlink_to("plain")
    copy_tree(source, tmp_path / "copy", lambda path: path.name == "left")
    modes = {
        str(path.relative_to(tmp_path / "copy")): stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "copy").rglob("*")
    }
    assert modes == {
        "plain": 0o644,
        "secretive": 0o644,
        "sub": 0o755,
        "sub/program": 0o755,
        "link": 0o644,
    }
    assert (tmp_path / "copy" / "plain").samefile(source / "plain")
    assert not (tmp_path / "copy" / "secretive").samefile(source / "secretive")
    assert stat.S_IMODE((source / "secretive").stat().st_mode) == 0o600


def test_a_file_that_is_no_program_is_left_unchanged(tmp_path: Path) -> None:
    for content in (b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100)):
        path = tmp_path / "file"
        path.write_bytes(content)
        assert not point_libraries_to_origin(path)
        assert path.read_bytes() == content


@pytest.mark.skipif(os.geteuid() == 0, reason="as root a copy is made, which is seen elsewhere")
def test_an_ordinary_user_just_runs(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "open('out', 'w').write(os.environ['PGRECALL_COPY_HERE'] + os.environ['X'])\n"
        "sys.exit(7)\n"
    )
    status = run_unprivileged(
        ["-c", code], copies={"here": tmp_path}, working_directory="here", environment={"X": "y"}
    )
    assert status == 7
    assert (tmp_path / "out").read_text() == f"{tmp_path}y"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(os.geteuid() == 0, reason="as root a copy is made, which is seen elsewhere")
def test_a_signal_reaches_the_program_once(tmp_path: Path, number: int) -> None:
    """The program answers the signal with a status of its own, which must come back."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = (
        "import signal, sys\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{number:d}])\n"
        f"open({str(fifo)!r}, 'w').close()\n"
        f"signal.sigwait([{number:d}])\n"
        "sys.exit(41 + len(signal.sigpending()))\n"
    )

    def send() -> None:
        fifo.read_bytes()  # the program has opened its end: it is ready
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert run_unprivileged(["-c", code]) == 41
    sender.join(10)


def test_a_program_that_dies_of_a_signal_says_so() -> None:
    code = "import os; os.kill(os.getpid(), 9)"
    assert run_unprivileged(["-c", code]) == 128 + 9


def test_without_a_user_to_become_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unprivileged, "_USERS", ("no-such-user-here",))
    monkeypatch.delenv("SUDO_UID", raising=False)
    with pytest.raises(PostgresRightsError) as caught:
        choose_account()
    assert "useradd" in caught.value.hint


def test_who_called_sudo_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "65534")
    assert choose_account().uid == 65534
    monkeypatch.setenv("SUDO_UID", "0")
    assert choose_account().uid != 0


def test_processes_under_a_directory_are_found_and_ended(tmp_path: Path) -> None:
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); "
    stubborn += "signal.pause()"
    with subprocess.Popen(
        [sys.executable, "-c", stubborn], cwd=tmp_path, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert processes_under(tmp_path) == [child.pid]
        assert processes_under(tmp_path / "elsewhere") == []
        assert is_running(child.pid)
        end_processes([child.pid], patience_seconds=0.2)
        # A zombie until it is waited for, which does not count as running.
        assert not is_running(child.pid)
        assert child.wait() == -signal.SIGKILL
    assert not is_running(child.pid)
