"""Whether a directory of plain dumps is whole: sums, ends of scripts, tables of contents."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pgrecall.errors import ToolMissingError, UsageError
from pgrecall.model.findings import Finding, Severity
from pgrecall.postgres.client_tools import find_client_tools
from pgrecall.postgres.connection import NEWEST_MAJOR, OLDEST_MAJOR
from pgrecall.settings import ServerSettings

#: Behind the name of a file: the file with its sum, as sha256sum --check takes it.
SUM_ENDING = ".sha256"
_SUMS = "SHA256SUMS"
_MANIFEST = "backup-manifest.yaml"
# What pg_dump and pg_dumpall write last (pg_backup_archiver.c, pg_dumpall.c).
_ENDS = (b"-- PostgreSQL database dump complete", b"-- PostgreSQL database cluster dump complete")
# Parts of the guide's layout that hold other files; their sums are proven all the same.
_NO_DUMPS = frozenset({"basebackup", "config", "metadata", "slots", "wal"})
_TAIL_BYTES = 1024
_PIECE_BYTES = 1 << 20


def verify_directory(server: ServerSettings, directory: Path) -> list[Finding]:
    """Findings on everything in ``directory``, good ones too; reads all of it.

    Raises UsageError when it is no directory, ToolMissingError without pg_restore.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is no directory", hint="name one with dumps in it")
    findings = list(_sums(directory))
    if not (directory / _MANIFEST).is_file():
        findings.append(_finding("warn", "manifest-missing", _MANIFEST, "is not there"))
    dumps = list(_dumps(server, directory))
    if not dumps:
        findings.append(_finding("fail", "no-dump", str(directory), "holds no dump at all"))
    return findings + dumps


def _sums(directory: Path) -> Iterator[Finding]:
    """Every file that a list of sums names, SHA256SUMS or one beside a single file."""
    lists = [directory / _SUMS] if (directory / _SUMS).is_file() else []
    lists += sorted(directory.rglob(f"*{SUM_ENDING}"))
    if not lists:
        yield _finding("warn", "sums-missing", _SUMS, "is not there: changed bytes go unnoticed")
        return
    listed: set[Path] = set()
    for path in lists:
        for line in path.read_text("utf-8", "surrogateescape").splitlines():
            wanted, _, name = line.partition("  ")
            file = path.parent / name
            listed.add(file)
            shown = str(file.relative_to(directory))
            if not file.is_file():
                yield _finding("fail", "file-missing", shown, f"is in {path.name}, and not there")
            elif file_digest(file) != wanted:
                yield _finding(
                    "fail", "file-damaged", shown, f"does not have its sum in {path.name}"
                )
    yield _finding("ok", "sums", str(directory), f"{len(listed)} file(s) were held to their sums")
    found = {one for one in directory.rglob("*") if one.is_file()}
    for one in sorted(found - listed - set(lists)):
        yield _finding("warn", "file-not-listed", str(one.relative_to(directory)), "has no sum")


def _dumps(server: ServerSettings, directory: Path) -> Iterator[Finding]:
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if name.partition("/")[0] in _NO_DUMPS:
            continue
        is_archive = path.suffix in (".dump", ".tar") and path.is_file()
        if path.suffix == ".sql" and path.is_file():
            yield _script(path, name)
        elif is_archive or (path / "toc.dat").is_file():
            yield _archive(server, path, name)


def _script(path: Path, name: str) -> Finding:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        tail = file.read()
    if any(end in tail for end in _ENDS):
        return _finding("ok", "script", name, "has its end")
    return _finding("fail", "script-cut", name, "lacks the last line that pg_dump writes")


def _archive(server: ServerSettings, path: Path, name: str) -> Finding:
    finished = subprocess.run(
        [_pg_restore(server), "--list", "--", str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if finished.returncode != 0:
        said = finished.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return _finding("fail", "archive-damaged", name, "cannot be read: " + " ".join(said))
    entries = sum(not line.startswith(b";") for line in finished.stdout.splitlines())
    return _finding("ok", "archive", name, f"has a table of contents of {entries} entries")


def _pg_restore(server: ServerSettings) -> str:
    """The newest there is: it reads what all older ones wrote."""
    for major in range(NEWEST_MAJOR, OLDEST_MAJOR - 1, -1):
        try:
            return find_client_tools(major, configured=server.bin_directory).program("pg_restore")
        except ToolMissingError:
            continue
    raise ToolMissingError("there is no pg_restore", hint="install PostgreSQL's client programs")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as sha256sum writes it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _finding(severity: Severity, code: str, subject: str, message: str) -> Finding:
    hint = "make the backup again" if severity == "fail" else ""
    return Finding(severity=severity, code=code, subject=subject, message=message, hint=hint)
