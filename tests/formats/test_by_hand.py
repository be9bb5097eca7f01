"""The programs of the documents restore frozen repositories without pgrecall: incremental backups,
encrypted ones, and a repository that has lost its ``repository.json``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.formats.test_frozen import FROZEN, KINDS, Frozen

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"


def programs(document: str) -> list[str]:
    """The Python programs that a page prints, in order."""
    text = (DOCUMENTS / document).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def by_hand(program: str, *words: object) -> bytes:
    """What a program writes; it must end well."""
    ended = subprocess.run(
        [sys.executable, "-I", "-c", program, *map(str, words)], capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


def decrypted(frozen: Frozen) -> Path:
    """The backups of an encrypted repository, every object opened by the programs of the page."""
    read_object, read_keys = programs("encryption.md")
    keys = frozen.directory / "keys"
    keys.write_bytes(by_hand(read_keys, frozen.directory / "passphrase", frozen.repository))
    plain = frozen.directory / "plain"
    for path in (frozen.repository / "servers/main/backups").rglob("*"):
        if path.is_file():
            name = path.relative_to(frozen.repository)
            (plain / name).parent.mkdir(parents=True, exist_ok=True)
            (plain / name).write_bytes(by_hand(read_object, keys, frozen.repository, name))
    return plain


@pytest.mark.parametrize("kind", KINDS)
def test_an_incremental_backup_is_restored_by_hand(kind: str, tmp_path: Path) -> None:
    frozen = Frozen(FROZEN[-1], kind, tmp_path)
    newest = frozen.expected["backups"][-1]
    expected = tmp_path / "expected"
    frozen.run("restore", "--backup", newest, "--target-dir", str(expected), "--immediate", "--yes")
    repository = frozen.repository if kind == "plain" else decrypted(frozen)
    (recipe,) = programs("format.md")
    target = tmp_path / "by-hand"
    target.mkdir()
    by_hand(recipe, repository / "servers/main/backups" / newest, target)
    compared = 0
    for path in target.rglob("*"):
        name = path.relative_to(target)
        if path.is_file() and name.parts[0] in {"base", "global", "pg_xact", "pg_multixact"}:
            assert path.read_bytes() == (expected / name).read_bytes(), name
            compared += 1
    assert compared > 200


def test_repository_json_is_made_anew_by_hand(tmp_path: Path) -> None:
    frozen = Frozen(FROZEN[-1], "plain", tmp_path)
    lost = frozen.repository / "repository.json"
    before = json.loads(lost.read_text(encoding="utf-8"))
    lost.unlink()
    (recipe,) = programs("repair.md")
    complete = "servers/main/backups/{}/complete.json".format(frozen.expected["backups"][0])
    lost.write_bytes(by_hand(recipe, frozen.repository / complete))
    made = json.loads(lost.read_text(encoding="utf-8"))
    assert {**made, "created_at": "", "digest": ""} == {**before, "created_at": "", "digest": ""}
    assert frozen.run("verify")["result"] == "ok"
