"""Walk PGDATA and its tablespaces, and say which files the backup will hold."""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Callable

from pgrecall.backup import selection
from pgrecall.errors import DataDirectoryError, PostgresRightsError
from pgrecall.model.file_table import DIRECTORY, FILE, FileTable
from pgrecall.model.findings import Finding
from pgrecall.model.relation_files import is_relation_directory

_TABLESPACES = b"pg_tblspc"


class Scan:
    """What a walk found: the table, the index of pg_control, and findings on what was left out."""

    def __init__(self) -> None:
        self.table = FileTable()
        self.findings: list[Finding] = []
        self.vanished = 0


def scan_data_directory(
    data_directory: str, version_directory: Callable[[bytes], bool], *, has_summaries: bool
) -> Scan:
    """Walk ``data_directory`` in sorted order.

    ``version_directory`` tells, for a name directly below a tablespace, whether
    it is this server's (``PG_18_202506291``): two servers may share a location.
    ``has_summaries``: the server keeps WAL summaries (17 and later).

    Raises PostgresRightsError naming what may not be read, DataDirectoryError
    when PGDATA itself is not there. What vanishes meanwhile is left out: WAL
    replay removes it too.
    """
    walk = _Walk(os.fsencode(data_directory), version_directory)
    walk.run(has_summaries=has_summaries)
    return walk.scan


class _Walk:
    def __init__(self, root: bytes, version_directory: Callable[[bytes], bool]) -> None:
        self.scan = Scan()
        self._root = root
        self._above: list[tuple[int, int]] = []
        self._is_version_directory = version_directory
        self._real_root = os.path.realpath(root)

    def run(self, *, has_summaries: bool) -> None:
        if not os.path.isdir(self._root):
            raise DataDirectoryError(f"there is no directory {os.fsdecode(self._root)}")
        self._has_summaries = has_summaries
        self._directory(b"")

    def _directory(self, path: bytes) -> None:
        try:
            status = os.stat(self._absolute(path))
            if (status.st_dev, status.st_ino) in self._above:
                self._note("link-loop", path, "leads back to a directory above it: left out")
                return
            with os.scandir(self._absolute(path)) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            self.scan.vanished += 1
            return
        except PermissionError as error:
            raise self._unreadable(path) from error
        relations = is_relation_directory(path)
        unlogged = (
            selection.unlogged_nodes([entry.name for entry in listed]) if relations else frozenset()
        )
        self._above.append((status.st_dev, status.st_ino))
        for entry in listed:
            if relations and (
                selection.is_temporary_relation(entry.name)
                or selection.is_unlogged_content(entry.name, unlogged)
            ):
                continue
            if self._is_tablespace(path) and not self._is_version_directory(entry.name):
                continue
            self._entry(path, entry)
        self._above.pop()

    def _entry(self, directory: bytes, entry: os.DirEntry[bytes]) -> None:
        path = directory + b"/" + entry.name if directory else entry.name
        try:
            status = entry.stat(follow_symlinks=False)
            if stat_module.S_ISLNK(status.st_mode):
                self._link(directory, path, entry.name)
                return
        except FileNotFoundError:
            self.scan.vanished += 1
            return
        self._plain(directory, path, entry.name, status)

    def _plain(self, directory: bytes, path: bytes, name: bytes, status: os.stat_result) -> None:
        if stat_module.S_ISDIR(status.st_mode):
            self._subdirectory(directory, path, name, status)
        elif stat_module.S_ISREG(status.st_mode):
            if not selection.is_excluded_file(directory, name):
                self._add(path, FILE, status, status.st_size)
        else:
            self._note("special-file", path, "is neither a file nor a directory, and is left out")

    def _subdirectory(
        self, directory: bytes, path: bytes, name: bytes, status: os.stat_result
    ) -> None:
        if name.startswith(b"pgsql_tmp") or (
            not directory and name.startswith(selection.KEPT_PREFIX)
        ):
            return
        self._add(path, DIRECTORY, status)
        if not directory and name in selection.EMPTIED_DIRECTORIES:
            return
        if path == b"pg_wal":
            self._wal_directories(status)
            return
        self._directory(path)

    def _wal_directories(self, status: os.stat_result) -> None:
        for name in selection.WAL_DIRECTORIES:
            if name != b"summaries" or self._has_summaries:
                self._add(b"pg_wal/" + name, DIRECTORY, status)

    def _link(self, directory: bytes, path: bytes, name: bytes) -> None:
        if not directory and selection.is_excluded_file(directory, name):
            return
        try:
            status = os.stat(self._absolute(path))
        except OSError as error:
            if directory == _TABLESPACES:
                raise DataDirectoryError(
                    f"the tablespace link {os.fsdecode(path)} leads nowhere: {error.strerror}",
                    hint="mount what is missing, or remove the link if no tablespace uses it",
                ) from error
            self._note("broken-link", path, "is a link to nowhere, and is left out")
            return
        target = os.path.realpath(self._absolute(path))
        # The link of a tablespace, of pg_wal or of a log directory is made anew by restore.
        if directory == _TABLESPACES or path == b"pg_wal":
            self._plain(directory, path, name, status)
            return
        if stat_module.S_ISDIR(status.st_mode):
            if (target + b"/").startswith(self._real_root + b"/"):
                self._note("inner-link", path, "is a link into PGDATA itself, and is left out")
                return
            if path == b"log":
                self._add(path, DIRECTORY, status)
                return
        shown = os.fsdecode(target)
        self._note(
            "link-followed", path, f"is a link to {shown}: what it shows is stored in its place"
        )
        self._plain(directory, path, name, status)

    def _is_tablespace(self, directory: bytes) -> bool:
        return directory.startswith(_TABLESPACES + b"/") and directory.count(b"/") == 1

    def _add(self, path: bytes, kind: int, status: os.stat_result, size: int = 0) -> None:
        facts = (status.st_mode, status.st_uid, status.st_gid, int(status.st_mtime))
        self.scan.table.add(path, kind, size, facts)

    def _absolute(self, path: bytes) -> bytes:
        return self._root + b"/" + path if path else self._root

    def _note(self, code: str, path: bytes, what: str) -> None:
        shown = os.fsdecode(path)
        self.scan.findings.append(
            Finding(severity="warn", code=code, subject=shown, message=f"{shown} {what}")
        )

    def _unreadable(self, path: bytes) -> PostgresRightsError:
        return PostgresRightsError(
            f"{os.fsdecode(self._absolute(path))} may not be read by user id {os.geteuid()}",
            hint="run pgrecall as the operating system user that owns PGDATA,"
            " or as a member of its group where the server was initialised with group access",
        )
