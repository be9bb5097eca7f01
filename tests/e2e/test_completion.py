"""``pgrecall completion``: what shells offer with the script that it prints."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pgrecall.app.invocation_path import pgrecall_command


def completed(words: str, tmp_path: Path) -> list[str]:
    """What bash offers for a line, with the script loaded as the help says."""
    program = " ".join(f"'{word}'" for word in pgrecall_command())
    (tmp_path / "pgrecall").write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    (tmp_path / "pgrecall").chmod(0o755)
    script = """
        eval "$(pgrecall completion bash)" || exit 9
        complete -p pgrecall | grep -q -- '-F _pgrecall_completion' || exit 8
        read -ra COMP_WORDS <<< "$1"
        [[ $1 == *' ' ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _pgrecall_completion pgrecall "${COMP_WORDS[COMP_CWORD]}" x
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    finished = subprocess.run(
        ["/bin/bash", "--norc", "-c", script, "bash", words],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished
    assert finished.stderr == ""
    return finished.stdout.split()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("pgrecall back", ["backup", "backups"]),
        ("pgrecall backups ", ["list", "show"]),
        ("pgrecall wal p", ["push"]),
        ("pgrecall restore --to-t", ["--to-time"]),
        ("pgrecall restore --action ", ["promote", "pause", "shutdown"]),
        ("pgrecall --log-level d", ["debug"]),
        ("pgrecall completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_bash_completes(words: str, wanted: list[str], tmp_path: Path) -> None:
    assert completed(words, tmp_path) == wanted


@pytest.mark.parametrize(
    ("shell_name", "environment"),
    [
        ("zsh", {"_PGRECALL_COMPLETE": "zsh_complete", "COMP_WORDS": "pgrecall backups "}),
        ("fish", {"_PGRECALL_COMPLETE": "fish_complete", "COMP_WORDS": "pgrecall backups "}),
    ],
)
def test_other_shells_are_answered(shell_name: str, environment: dict[str, str]) -> None:
    """The answers that the scripts ask for; the scripts name them."""
    script = subprocess.run(
        [*pgrecall_command(), "completion", shell_name], capture_output=True, text=True, check=True
    ).stdout
    assert f"_PGRECALL_COMPLETE={environment['_PGRECALL_COMPLETE']}" in script
    cword = "" if shell_name == "fish" else "2"
    answer = subprocess.run(
        pgrecall_command(),
        env={**os.environ, **environment, "COMP_CWORD": cword},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "list" in answer
    assert "show" in answer
    assert "push" not in answer
