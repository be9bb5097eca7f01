"""What waits in pg_wal: files that PostgreSQL declared ready, in its own order.

``pg_wal/archive_status/NAME.ready`` is made when NAME is whole, and renamed to
``NAME.done`` when archive_command has succeeded. PostgreSQL archives history
files first, then by name (ready_file_comparator in pgarch.c).
"""

from __future__ import annotations

import os

from pgrecall.errors import DataDirectoryError, WalFormatError
from pgrecall.model.wal_files import HISTORY, SEGMENT, WalFile

_READY = ".ready"


class FileIdentity:
    """The very file: its name, device, inode, size and time of change (nanoseconds).

    PostgreSQL recycles segments under other names; equal identities are one content.
    """

    __slots__ = ("facts",)

    def __init__(self, name: str, found: os.stat_result) -> None:
        self.facts = (name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileIdentity) and other.facts == self.facts

    def __hash__(self) -> int:
        return hash(self.facts)


def identity_of(path: str) -> FileIdentity:
    """The identity of the file at ``path``; raises DataDirectoryError when it cannot be told."""
    try:
        return FileIdentity(os.path.basename(path), os.stat(path))
    except OSError as error:
        raise DataDirectoryError(
            f"cannot read {path}: {error.strerror}",
            hint="archive_command runs as the server's user, in PGDATA, with %p as path",
        ) from error


def is_gone(path: str, identity: FileIdentity) -> bool:
    """Whether that very file is there no more, and nothing waits for it to be archived.

    PostgreSQL has archived it by a call of its own since it was looked at, and has
    recycled it. A file that cannot be looked at is not called gone.
    """
    directory, name = os.path.split(path)
    try:
        if os.path.lexists(f"{directory}/archive_status/{name}{_READY}"):
            return False
        return FileIdentity(name, os.stat(path)) != identity
    except FileNotFoundError:
        return True
    except OSError:
        return False


def ready_names(pgdata: str) -> list[str]:
    """Names of the files that wait to be archived, in PostgreSQL's order.

    Raises DataDirectoryError.
    """
    names = [
        name[: -len(_READY)]
        for name in _listed(f"{pgdata}/pg_wal/archive_status")
        if name.endswith(_READY)
    ]
    return sorted((name for name in names if _kind(name)), key=_archiving_order)


def segments_in(pgdata: str) -> list[str]:
    """Names of the whole and the unfinished segments in pg_wal, by timeline and position.

    Raises DataDirectoryError.
    """
    return sorted(name for name in _listed(f"{pgdata}/pg_wal") if _kind(name) == SEGMENT)


def histories_in(pgdata: str) -> list[str]:
    """Names of the history files in pg_wal; raises DataDirectoryError."""
    return sorted(name for name in _listed(f"{pgdata}/pg_wal") if _kind(name) == HISTORY)


def _archiving_order(name: str) -> tuple[bool, str]:
    return not name.endswith(".history"), name


def _kind(name: str) -> str:
    """The kind of a name of PostgreSQL's, empty for any other."""
    try:
        return WalFile(name).kind
    except WalFormatError:
        return ""


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError as error:
        raise DataDirectoryError(
            f"cannot read {directory}: {error.strerror}",
            hint="the agent runs as the server's user; check data_directory of the server",
        ) from error
