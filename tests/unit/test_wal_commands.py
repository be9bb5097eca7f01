"""The commands that PostgreSQL is given, run through /bin/sh as PostgreSQL runs them."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.postgres.configuration import quote_setting
from pgrecall.wal.commands import (
    archive_command,
    client_archive_command,
    client_restore_command,
    restore_command,
)

NASTY = [
    "plain",
    "with space",
    "it's",
    'say "x"',
    "100%p of %f %%",
    "$HOME `id` \\ ; & | > <",
    "ünïcödé-数据",
    "-leading",
    "new\nline",
]

FAKE = """#!{python}
import json, os, sys
with open(os.environ["SEEN"], "w") as file:
    json.dump(sys.argv[1:], file)
sys.exit(int(os.environ.get("STATUS", "0")))
"""


def expand(command: str, file: str, path: str) -> str:
    """As PostgreSQL's replace_percent_placeholders and BuildRestoreCommand do."""
    result, rest = "", iter(command)
    for character in rest:
        if character != "%":
            result += character
            continue
        result += {"%": "%", "f": file, "p": path}[next(rest)]
    return result


def run(command: str, seen: Path, status: int = 0) -> int:
    return subprocess.run(
        ["/bin/sh", "-c", expand(command, "000000010000000000000003", "pg_wal/RECOVERYXLOG")],
        env={"SEEN": str(seen), "STATUS": str(status), "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"},
        check=False,
    ).returncode


def fake_pgrecall(directory: Path) -> Path:
    directory.mkdir()
    program = directory / "pgrecall"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.mark.parametrize("word", NASTY)
def test_words_arrive_as_they_are(tmp_path: Path, word: str) -> None:
    import json

    program = fake_pgrecall(tmp_path / f"d {word}")
    seen = tmp_path / "seen"
    config = f"/etc/{word}/pgrecall.toml"
    chosen = ["--config", config, "--server", word]
    assert run(archive_command([str(program), word], config, word), seen) == 0
    assert json.loads(seen.read_text()) == [
        *[word, *chosen],
        *["wal", "push", "pg_wal/RECOVERYXLOG"],
    ]
    for standby in (True, False):
        assert run(restore_command([str(program)], config, word, standby=standby), seen) == 0
        assert json.loads(seen.read_text()) == [
            *chosen,
            *["wal", "fetch", "--ahead", "000000010000000000000003", "pg_wal/RECOVERYXLOG"],
        ]


@pytest.mark.parametrize("word", NASTY)
def test_the_clients_words_arrive_as_they_are(tmp_path: Path, word: str) -> None:
    import json

    client, seen = fake_pgrecall(tmp_path / f"d {word}"), tmp_path / "seen"
    command = client_archive_command(str(client), f"/run/{word}", word, (f"/x/{word}", "/c"))
    assert run(command, seen) == 0
    options = ["--socket", f"/run/{word}", "--server", word]
    fallback = ["--fallback", f"/x/{word}", "--config", "/c"]
    wanted = ["push", *options, *fallback, "pg_wal/RECOVERYXLOG"]
    assert json.loads(seen.read_text()) == wanted
    assert run(client_archive_command(str(client), f"/run/{word}", word, ()), seen) == 0
    assert json.loads(seen.read_text()) == ["push", *options, "pg_wal/RECOVERYXLOG"]
    sockets = [f"/run/{word}", "second"]
    for own in ((f"/x/{word}", "/c"), ()):
        assert run(client_restore_command(str(client), sockets, word, own), seen) == 0
        asks = ["--socket", f"/run/{word}", "--socket", "second", "--server", word]
        more = [*fallback, "--ahead"] if own else []
        files = ["000000010000000000000003", "pg_wal/RECOVERYXLOG"]
        assert json.loads(seen.read_text()) == ["fetch", *asks, *more, *files]


@pytest.mark.parametrize("status", [1, 2, 4, 33, 63, 64, 65, 125, 126, 127, 130, 143, 200])
def test_what_exit_statuses_become(tmp_path: Path, status: int) -> None:
    """Fact 3: only "proven absent" may look like the end of the archive; on a standby all may."""
    program = [str(fake_pgrecall(tmp_path / "bin"))]
    seen = tmp_path / "seen"
    recovery = restore_command(program, "/c", "main", standby=False)
    assert run(recovery, seen, status) == (1 if status == 64 else 200)
    assert run(restore_command(program, "/c", "main", standby=True), seen, status) == 1
    (client,) = program
    by_client = client_restore_command(client, ["s"], "main", ("/p", "/c"))
    assert run(by_client, seen, status) == (1 if status == 64 else 200)
    assert run(archive_command(program, "/c", "main"), seen, status) == status


def test_a_program_that_is_gone_is_not_the_end_of_the_archive(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    absent = [str(tmp_path / "absent")]
    assert run(restore_command(absent, "/c", "main", standby=False), seen) == 200
    assert run(restore_command(absent, "/c", "main", standby=True), seen) == 1


def unquote(literal: str) -> str:
    """PostgreSQL's DeescapeQuotedString (guc-file.l)."""
    assert literal[0] == literal[-1] == "'"
    body, result, at = literal[1:-1], "", 0
    while at < len(body):
        if body[at] == "\\":
            at += 1
            letters = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
            result += letters.get(body[at], body[at])
        else:
            assert body[at] != "\n"
            if body[at] == "'":
                at += 1
                assert body[at] == "'"
            result += body[at]
        at += 1
    return result


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_quoted_settings_come_back(value: str) -> None:
    assert unquote(quote_setting(value)) == value
