"""Blocks that the base is to say of that they have changed."""

from __future__ import annotations

import pytest

from pgrecall.backup.base import unequal
from pgrecall.backup.changes import changed_ranges
from pgrecall.backup.units import PIECE_BYTES
from pgrecall.codec.block_digests import BLOCK_BYTES, as_records, block_records

SIZE = 3 * BLOCK_BYTES + 100
RECORDS = as_records(block_records(memoryview(bytes(SIZE)), 7)[0])


@pytest.mark.parametrize(
    ("places", "offset", "changed"),
    [
        ([(0, BLOCK_BYTES)], 0, [(0, BLOCK_BYTES)]),
        ([(BLOCK_BYTES, 2 * BLOCK_BYTES)], 0, [(BLOCK_BYTES, 2 * BLOCK_BYTES)]),
        ([(3 * BLOCK_BYTES, SIZE)], 0, [(3 * BLOCK_BYTES, SIZE)]),
        ([(0, SIZE)], 0, [(0, SIZE)]),
        ([], 0, []),
        # Of a file of several pieces: what lies across their border, before and behind.
        ([(PIECE_BYTES - BLOCK_BYTES, PIECE_BYTES + BLOCK_BYTES)], PIECE_BYTES, [(0, BLOCK_BYTES)]),
        ([(0, PIECE_BYTES)], PIECE_BYTES, []),
        ([(2 * PIECE_BYTES, 2 * PIECE_BYTES + BLOCK_BYTES)], PIECE_BYTES, []),
    ],
)
def test_blocks_in_these_places_have_changed_and_no_others(
    places: list[tuple[int, int]], offset: int, changed: list[tuple[int, int]]
) -> None:
    before = RECORDS.tobytes()
    found = unequal(RECORDS, places, offset, SIZE)
    assert changed_ranges(RECORDS, found, SIZE) == changed
    assert RECORDS.tobytes() == before  # which others look at, too
    assert found["crc"].tolist() == RECORDS["crc"].tolist()
    # The same twice, as where two runs lie in one block.
    assert changed_ranges(RECORDS, unequal(RECORDS, places * 2, offset, SIZE), SIZE) == changed
