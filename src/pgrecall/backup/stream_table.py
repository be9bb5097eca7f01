"""The files of a streamed backup: numbered as they come, put in order when all have come."""

from __future__ import annotations

from array import array

from pgrecall.backup.base import Base
from pgrecall.errors import BackupError
from pgrecall.model.file_table import FILE, FileTable

ABSENT = 0xFFFFFFFF
_WAL = b"pg_wal/"


class StreamTable:
    """A table that begins with the files of the base, each at its index there.

    So the base's pieces are found by index, as where a walk knew all files before the copy.
    """

    def __init__(self, base: Base | None) -> None:
        self.table = base.all_files() if base is not None else FileTable()
        self._known = len(self.table)
        self._has_come = bytearray(self._known)

    def add(self, path: bytes, kind: int, size: int, stat: tuple[int, int, int, int]) -> int:
        """Note what has come, as FileTable.add does; returns its index."""
        index = find(self.table, path, self._known) if kind == FILE else None
        if index is None:
            self._has_come.append(1)
            return self.table.add(path, kind, size, stat)
        if self._has_come[index]:
            raise _twice(path)
        self._has_come[index] = 1
        mode, uid, gid, modified = stat
        table = self.table
        table.sizes[index] = size
        table.modes[index] = mode & 0o7777
        table.uids[index], table.gids[index] = uid, gid
        table.modified[index] = modified
        return index

    def arranged(self) -> tuple[FileTable, array[int]]:
        """What has come in the order of a walk, and of each index here its index there.

        ABSENT for what the base has and the server has not. WAL that came along is listed
        behind everything else.
        """
        table = self.table
        keys = {index: _key(table.path(index)) for index, came in enumerate(self._has_come) if came}
        is_wal = {
            index
            for index in keys
            if table.kinds[index] == FILE and table.path(index).startswith(_WAL)
        }
        order = sorted(keys, key=lambda index: (index in is_wal, keys[index]))
        places = array("I", [ABSENT]) * len(table)
        found = FileTable()
        before = None
        for index in order:
            if keys[index] == before:
                raise _twice(table.path(index))
            before = keys[index]
            stat = (
                table.modes[index],
                table.uids[index],
                table.gids[index],
                table.modified[index],
            )
            places[index] = found.add(
                table.path(index), table.kinds[index], table.sizes[index], stat
            )
        return found, places


def find(table: FileTable, path: bytes, count: int) -> int | None:
    """Index of ``path`` among the first ``count`` entries, which are in the order of a walk."""
    wanted = _key(path)
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if _key(table.path(middle)) < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < count and table.path(low) == path else None


def _key(path: bytes) -> bytes:
    """Paths in this order are in the order of a walk: component by component."""
    return path.replace(b"/", b"\0")


def _twice(path: bytes) -> BackupError:
    return BackupError(
        f"the server sent {path!r} twice", hint="run the backup again, and report it if it stays so"
    )
