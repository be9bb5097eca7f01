"""Digests of a file's 64 KiB blocks: what tells whether a block has changed.

One record of 20 bytes for each block: XXH3 of 128 bits, seeded, and the block's
CRC-32C (little endian). Which of the two is for what: equality is judged by the
digest, never by a CRC; but CRCs can be put together into the checksum of a whole
file of which only some blocks were read.

The seed is a random number that whoever writes into the database does not know.
Why XXH3 and not BLAKE3: docs/adr/0005-block-digests.md.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import xxhash

from pgrecall.codec.crc import combiner, crc32c, crc32c_combine

BLOCK_BYTES = 64 << 10
RECORD_BYTES = 20
KIND = "xxh3-128"

Buffer = bytes | bytearray | memoryview
Records = npt.NDArray[np.void]

RECORD = np.dtype([("digest", "V16"), ("crc", "<u4")])
_CRC = struct.Struct("<I")


def block_records(data: memoryview, seed: int) -> tuple[bytearray, int]:
    """The records of the blocks in ``data``, and the CRC-32C of the whole.

    ``data`` begins at a block's beginning; its last block may be shorter. ``seed`` has 64 bits.
    """
    records = bytearray()
    whole = 0
    combine = combiner(BLOCK_BYTES)
    for start in range(0, len(data), BLOCK_BYTES):
        block = data[start : start + BLOCK_BYTES]
        crc = crc32c(block)
        records += xxhash.xxh3_128_digest(block, seed=seed)
        records += _CRC.pack(crc)
        if not start:
            whole = crc
        elif len(block) == BLOCK_BYTES:
            whole = combine(whole, crc)
        else:
            whole = crc32c_combine(whole, crc, len(block))
    return records, whole


def combined_crc(records: Records, length: int) -> int:
    """The CRC-32C of ``length`` bytes, put together from the records of their blocks."""
    crcs: list[int] = records["crc"].tolist()
    if not crcs:
        return 0
    combine = combiner(BLOCK_BYTES)
    whole = crcs[0]
    for crc in crcs[1:-1]:
        whole = combine(whole, crc)
    if len(crcs) > 1:
        last = length - (len(crcs) - 1) * BLOCK_BYTES
        whole = crc32c_combine(whole, crcs[-1], last)
    return whole


def as_records(data: Buffer) -> Records:
    """Records as an array: ``["digest"]`` compares by equality, ``["crc"]`` are numbers."""
    return np.frombuffer(data, RECORD)


def block_count(size: int) -> int:
    """How many blocks a file of ``size`` bytes has."""
    return -(-size // BLOCK_BYTES)
