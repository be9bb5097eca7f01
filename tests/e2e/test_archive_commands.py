"""``wal push`` and ``wal fetch`` as PostgreSQL, cron and people call them, on their bad days.

No PostgreSQL runs here: the commands see nothing of it but a data directory.
Whatever happens, push ends with 0 (durable) or 1 to 125, and fetch with 0
(delivered whole), 64 (proven absent) or something else (unknown).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.errors import (
    DataDirectoryError,
    DestinationError,
    InterruptedRunError,
    SettingsError,
    StoreAbsentError,
    StoreRefusedError,
    WalFormatError,
)
from pgrecall.wal.commands import restore_command
from tests.support.archive_scene import DESTINATION, Archive

ABSENT = "0000000100000000000000FF"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    assert os.geteuid() != 0, "root may do everything: python -m tests.support.launch pytest ..."
    return Archive(tmp_path)


def failed(finished: subprocess.CompletedProcess[str], status: int = 0) -> None:
    """It failed as both commands may fail, and said so in our words."""
    assert 1 <= finished.returncode <= 125, finished
    assert finished.returncode != 64, finished
    assert status in {0, finished.returncode}, finished
    assert finished.stderr.startswith("pgrecall: "), finished.stderr
    assert "Traceback" not in finished.stderr


@contextlib.contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


# --- as PostgreSQL does ------------------------------------------------------------------


def test_there_and_back(archive: Archive) -> None:
    """Silent, because PostgreSQL logs what is written; twice is once."""
    for _ in range(2):
        pushed = archive.push_it()
        assert (pushed.returncode, pushed.stdout, pushed.stderr) == (0, "", "")
    fetched = archive.fetch_it()
    assert (fetched.returncode, fetched.stdout, fetched.stderr) == (0, "", "")
    assert archive.delivered.read_bytes() == archive.content
    assert archive.delivered.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "name",
    [
        *(ABSENT, "00000002.history", "000000010000000000000003.partial"),
        "000000010000000000000003.00000028.backup",
    ],
)
def test_what_is_not_archived_is_proven_absent(archive: Archive, name: str) -> None:
    archive.delivered.write_bytes(b"older")
    fetched = archive.fetch_it(name)
    assert (fetched.returncode, fetched.stdout, fetched.stderr) == (64, "", "")
    assert archive.delivered.read_bytes() == b"older"


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/", "../global/pg_control", "nonsense", "000000010000000000000003x"),
        *("00000001000000000000000g", "00000001.History", "-x", "ü", "0" * 300, "archive_status"),
        *("\n", "000000010000000000000003\n", "00000000000000000000000.partial"),
    ],
)
def test_names_that_are_nonsense(archive: Archive, name: str) -> None:
    """Nothing that PostgreSQL never asks for is absent."""
    failed(archive.run("wal", "fetch", "--", name, DESTINATION))
    failed(archive.run("wal", "push", "--", f"pg_wal/{name}"))
    assert archive.leftovers() == []


def test_two_pushes_at_once(archive: Archive) -> None:
    racing = [archive.start("wal", "push", f"pg_wal/{archive.name}") for _ in range(3)]
    assert [process.communicate(timeout=60) for process in racing] == [("", "")] * 3
    assert [process.returncode for process in racing] == [0, 0, 0]
    assert archive.fetched(archive.name) == archive.content
    assert list(archive.store().leftovers()) == []


# --- configuration -----------------------------------------------------------------------


def both_fail(archive: Archive, status: int = 0) -> str:
    """Push, fetch of what is there and fetch of what is not: all unknown; what they say."""
    finished = [archive.push_it(), archive.fetch_it(), archive.fetch_it(ABSENT)]
    for one in finished:
        failed(one, status)
    assert not archive.delivered.exists()
    return finished[0].stderr


def test_configuration_that_is_missing_or_cannot_be_read(archive: Archive) -> None:
    assert archive.push_it().returncode == 0
    with mode(archive.config, 0):
        assert "Permission denied" in both_fail(archive, SettingsError.exit_status)
    good = archive.config.read_bytes()
    for bad in (b"[servers.main", b"\xff\xfe", b"[servers.main]\nport = 'x'\n", b"", b"a = 1\n"):
        archive.config.write_bytes(bad)
        both_fail(archive, SettingsError.exit_status)
    archive.config.unlink()
    assert "pgrecall init" in both_fail(archive, SettingsError.exit_status)
    archive.config.mkdir()
    both_fail(archive, SettingsError.exit_status)
    archive.config.rmdir()
    archive.config.write_bytes(good)
    assert archive.fetch_it().returncode == 0


# --- the repository ----------------------------------------------------------------------


def test_a_repository_that_is_not_there_proves_nothing(archive: Archive) -> None:
    assert archive.push_it().returncode == 0
    repository, away = archive.path / "one", archive.path / "away"
    repository.rename(away)
    both_fail(archive)
    repository.mkdir()  # where it was mounted
    both_fail(archive)
    assert list(repository.iterdir()) == []
    repository.rmdir()
    repository.write_bytes(b"a file")
    both_fail(archive)
    repository.unlink()
    repository.symlink_to("nowhere")
    both_fail(archive)
    repository.unlink()
    away.rename(repository)
    with mode(repository, 0):
        both_fail(archive)
    assert archive.fetch_it(ABSENT).returncode == 64


def test_parts_of_the_repository_that_cannot_be_read(archive: Archive) -> None:
    assert archive.push_it().returncode == 0
    for path in (archive.object_path(archive.name).parent, archive.object_path(archive.name)):
        with mode(path, 0):
            failed(archive.fetch_it())
    with mode(archive.object_path(archive.name).parent, 0):
        failed(archive.fetch_it(ABSENT))
    assert archive.leftovers() == []


def test_a_repository_that_is_read_only(archive: Archive) -> None:
    with contextlib.ExitStack() as stack:
        for path in [archive.path / "one", *(archive.path / "one").rglob("*")]:
            stack.enter_context(mode(path, 0o555 if path.is_dir() else 0o444))
        failed(archive.push_it(), StoreRefusedError.exit_status)
        assert archive.fetch_it().returncode == 64
    assert archive.push_it().returncode == 0
    with mode(archive.path / "one", 0o555):
        assert archive.push_it().returncode == 0  # it is there already
        assert archive.fetch_it().returncode == 0


# --- the destination ---------------------------------------------------------------------


_PLAIN = '[wal]\ncompression = "none"'


def smallest_files() -> None:
    """In the child: no file may grow beyond 4 KiB, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_full_disk(archive: Archive) -> None:
    archive.config.write_text(archive.config.read_text().replace("[wal]", _PLAIN))
    failed(archive.push_it(preexec_fn=smallest_files))
    assert not archive.is_archived
    assert list(archive.store().leftovers()) == []
    assert archive.push_it().returncode == 0
    failed(archive.fetch_it(preexec_fn=smallest_files), DestinationError.exit_status)
    assert archive.leftovers() == []


def test_a_destination_that_cannot_be_written(archive: Archive) -> None:
    assert archive.push_it().returncode == 0
    with mode(archive.pgdata / "pg_wal", 0o555):
        failed(archive.fetch_it(), DestinationError.exit_status)
    for destination in ("nowhere/RECOVERYXLOG", "pg_wal", "", ".", f"pg_wal/{archive.name}/x"):
        failed(archive.run("wal", "fetch", archive.name, destination))
    assert archive.leftovers() == []


def test_a_segment_that_cannot_be_read(archive: Archive) -> None:
    path = archive.pgdata / "pg_wal" / archive.name
    with mode(path, 0):
        failed(archive.push_it(), DataDirectoryError.exit_status)
    path.write_bytes(archive.content[:-1])
    failed(archive.push_it(), WalFormatError.exit_status)
    path.write_bytes(b"")
    failed(archive.push_it(), WalFormatError.exit_status)
    path.unlink()
    failed(archive.push_it(), DataDirectoryError.exit_status)
    os.mkfifo(path)
    failed(archive.push_it())
    assert not archive.is_archived


# --- being ended -------------------------------------------------------------------------


@contextlib.contextmanager
def held(archive: Archive, point: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The program, standing at a point."""
    directory = archive.path / "held"
    directory.mkdir()
    process = archive.start(*words, env={"PGRECALL_FAULT_PAUSE": f"{point}:{directory}"})
    try:
        deadline = time.monotonic() + 60
        while not (directory / point).exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        (directory / point).unlink(missing_ok=True)
        directory.rmdir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("point", ["push.checked", "wal-object.piece", "wal-object.commit"])
def test_a_push_that_is_asked_to_end(archive: Archive, number: signal.Signals, point: str) -> None:
    """Not 143, which PostgreSQL takes for its own shutdown, and no half of an object."""
    with held(archive, point, "wal", "push", f"pg_wal/{archive.name}") as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == InterruptedRunError.exit_status, err
        assert number.name in err
    assert not archive.is_archived
    assert list(archive.store().leftovers()) == []
    assert archive.push_it().returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_fetch_that_is_ended_delivers_nothing(archive: Archive, number: signal.Signals) -> None:
    assert archive.push_it().returncode == 0
    with held(archive, "fetch.written", "wal", "fetch", archive.name, DESTINATION) as process:
        process.send_signal(number)
        process.communicate(timeout=60)
        is_killed = number == signal.SIGKILL
        wanted = -signal.SIGKILL if is_killed else InterruptedRunError.exit_status
        assert process.returncode == wanted
    assert not archive.delivered.exists()
    # What a killed process leaves is no WAL file's name, so PostgreSQL does not take it for one.
    assert [".pgrecall-" in name for name in archive.leftovers()] == [True] * is_killed
    assert archive.fetch_it().returncode == 0
    assert archive.delivered.read_bytes() == archive.content


def test_a_push_beside_one_that_hangs(archive: Archive) -> None:
    with held(archive, "wal-object.commit", "wal", "push", f"pg_wal/{archive.name}") as process:
        assert archive.push_it().returncode == 0
        (archive.path / "held" / "wal-object.commit").unlink()
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert archive.fetched(archive.name) == archive.content


# --- Python falls over -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "breaks"),
    [
        (module, breaks)
        for module in ("tomllib", "blake3", "json", "hashlib", "google_crc32c")
        for breaks in ("raise ImportError('no')", "1 / 0", "raise SystemExit(0)")
    ]
    # Before the first line of ours, the status is Python's own.
    + [(module, "1 / 0") for module in ("pgrecall", "encodings")],
)
def test_modules_that_are_broken(archive: Archive, module: str, breaks: str) -> None:
    """A crash is neither success nor "absent", and through the generated command it is 200."""
    broken = archive.path / "broken"
    broken.mkdir()
    (broken / f"{module}.py").write_text(breaks + "\n")
    environment = {"PYTHONPATH": str(broken)}
    assert archive.push_it().returncode == 0
    pushed, fetched = archive.push_it(env=environment), archive.fetch_it(env=environment)
    is_used = "broken" in pushed.stderr + fetched.stderr or pushed.returncode != 0
    if is_used:
        assert 1 <= pushed.returncode <= 125
        assert fetched.returncode not in {0, 64}
        command = restore_command(pgrecall_command(), str(archive.config), "main", standby=False)
        shell = command.replace("%f", archive.name).replace("%p", DESTINATION)
        through = subprocess.run(
            ["/bin/sh", "-c", shell],
            cwd=archive.pgdata,
            env={**archive.environment, **environment},
            capture_output=True,
            check=False,
        )
        assert through.returncode == 200
        assert not archive.delivered.exists()
    else:
        assert module in {"hashlib", "json", "google_crc32c"}, "this module is not used"


# --- surroundings ------------------------------------------------------------------------


def shell(archive: Archive, redirection: str, words: str) -> int:
    """Exit status of the program with streams as the shell is told."""
    program = " ".join(f"'{word}'" for word in [*pgrecall_command(), "--config"])
    return subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {program} '{archive.config}' {words} {redirection}"],
        cwd=archive.pgdata,
        env=archive.environment,
        check=False,
    ).returncode


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "</dev/full"])
def test_closed_streams(archive: Archive, redirection: str) -> None:
    push, fetch = f"wal push pg_wal/{archive.name}", f"wal fetch {archive.name} {DESTINATION}"
    for words in (push, f"{push} --json", fetch, f"{fetch} --json"):
        assert shell(archive, redirection, words) == 0, words
    assert archive.delivered.read_bytes() == archive.content
    assert archive.fetched(archive.name) == archive.content
    assert shell(archive, redirection, f"wal fetch {ABSENT} {DESTINATION}") == 64
    failing = shell(archive, redirection, "wal push pg_wal/nonsense")
    assert failing == WalFormatError.exit_status


@pytest.mark.parametrize("redirection", [">/dev/full", "2>/dev/full", "2>&1 | true"])
def test_streams_that_take_nothing(archive: Archive, redirection: str) -> None:
    """Silent success needs no stream; what cannot be said is a failure, never "absent"."""
    assert shell(archive, redirection, f"wal push pg_wal/{archive.name}") == 0
    assert shell(archive, redirection, f"wal fetch {archive.name} {DESTINATION}") == 0
    assert shell(archive, redirection, f"wal fetch {ABSENT} {DESTINATION}") == 64
    for words in ("wal push pg_wal/nonsense", "wal fetch nonsense there"):
        status = shell(archive, redirection, words)
        assert 1 <= status <= 125
        assert status != 64


def test_a_working_directory_that_is_gone(archive: Archive, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = pgrecall_command()
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    words = ["/bin/sh", "-c", script, "sh", str(gone), *program]
    segment = str(archive.pgdata / "pg_wal" / archive.name)
    finished = archive.run("wal", "push", segment, program=words)
    assert finished.returncode == 0, finished
    gone.mkdir()
    finished = archive.run("wal", "fetch", archive.name, str(archive.delivered), program=words)
    assert finished.returncode == 0, finished
    gone.mkdir()
    failed(archive.run("wal", "push", f"pg_wal/{archive.name}", program=words))
    gone.mkdir()
    with_search = subprocess.run(
        [*words, "wal", "push", segment],
        env=archive.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    failed(with_search, SettingsError.exit_status)


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX", "LANG": "de_DE.ISO-8859-1"},
        {"LC_ALL": "C.UTF-8"},
    ],
    ids=["C", "POSIX", "UTF-8"],
)
def test_locales(tmp_path: Path, environment: Mapping[str, str]) -> None:
    directory = tmp_path / 'Größe "100%" o\'clock'
    directory.mkdir()
    archive = Archive(directory)
    assert archive.push_it(env=environment).returncode == 0
    assert archive.is_archived
    assert archive.fetch_it(env=environment).returncode == 0
    archive.delivered.unlink()
    told = archive.run("wal", "push", "pg_wal/Größe", "--json", env=environment)
    assert told.returncode == WalFormatError.exit_status
    assert "Größe" in json.loads(told.stdout)["error"]["message"]
    odd = os.fsdecode(b"pg_wal/\xff")
    told = archive.run("wal", "push", odd, "--json", env=environment)
    assert told.returncode == WalFormatError.exit_status
    assert json.loads(told.stdout)["error"]["code"] == "wal-format"
    archive.path.joinpath("one").rename(archive.path / "away")
    failed(archive.push_it(env=environment), StoreAbsentError.exit_status)
    listed = archive.run("backups", "list", env=environment)
    failed(listed, StoreAbsentError.exit_status)


def test_a_locale_in_which_names_cannot_be_written(archive: Archive) -> None:
    """Python told to believe that everything is ASCII: failures stay failures, and JSON is JSON."""
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert archive.push_it(env=environment).returncode == 0
    told = archive.run("wal", "push", "pg_wal/Größe", "--json", env=environment)
    assert told.returncode == WalFormatError.exit_status
    assert json.loads(told.stdout)["error"]["code"] == "wal-format"
    failed(archive.run("wal", "fetch", archive.name, "pg_wal/Größe/x", env=environment))
    status = archive.run("version", "--json", env=environment)
    assert json.loads(status.stdout)["schema"] == "pgrecall/version/1"


def test_modes_are_ours_whatever_the_umask(archive: Archive) -> None:
    assert archive.push_it(umask=0o077).returncode == 0
    assert archive.fetch_it(umask=0o077).returncode == 0
    assert archive.delivered.stat().st_mode & 0o777 == 0o600
    assert archive.delivered.read_bytes() == archive.content
    assert archive.fetched(archive.name) == archive.content


@pytest.mark.parametrize("search", [["env", "-i"], ["env", "-u", "HOME"]], ids=" ".join)
def test_an_empty_environment(archive: Archive, search: list[str]) -> None:
    program = [*search, *pgrecall_command()]
    assert archive.push_it(program=program).returncode == 0
    assert archive.fetch_it(program=program).returncode == 0
    # Without --config, the files that are looked for need a home.
    finished = subprocess.run(
        [*program, "wal", "push", "x"],
        cwd=archive.pgdata,
        capture_output=True,
        text=True,
        check=False,
    )
    failed(finished, SettingsError.exit_status)


def test_through_a_symbolic_link(archive: Archive) -> None:
    script = Path(sys.executable).with_name("pgrecall")
    assert script.is_file()
    links = archive.path / "bin"
    links.mkdir()
    (links / "first").symlink_to(script)
    (links / "pgrecall").symlink_to("first")
    assert archive.push_it(program=[str(links / "pgrecall")]).returncode == 0
    archive.environment["PATH"] = f"{links}:/usr/bin:/bin"
    assert archive.fetch_it(program=["pgrecall"]).returncode == 0
    assert archive.delivered.read_bytes() == archive.content
