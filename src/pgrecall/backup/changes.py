"""Which bytes of what was read are other ones than the base has; pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pgrecall.backup.summaries import FileChanges
from pgrecall.codec.block_digests import BLOCK_BYTES, Records
from pgrecall.codec.wal_summary import Blocks

Range = tuple[int, int]
"""Bytes from the first to before the second."""


def changed_ranges(found: Records, base: Records, length: int) -> list[Range]:
    """Ranges of blocks that differ, neighbours together, within ``length`` bytes.

    ``found``: the records of what was read; ``base``: those in its place, fewer or more.
    """
    changed = np.ones(len(found), bool)
    common = min(len(found), len(base))
    changed[:common] = found["digest"][:common] != base["digest"][:common]
    return _ranges(changed, BLOCK_BYTES, length)


def ranges_to_read(
    changes: FileChanges, place: Range, base_length: int, page_bytes: int
) -> list[Range]:
    """Ranges of whole blocks of a piece, from its beginning, that the base cannot stand for.

    ``place``: the piece within the file; ``base_length``: what the base has of it.
    """
    offset, end = place
    length = end - offset
    per_block = BLOCK_BYTES // page_bytes
    first = offset // page_bytes
    pages = changes.pages
    pages = pages[(pages >= first) & (pages < -(-end // page_bytes))] - first
    wanted = np.zeros(-(-length // BLOCK_BYTES), bool)
    wanted[pages // per_block] = True
    if changes.limit is not None and changes.limit * page_bytes < end:
        wanted[max(0, changes.limit - first) // per_block :] = True
    if length != base_length:
        wanted[min(length, base_length) // BLOCK_BYTES :] = True
    return _ranges(wanted, BLOCK_BYTES, length)


class PageShares:
    """Which pages of what was read are stored; ``start_lsn``: where the backup begins."""

    def __init__(
        self, changes: FileChanges, base_end: int, page_bytes: int, start_lsn: int
    ) -> None:
        """``base_end``: the byte of the file up to which the base has it."""
        self._pages = changes.pages
        limits = [base_end // page_bytes]
        if changes.limit is not None:
            limits.append(changes.limit)
        self._limit = min(limits)
        self._page_bytes = page_bytes
        self._start_lsn = start_lsn

    def chosen(self, data: memoryview, pages: Blocks, bad: list[int]) -> list[tuple[int, Range]]:
        """What of ``data`` is stored: its place in the file, and its bytes within ``data``.

        ``pages``: the number of each page of ``data`` in the file. Stored is what the summaries
        tell of; what was changed since the backup began, which they do not tell of yet, and the
        digests of what was read do; and ``bad`` pages (by their place in ``data``), which
        nothing is known of.
        """
        wanted = pages >= self._limit
        places = np.searchsorted(self._pages, pages)
        known = places < len(self._pages)
        wanted[known] |= self._pages[places[known]] == pages[known]
        wanted[bad] = True
        whole = len(data) // self._page_bytes
        words = np.frombuffer(data[: whole * self._page_bytes], np.uint32)
        words = words.reshape(whole, self._page_bytes // 4)
        high, low = words[:, 0], words[:, 1]
        start_high, start_low = self._start_lsn >> 32, self._start_lsn & 0xFFFFFFFF
        wanted[:whole] |= (high > start_high) | ((high == start_high) & (low >= start_low))
        found = np.flatnonzero(wanted)
        # A new range begins where a page does not follow the one before it, here and in the file.
        follows = (np.diff(found) == 1) & (np.diff(pages[found]) == 1)
        starts = np.flatnonzero(np.concatenate(([len(found) > 0], ~follows)))
        ends = np.append(starts[1:], len(found))[: len(starts)] - 1
        unit = self._page_bytes
        return [
            (page * unit, (first * unit, min((last + 1) * unit, len(data))))
            for page, first, last in zip(
                pages[found[starts]].tolist(),
                found[starts].tolist(),
                found[ends].tolist(),
                strict=True,
            )
        ]


def _ranges(wanted: npt.NDArray[np.bool_], unit: int, length: int) -> list[Range]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])))).tolist()
    return [
        (begin * unit, min(end * unit, length))
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]
