"""Cut the files of a backup into units of work; pure.

A unit is a piece of one big file, or a batch of small files. Big pieces come
first, so that the workers end at about the same time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

PIECE_BYTES = 64 << 20
BATCH_BYTES = 8 << 20
BATCH_FILES = 512


class Unit:
    """A piece of the file ``files[0]``; or, with ``is_batch``, all of several small files."""

    __slots__ = ("files", "is_batch", "length", "offset")

    def __init__(self, files: array[int], offset: int, length: int, *, is_batch: bool) -> None:
        self.files = files
        self.offset = offset
        self.length = length
        self.is_batch = is_batch


def cut_into_units(files: Iterable[int], sizes: Sequence[int], frame_bytes: int) -> list[Unit]:
    """Units that cover every byte of every file in ``files`` (indexes into ``sizes``) once.

    Files of up to ``frame_bytes`` are small and go into batches in the order
    given; empty files too, since their presence has to be seen.
    """
    pieces: list[Unit] = []
    batches: list[Unit] = []
    batch = array("I")
    batch_bytes = 0
    for index in files:
        size = sizes[index]
        if size > frame_bytes:
            for offset in range(0, size, PIECE_BYTES):
                length = min(PIECE_BYTES, size - offset)
                pieces.append(Unit(array("I", [index]), offset, length, is_batch=False))
            continue
        batch.append(index)
        batch_bytes += size
        if batch_bytes >= BATCH_BYTES or len(batch) >= BATCH_FILES:
            batches.append(Unit(batch, 0, batch_bytes, is_batch=True))
            batch = array("I")
            batch_bytes = 0
    if batch:
        batches.append(Unit(batch, 0, batch_bytes, is_batch=True))
    # Stable: the pieces of one file stay in order, for read-ahead's sake.
    pieces.sort(key=lambda unit: -unit.length)
    batches.sort(key=lambda unit: -unit.length)
    return pieces + batches
