"""The house: sizes, names, imports, and what must stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "pgrecall"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

LONGEST_FILE_LINES = 500
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "manager"}

#: Modules on the way of wal push and wal fetch, and what may not be loaded by them.
LIGHT = (
    "pgrecall.cli.entry",
    "pgrecall.cli.wal_agent",
    "pgrecall.cli.wal_settings",
    "pgrecall.cli.wal_transfer",
    "pgrecall.settings",
)
HEAVY = (
    "asyncio",
    "click",
    "cryptography",
    "dataclasses",
    "inspect",
    "logging",
    "msgspec",
    "numpy",
    "obstore",
    "psycopg",
    "pyrage",
    "rich",
    "subprocess",
)

#: A recovery waits until this one has started: what it can do without.
AHEAD = "pgrecall.cli.wal_ahead_entry"
HEAVY_AHEAD = frozenset(HEAVY) - {"logging"} | {"bz2", "hashlib", "lzma", "secrets", "shutil"}

#: (file, function) that may import inside a function, because the import is an optional extra.
LATE_IMPORTS: set[tuple[str, str]] = set()

#: Words that have another word in docs/glossary.md, as whole words in public names.
FORBIDDEN_WORDS = {"stanza", "master", "slave", "xlog"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=relative)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE_LINES


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_names_say_something(path: Path) -> None:
    assert not {path.stem, path.parent.name} & FORBIDDEN_NAMES


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_stand_at_the_top(path: Path) -> None:
    late = {
        (relative(path), function.name)
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert late <= LATE_IMPORTS


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_modules_and_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), "the module has no docstring"
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_one_term_for_each_thing(path: Path) -> None:
    names = {
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    words = {word for name in names for word in name.lower().split("_")}
    assert not words & FORBIDDEN_WORDS


@pytest.mark.parametrize(
    ("module", "heavy"), [*((module, HEAVY) for module in LIGHT), (AHEAD, HEAVY_AHEAD)]
)
def test_light_modules_stay_light(module: str, heavy: Iterable[str]) -> None:
    code = (
        f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path[:0] = [{str(PACKAGE.parent)!r}]; {code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert loaded & set(heavy) == set()
