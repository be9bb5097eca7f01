"""Files and directories as columns: a million of them take about 100 MB."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

FILE = ord("f")
DIRECTORY = ord("d")


class FileTable:
    """Files and directories in the order of the walk (sorted by path components).

    An entry is named by its index, 0 and up. Sizes in bytes as the walk saw
    them; ``modified`` in seconds since 1970 UTC.
    """

    def __init__(self) -> None:
        self.kinds = bytearray()
        self.sizes = array("Q")
        self.modified = array("q")
        self.modes = array("H")
        self.uids = array("I")
        self.gids = array("I")
        self._paths = bytearray()
        self._ends = array("Q")

    def __len__(self) -> int:
        return len(self.kinds)

    def add(self, path: bytes, kind: int, size: int, stat: tuple[int, int, int, int]) -> int:
        """Append an entry; ``stat`` is (mode, uid, gid, modified). Returns its index."""
        mode, uid, gid, modified = stat
        self.kinds.append(kind)
        self.sizes.append(size)
        self.modes.append(mode & 0o7777)
        self.uids.append(uid)
        self.gids.append(gid)
        self.modified.append(modified)
        self._paths += path
        self._ends.append(len(self._paths))
        return len(self.kinds) - 1

    def path(self, index: int) -> bytes:
        """The path relative to PGDATA."""
        start = self._ends[index - 1] if index else 0
        return bytes(self._paths[start : self._ends[index]])

    def files(self) -> Iterator[int]:
        """Indexes of the entries that are files."""
        return (index for index, kind in enumerate(self.kinds) if kind == FILE)
