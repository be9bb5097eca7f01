"""Which bytes of what was read are other ones than the base has; pure."""

from __future__ import annotations

import numpy as np

from pgrecall.codec.block_digests import BLOCK_BYTES, Records


def changed_ranges(found: Records, base: Records, length: int) -> list[tuple[int, int]]:
    """Ranges ``(begin, end)`` of blocks that differ, neighbours together, within ``length`` bytes.

    ``found``: the records of what was read; ``base``: those in its place, fewer or more.
    """
    changed = np.ones(len(found), bool)
    common = min(len(found), len(base))
    changed[:common] = found["digest"][:common] != base["digest"][:common]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], changed, [False])))).tolist()
    return [
        (begin * BLOCK_BYTES, min(end * BLOCK_BYTES, length))
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]
