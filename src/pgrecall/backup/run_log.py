"""Where the bytes of each file went: runs as the workers wrote them, kept in 40 bytes each."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from pgrecall.backup.units import PIECE_BYTES
from pgrecall.model.manifest import Run
from pgrecall.repository.overlay import spread_of

_RECORD = struct.Struct("<IIIIQQI4x")
_NONE = 0xFFFFFFFF

LEFTOVER_PACK = 0x8000_0000
"""With this bit, the number of a pack is its index among those of an unfinished backup."""


def renumber_files(records: bytearray, record_bytes: int, places: array[int]) -> None:
    """In records that begin with a file's number in 32 bits, put ``places[number]`` there."""
    if not records:
        return
    numbers = np.frombuffer(records, np.dtype((np.uint32, record_bytes // 4)))[:, 0]
    numbers[:] = np.frombuffer(places, np.uint32)[numbers]


class RunLog:
    """One worker's runs; for one thread."""

    def __init__(self, page_bytes: int) -> None:
        self.spreads: list[tuple[int, ...]] = []
        self._page_bytes = page_bytes
        self._records = bytearray()
        self._open: list[int] | None = None
        self._pieces: list[tuple[int, int]] = []
        # Behind the open run: in its file, and in its pack.
        self._file_end = 0
        self._place = (0, 0, 0)

    def add(self, file: int, file_offset: int, length: int, place: tuple[int, int, int]) -> None:
        """Note ``length`` bytes of a file, in the order in which they went into packs.

        ``place`` is (pack, frame, offset within the raw frame). Bytes of the same file
        that lie further on in it, and follow in the same pack, make a run longer.
        """
        page = self._page_bytes
        last = self._open
        if last is None or not self._follows(last, file, file_offset, place):
            self._close()
            self._open = [file, *place, file_offset, 0]
            last = self._open
        # Pages only where there are gaps between them; a short one is the last of its run.
        self._pieces.append((file_offset // page, -(-length // page)))
        last[5] += length
        self._file_end = file_offset + length
        self._place = place[0], place[1], place[2] + length

    def _follows(
        self, last: list[int], file: int, file_offset: int, place: tuple[int, int, int]
    ) -> bool:
        pack, frame, end = self._place
        return (
            (last[0], pack) == (file, place[0])
            and (place[1:] in ((frame, end), (frame + 1, 0)))
            and 0 <= file_offset - self._file_end < PIECE_BYTES
            and self._file_end % self._page_bytes == 0
            and file_offset % self._page_bytes == 0
        )

    def records(self) -> bytearray:
        """Everything noted so far."""
        self._close()
        return self._records

    def renumber(self, places: array[int]) -> None:
        """Give every file the number that ``places`` has at its old one."""
        renumber_files(self.records(), _RECORD.size, places)

    def _close(self) -> None:
        if self._open is None:
            return
        spread = spread_of(self._pieces)
        number = _NONE
        if spread:
            number = len(self.spreads)
            self.spreads.append(spread)
        self._records += _RECORD.pack(*self._open, number)
        self._open = None
        self._pieces.clear()


class RunIndex:
    """The runs of all workers, found by file without sorting them all."""

    def __init__(self, logs: Sequence[RunLog], file_count: int) -> None:
        self._records = bytearray()
        self._logs = logs
        self._ends = []
        for log in logs:
            self._records += log.records()
            self._ends.append(len(self._records) // _RECORD.size)
        count = len(self._records) // _RECORD.size
        self._first = array("I", [_NONE]) * file_count
        self._next = array("I", [_NONE]) * count
        for number, (file, *_) in enumerate(_RECORD.iter_unpack(self._records)):
            self._next[number] = self._first[file]
            self._first[file] = number

    def of(self, file: int) -> list[Run]:
        """The runs of a file, by offset; they do not overlap."""
        found = []
        number = self._first[file]
        while number != _NONE:
            record = _RECORD.unpack_from(self._records, number * _RECORD.size)
            spread: tuple[int, ...] = ()
            if record[6] != _NONE:
                spread = self._logs[bisect_right(self._ends, number)].spreads[record[6]]
            _, pack, frame, frame_offset, file_offset, length, _ = record
            found.append(Run(pack, frame, frame_offset, file_offset, length, spread))
            number = self._next[number]
        found.sort(key=lambda run: run.file_offset)
        return found
