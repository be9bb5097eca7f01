"""Writes the pieces of a frame where they belong in a file, without a call of Python for each."""

from __future__ import annotations

import os

from pgrecall.codec.native import HAS_NATIVE
from pgrecall.repository.pack_source import Pieces
from pgrecall.system.durable import WRITE_BYTES

if HAS_NATIVE:
    from pgrecall.codec._native import write_pieces


def scatter(descriptor: int, data: bytes | memoryview, pieces: Pieces) -> int:
    """Write the pieces of ``data``, all of one file; returns the number of bytes.

    Raises OSError.
    """
    if HAS_NATIVE:
        return write_pieces(descriptor, data, pieces, WRITE_BYTES)
    view = memoryview(data)
    for _, offset, start, length in pieces.tolist():
        done = 0
        while done < length:
            end = min(length, done + WRITE_BYTES)
            done += os.pwrite(descriptor, view[start + done : start + end], offset + done)
    return int(pieces["length"].sum())
