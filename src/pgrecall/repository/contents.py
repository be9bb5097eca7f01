"""What a backup holds: files and directories, and which pack has which of their bytes."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable

from pgrecall.model.file_table import DIRECTORY, FILE, FileTable
from pgrecall.model.manifest import DigestSpan, FileEntry

_RECORD = struct.Struct("<IIIQQ")
_SPAN = struct.Struct("<IIII")
_NONE = 0xFFFFFFFF


class PackRun:
    """``length`` bytes of ``file`` from ``file_offset``, beginning in a frame at an offset."""

    __slots__ = ("file", "file_offset", "frame", "frame_offset", "length")

    def __init__(self, file: int, frame: int, frame_offset: int, place: tuple[int, int]) -> None:
        self.file = file
        self.frame = frame
        self.frame_offset = frame_offset
        self.file_offset, self.length = place


class Contents:
    """A manifest's files, read once: a table of them, and their runs found by pack.

    ``bad_blocks``: of the files that had any, by index; blocks of the relation's fork.

    A million files with one run each take about 150 MB.
    """

    def __init__(self, pack_count: int) -> None:
        self.table = FileTable()
        self.crcs = array("I")
        self.bad_blocks: dict[int, frozenset[int]] = {}
        self.bytes = 0
        self._records = bytearray()
        self._first = array("I", [_NONE]) * pack_count
        self._next = array("I")
        self._spans = bytearray()
        self._span_ends = array("Q")

    def read(self, entries: Iterable[FileEntry]) -> None:
        """Take in the manifest's entries."""
        for entry in entries:
            kind = DIRECTORY if entry.kind == "d" else FILE
            facts = (entry.mode, entry.owner, entry.group, entry.modified_at)
            index = self.table.add(entry.path_bytes(), kind, entry.size, facts)
            self.crcs.append(entry.crc32c)
            self.bytes += entry.size
            if entry.bad_blocks:
                self.bad_blocks[index] = frozenset(entry.bad_blocks)
            for span in entry.digests:
                self._spans += _SPAN.pack(span.source, span.first, span.count, span.crc32c)
            self._span_ends.append(len(self._spans))
            for run in entry.runs:
                number = len(self._next)
                self._records += _RECORD.pack(
                    index, run.frame, run.frame_offset, run.file_offset, run.length
                )
                self._next.append(self._first[run.pack])
                self._first[run.pack] = number

    def packs(self) -> list[int]:
        """Indexes of the packs that are needed."""
        return [pack for pack, first in enumerate(self._first) if first != _NONE]

    def digests(self, file: int) -> list[DigestSpan]:
        """Where the digests of all blocks of a file are, in order; empty when there are none."""
        start = self._span_ends[file - 1] if file else 0
        spans = self._spans[start : self._span_ends[file]]
        return [DigestSpan(*fields) for fields in _SPAN.iter_unpack(spans)]

    def runs_of(self, pack: int) -> list[PackRun]:
        """The runs of a pack in the order of its frames."""
        runs = []
        number = self._first[pack]
        while number != _NONE:
            file, frame, frame_offset, *place = _RECORD.unpack_from(
                self._records, number * _RECORD.size
            )
            runs.append(PackRun(file, frame, frame_offset, (place[0], place[1])))
            number = self._next[number]
        runs.sort(key=lambda run: (run.frame, run.frame_offset))
        return runs
