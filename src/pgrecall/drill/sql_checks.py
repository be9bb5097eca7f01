"""The user's own checks: files of SQL, and what they are to answer."""

from __future__ import annotations

import re
import time
from pathlib import Path

import msgspec

from pgrecall.dump.tool_run import Ended, ToolRuns
from pgrecall.errors import SettingsError
from pgrecall.model.drills import CheckOutcome

_DATABASE = re.compile(r"^--\s*database:\s*(.+?)\s*$", re.MULTILINE)
_EXPECTED = ".expected"
_LONGEST = 500


class SqlCheck(msgspec.Struct, frozen=True):
    """One file: its name, database and path; ``expected`` None: it must only work."""

    name: str
    database: str
    path: str
    expected: str | None


def find_checks(places: tuple[str, ...], default_database: str) -> list[SqlCheck]:
    """The checks in files and directories (all their ``*.sql``, by name).

    A first line ``-- database: NAME`` says where a check runs. ``NAME.expected`` beside
    ``NAME.sql`` holds what psql is to print, unaligned and without headings. Raises SettingsError.
    """
    found = []
    for place in places:
        path = Path(place)
        files = sorted(path.glob("*.sql")) if path.is_dir() else [path]
        if not files:
            raise SettingsError(f"{place} holds no *.sql", hint="name a directory of checks")
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
                answer = file.with_suffix(_EXPECTED)
                expected = answer.read_text(encoding="utf-8") if answer.exists() else None
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"the check {file} cannot be read: {error}") from error
            named = _DATABASE.match(text)
            found.append(
                SqlCheck(file.stem, named[1] if named else default_database, str(file), expected)
            )
    return found


def run_check(
    check: SqlCheck, psql: str, variables: dict[str, str], runs: ToolRuns
) -> CheckOutcome:
    """Run one check by psql; ``variables`` are libpq's, for the check's database."""
    began = time.monotonic()
    output = bytearray()
    ended = runs.run(
        [
            psql, "--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--no-password",
            "--set=ON_ERROR_STOP=1", f"--file={check.path}",
        ],
        variables,
        read=lambda stream: output.extend(stream.read()),
    )  # fmt: skip
    message = _problem(check, ended, output.decode(errors="replace"))
    return CheckOutcome(
        name=check.name,
        database=check.database,
        is_passed=not message,
        seconds=round(time.monotonic() - began, 3),
        message=message[:_LONGEST],
    )


def _problem(check: SqlCheck, ended: Ended, output: str) -> str:
    if ended.status != 0:
        return ended.last_words or f"psql ended with status {ended.status}"
    if check.expected is None or output.strip() == check.expected.strip():
        return ""
    return f"expected {check.expected.strip()!r}, got {output.strip()!r}"
