"""What a backup holds: files and directories, and which pack has which of their bytes."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable

from pgrecall.model.file_table import DIRECTORY, FILE, FileTable
from pgrecall.model.manifest import DigestSpan, FileEntry, Run
from pgrecall.repository.overlay import overlap, visible

_RECORD = struct.Struct("<IIQQQ")
_SPAN = struct.Struct("<IIII")
_NONE = 0xFFFFFFFF


class PackRun:
    """``length`` bytes of ``file`` from ``file_offset``, and where they are in a pack.

    They begin ``frame_offset`` bytes behind the beginning of ``frame``, which may be
    in one of the frames that follow it.
    """

    __slots__ = ("file", "file_offset", "frame", "frame_offset", "length")

    def __init__(self, file: int, frame: int, frame_offset: int, place: tuple[int, int]) -> None:
        self.file = file
        self.frame = frame
        self.frame_offset = frame_offset
        self.file_offset, self.length = place


class Contents:
    """A manifest's files, read once: a table of them, and their runs found by pack.

    Runs that overlap are resolved: a byte of a file is in one run here, or in none.

    ``bad_blocks``: of the files that had any, by index; blocks of the relation's fork.

    A million files with one run each take about 150 MB.
    """

    def __init__(self, pack_count: int, page_bytes: int) -> None:
        """``page_bytes``: of the server, the root's block_bytes."""
        self._page_bytes = page_bytes
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
            if overlap(entry.runs, entry.size):
                for piece in visible(entry.runs, entry.size, self._page_bytes):
                    run = entry.runs[piece.run]
                    place = run.frame_offset + piece.stream_offset
                    self._add(index, run, place, (piece.file_offset, piece.length))
            else:
                for run in entry.runs:
                    self._add(index, run, run.frame_offset, (run.file_offset, run.length))

    def _add(self, file: int, run: Run, frame_offset: int, place: tuple[int, int]) -> None:
        self._next.append(self._first[run.pack])
        self._first[run.pack] = len(self._next) - 1
        self._records += _RECORD.pack(file, run.frame, frame_offset, *place)

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
