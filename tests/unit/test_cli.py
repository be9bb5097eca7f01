"""The command line: what is said, where, and with which exit status."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pgrecall.cli import entry, tree
from pgrecall.cli.entry import command_words
from pgrecall.cli.frame import FramedCommand, LazyCommand, LazyGroup
from pgrecall.errors import EXIT_PROVEN_ABSENT, InterruptedRunError, SettingsError, UsageError

SEGMENT = "000000010000000000000001"


def run(
    words: Sequence[str], directory: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run pgrecall in ``directory`` without any configuration of this user."""
    base = {key: value for key, value in os.environ.items() if not key.startswith("PGRECALL_")}
    base |= {"XDG_CONFIG_HOME": str(directory), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "pgrecall", *words],
        cwd=directory,
        env={**base, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def every_command() -> list[tuple[str, ...]]:
    def walk(table: dict[str, LazyCommand | LazyGroup], path: tuple[str, ...]) -> None:
        for name, item in table.items():
            found.append((*path, name))
            if isinstance(item, LazyGroup):
                walk(dict(item.table), (*path, name))

    found: list[tuple[str, ...]] = []
    walk(dict(tree.COMMANDS), ())
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_help_teaches_by_example(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tree.run([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--config" in text
    assert "--json" in text
    command = resolve(words)
    if isinstance(command, FramedCommand):
        assert "Examples:" in text
        assert any("pgrecall " + " ".join(words) in line.command for line in command.examples)
        assert command.help
        assert ("--dry-run" in text) == command.changes


def resolve(words: tuple[str, ...]) -> object:
    command: object = tree.root
    for word in words:
        assert isinstance(command, LazyGroup)
        command = command.get_command(None, word)  # type: ignore[arg-type]
    return command


def test_help_of_the_root_imports_no_command(tmp_path: Path) -> None:
    code = (
        "import sys; from pgrecall.cli import tree; tree.run(['--help']);"
        "print([m for m in sys.modules if m.startswith('pgrecall.cli.commands.')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_json_before_and_after_the_command(tmp_path: Path) -> None:
    for words in (["--json", "version"], ["version", "--json"]):
        document = json.loads(run(words, tmp_path).stdout)
        assert document["schema"] == "pgrecall/version/1"


@pytest.mark.parametrize(
    "words",
    [["bakup"], ["version", "--bogus"], ["wal", "psh"], ["completion", "tcsh"], ["wal", "push"]],
    ids=" ".join,
)
def test_usage_errors(words: list[str], tmp_path: Path) -> None:
    plain = run(words, tmp_path)
    assert plain.returncode == UsageError.exit_status
    assert plain.stderr.startswith("pgrecall: ")
    assert "\nHINT: " in plain.stderr
    assert plain.stdout == ""
    as_json = run([*words, "--json"], tmp_path)
    assert as_json.returncode == UsageError.exit_status
    error = json.loads(as_json.stdout)["error"]
    assert (error["code"], error["exit_status"]) == ("usage", UsageError.exit_status)
    assert error["message"]
    assert as_json.stderr == ""


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert tree.run(["bakup"]) == 2
    assert "did you mean 'backup'?" in capsys.readouterr().err


def test_dry_run_before_a_command_without_one_is_refused() -> None:
    assert tree.run(["--dry-run", "version"]) == UsageError.exit_status


def test_a_missing_configuration_is_told(tmp_path: Path) -> None:
    result = run(["backups", "list"], tmp_path)
    assert result.returncode == SettingsError.exit_status
    assert str(tmp_path / "pgrecall.toml") in result.stderr


def test_a_bug_is_called_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(tree.root, "main", fail)
    assert tree.run(["version"]) == 1
    assert "this is a bug in pgrecall: ZeroDivisionError: oops" in capsys.readouterr().err


def test_a_signal_ends_a_run_as_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def receive(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()  # not reached: the handler raises

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(tree.root, "main", receive)
    assert tree.run(["backup"]) == InterruptedRunError.exit_status
    assert "ended by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "pgrecall", "version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert result.stderr == ""
    assert result.returncode == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tree.run(["completion", shell]) == 0
    assert "_PGRECALL_COMPLETE" in capsys.readouterr().out


def test_completion_offers_commands(tmp_path: Path) -> None:
    result = run(
        [], tmp_path, _PGRECALL_COMPLETE="bash_complete", COMP_WORDS="pgrecall ba", COMP_CWORD="1"
    )
    assert result.stdout.splitlines() == ["plain,backup", "plain,backups"]


def test_the_words_of_a_command_are_found_among_options() -> None:
    assert command_words(["--config", "wal", "--json", "wal", "push", "x"]) == ("wal", "push")
    assert command_words(["--config=x", "wal"]) == ("wal",)
    assert command_words(["wal", "--server", "a b", "fetch"]) == ("wal", "fetch")


# --- what PostgreSQL reads as orders -------------------------------------------


class Module:
    """Stands for wal_transfer: returns or raises what a test wants."""

    def __init__(self, outcome: object) -> None:
        self.outcome = outcome

    def run(self, words: Sequence[str]) -> object:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


OUTCOMES = [
    1,
    2,
    125,
    126,
    200,
    255,
    -1,
    None,
    "",
    True,
    EXIT_PROVEN_ABSENT,
    ImportError("no module"),
    MemoryError(),
    KeyboardInterrupt(),
    SystemExit(0),
    SystemExit(EXIT_PROVEN_ABSENT),
    SystemExit(200),
    InterruptedRunError("SIGTERM"),
    BrokenPipeError(),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=repr)
@pytest.mark.parametrize("verb", ["push", "fetch"])
def test_no_outcome_can_be_misread(
    verb: str, outcome: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    with monkeypatch.context() as patched:
        patched.setattr(entry.importlib, "import_module", lambda name: Module(outcome))
        with monkeypatch.context() as streams:
            streams.setattr(sys, "stdout", sys.stdout)
            status = entry.main(["wal", verb, SEGMENT, "x"])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if verb == "fetch" and outcome == EXIT_PROVEN_ABSENT and not isinstance(outcome, bool):
        assert status == EXIT_PROVEN_ABSENT
    else:
        assert 1 <= status <= 125
        assert status != EXIT_PROVEN_ABSENT


def test_a_success_is_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = [
        (number, signal.getsignal(number))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    ]
    monkeypatch.setattr(entry.importlib, "import_module", lambda name: Module(0))
    assert entry.main(["wal", "push", "x"]) == 0
    for number, handler in handlers:
        signal.signal(number, handler)


def test_a_broken_installation_is_neither_absent_nor_success(tmp_path: Path) -> None:
    shadow = tmp_path / "msgspec.py"
    shadow.write_text("raise ImportError('broken')\n")
    broken = tmp_path / "tomllib.py"
    broken.write_text("raise ImportError('broken')\n")
    for words in (["wal", "fetch", SEGMENT, "x"], ["wal", "push", SEGMENT]):
        result = subprocess.run(
            [sys.executable, "-m", "pgrecall", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        assert "ImportError: broken" in result.stderr


def test_an_interruption_while_loading_is_no_crash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry.importlib, "import_module", interrupt)
    assert entry.main(["version"]) == InterruptedRunError.exit_status
    assert "nothing was begun" in capsys.readouterr().err
