"""What a backup holds: files and directories, and which pack has which of their bytes."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pgrecall.model.file_table import DIRECTORY, FILE, FileTable
from pgrecall.model.manifest import DigestSpan, FileEntry
from pgrecall.repository.overlay import overlap, visible

RUN = np.dtype(
    [("file", "<u4"), ("frame", "<u4"), ("frame_offset", "<i8"), ("file_offset", "<i8"),
     ("length", "<i8")]
)  # fmt: skip
"""A run within a pack: ``length`` bytes of ``file`` from ``file_offset``.

They begin ``frame_offset`` bytes behind the beginning of ``frame``, which may be in one of the
frames that follow it.
"""

Runs = npt.NDArray[np.void]
"""An array of RUN."""

_RECORD = struct.Struct("<IIqqq")
_SPAN = struct.Struct("<IIII")


class Contents:
    """A manifest's files, read once: a table of them, and their runs found by pack.

    Runs that overlap are resolved: a byte of a file is in one run here, or in none.

    ``bad_blocks``: of the files that had any, by index; blocks of the relation's fork.

    A million files with one run each take about 150 MB.
    """

    def __init__(self, pack_count: int, page_bytes: int) -> None:
        """``page_bytes``: of the server, the root's block_bytes."""
        self._pack_count = pack_count
        self._page_bytes = page_bytes
        self.table = FileTable()
        self.crcs = array("I")
        self.bad_blocks: dict[int, frozenset[int]] = {}
        self.bytes = 0
        # Runs as they were read, the pack of each, and their order by pack and place in it.
        self._records = bytearray()
        self._packs = array("I")
        self._order = np.zeros(0, np.int64)
        self._ends = np.zeros(pack_count, np.int64)
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
                self._add_visible(index, entry)
                continue
            for run in entry.runs:
                self._packs.append(run.pack)
                self._records += _RECORD.pack(
                    index, run.frame, run.frame_offset, run.file_offset, run.length
                )
        self._sort()

    def _add_visible(self, file: int, entry: FileEntry) -> None:
        shown = visible(entry.runs, entry.size, self._page_bytes)
        origins = np.array([(run.pack, run.frame, run.frame_offset) for run in entry.runs], "<i8")
        packs, frames, offsets = origins[shown.run].T
        made = np.empty(len(packs), RUN)
        made["file"] = file
        made["frame"] = frames
        made["frame_offset"] = offsets + shown.stream_offset
        made["file_offset"] = shown.file_offset
        made["length"] = shown.length
        self._packs.frombytes(packs.astype(np.uint32).tobytes())
        self._records += made.tobytes()

    def _sort(self) -> None:
        packs, runs = np.array(self._packs), self._runs()
        self._order = np.lexsort((runs["frame_offset"], runs["frame"], packs))
        self._ends = np.cumsum(np.bincount(packs, minlength=self._pack_count))

    def _runs(self) -> Runs:
        return np.frombuffer(self._records, RUN)

    def packs(self) -> list[int]:
        """Indexes of the packs that are needed."""
        return np.flatnonzero(np.diff(self._ends, prepend=0)).tolist()

    def digests(self, file: int) -> list[DigestSpan]:
        """Where the digests of all blocks of a file are, in order; empty when there are none."""
        start = self._span_ends[file - 1] if file else 0
        spans = self._spans[start : self._span_ends[file]]
        return [DigestSpan(*fields) for fields in _SPAN.iter_unpack(spans)]

    def runs_of(self, pack: int) -> Runs:
        """The runs of a pack in the order of its frames."""
        first = self._ends[pack - 1] if pack else 0
        return self._runs()[self._order[first : self._ends[pack]]]
