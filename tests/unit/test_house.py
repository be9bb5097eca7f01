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


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Every module of the package, parsed."""
    return {relative(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def test_files_are_short() -> None:
    lengths = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in (*SOURCES, *TESTS)
    }
    assert {path: n for path, n in lengths.items() if n > LONGEST_FILE_LINES} == {}


def test_names_say_something() -> None:
    assert [path for path in SOURCES if {path.stem, path.parent.name} & FORBIDDEN_NAMES] == []


def test_imports_stand_at_the_top(trees: dict[str, ast.Module]) -> None:
    late = {
        (path, function.name)
        for path, tree in trees.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert late == LATE_IMPORTS


def test_modules_and_public_names_are_documented(trees: dict[str, ast.Module]) -> None:
    bare = [path for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)]
    bare += [
        f"{path}: {node.name}"
        for path, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []


def test_one_term_for_each_thing(trees: dict[str, ast.Module]) -> None:
    wrong = {
        f"{path}: {node.name}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and FORBIDDEN_WORDS & set(node.name.lower().split("_"))
    }
    assert wrong == set()


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
