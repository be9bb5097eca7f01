"""Files in pg_wal/summaries: which blocks of which relations the WAL between two LSNs changed.

Source: PostgreSQL's common/blkreftable.c (17 and 18), in the server's byte order::

    u32 magic
    entries: u32 tablespace, database, relation; i32 fork; u32 limit block; u32 chunks
             u16 used[chunks], then each chunk's u16s: as many as used
    an entry of zeros, u32 CRC-32C of everything before

A chunk stands for 65536 blocks: a list of offsets, or where it has 4096 of them
a bitmap. Blocks from the limit block on may be new, or gone and made again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pgrecall.codec.crc import crc32c
from pgrecall.errors import CorruptObjectError

Blocks = npt.NDArray[np.int64]

NO_LIMIT = 0xFFFFFFFF

_MAGIC = 0x652B137B
_ENTRY = struct.Struct("=IIIiII")
_WORD = struct.Struct("=I")
_CHUNK_BLOCKS = 1 << 16
_BITMAP_WORDS = 4096


class SummaryEntry(NamedTuple):
    """What happened to one fork of a relation.

    ``fork``: 0 is the main one. ``relation`` 0: the whole database was made, or dropped.
    """

    tablespace: int
    database: int
    relation: int
    fork: int
    limit_block: int
    blocks: Blocks


def read_summary(name: str, data: bytes) -> Iterator[SummaryEntry]:
    """The entries of a summary file; ``name`` is for errors.

    Raises CorruptObjectError before the first entry when the file as a whole is damaged.
    """
    if len(data) < 2 * _WORD.size or _WORD.unpack_from(data)[0] != _MAGIC:
        raise CorruptObjectError(f"{name} is not a WAL summary")
    end = len(data) - _WORD.size
    if crc32c(memoryview(data)[:end]) != _WORD.unpack_from(data, end)[0]:
        raise CorruptObjectError(f"the WAL summary {name} does not match its checksum")
    return _entries(name, data, end)


def _entries(name: str, data: bytes, end: int) -> Iterator[SummaryEntry]:
    place = _WORD.size
    while True:
        if place + _ENTRY.size > end:
            raise CorruptObjectError(f"the WAL summary {name} is cut off")
        entry = _ENTRY.unpack_from(data, place)
        place += _ENTRY.size
        if not any(entry):
            return
        tablespace, database, relation, fork, limit, chunks = entry
        used = np.frombuffer(data, np.uint16, chunks, place)
        place += used.nbytes
        found = []
        for number, count in enumerate(used.tolist()):
            words = np.frombuffer(data, np.uint16, count, place)
            place += words.nbytes
            found.append(_chunk(words) + number * _CHUNK_BLOCKS)
        blocks = np.concatenate(found) if found else np.zeros(0, np.int64)
        yield SummaryEntry(tablespace, database, relation, fork, limit, blocks)


def _chunk(words: npt.NDArray[np.uint16]) -> Blocks:
    if len(words) < _BITMAP_WORDS:
        return words.astype(np.int64)
    # Bit b of word w stands for block 16 w + b, whatever the byte order.
    bits = (words[:, None] >> np.arange(16, dtype=np.uint16)) & 1
    return np.flatnonzero(bits.ravel())
