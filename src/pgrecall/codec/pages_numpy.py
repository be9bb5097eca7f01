"""Page checksums by numpy, for where the C extension could not be built. See pages.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview

_LANES = 32
_PRIME = np.uint32(16777619)
_SHIFT = np.uint32(17)
_CHECKSUM_WORD = 4  # of 16 bits: pd_checksum is at byte 8
_UPPER_WORD = 7  # pd_upper is at byte 14
_BATCH_PAGES = 128
_BAD_CHECKSUM = 1
_NOT_EMPTY = 2

_BASE_OFFSETS = np.array(
    [
        *(0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2),
        *(0x83E13D2C, 0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C),
        *(0xF718902A, 0x0B1C9CDB, 0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979),
        *(0xCCA6C0B2, 0x304A0979, 0x85AA43D4, 0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E),
        *(0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756),
    ],
    dtype=np.uint32,
)


def check_pages(buffer: Buffer, first_block: int, page_bytes: int) -> list[tuple[int, int]]:
    """As pages.check_pages."""
    pages = _as_pages(buffer, page_bytes)
    bad: list[tuple[int, int]] = []
    for start in range(0, len(pages), _BATCH_PAGES):
        batch = pages[start : start + _BATCH_PAGES]
        words = batch.view(np.uint16)
        unused = words[:, _UPPER_WORD] == 0
        blocks = np.arange(len(batch), dtype=np.uint64) + np.uint64(first_block + start)
        wrong = _checksums(batch, blocks.astype(np.uint32)) != words[:, _CHECKSUM_WORD]
        kinds = np.where(unused, batch.any(axis=1) * _NOT_EMPTY, wrong * _BAD_CHECKSUM)
        bad.extend((start + int(i), int(kinds[i])) for i in np.flatnonzero(kinds))
    return bad


def page_checksum(page: Buffer, block: int) -> int:
    """As pages.page_checksum."""
    pages = _as_pages(page, len(page))
    return int(_checksums(pages, np.array([block], dtype=np.uint32))[0])


def _as_pages(buffer: Buffer, page_bytes: int) -> NDArray[np.uint32]:
    if not 1024 <= page_bytes <= 32768 or page_bytes & (page_bytes - 1):
        raise ValueError("a page has 1024 to 32768 bytes, a power of two")
    if len(buffer) % page_bytes:
        raise ValueError("the buffer does not hold whole pages")
    return np.frombuffer(buffer, dtype=np.uint32).reshape(-1, page_bytes // 4)


def _checksums(pages: NDArray[np.uint32], blocks: NDArray[np.uint32]) -> NDArray[np.uint32]:
    rows = pages.reshape(len(pages), -1, _LANES)
    first = rows[:, 0, :].copy()
    first.view(np.uint16)[:, _CHECKSUM_WORD] = 0
    sums = np.broadcast_to(_BASE_OFFSETS, first.shape)
    sums = _mix(sums ^ first)
    for row in range(1, rows.shape[1]):
        sums = _mix(sums ^ rows[:, row, :])
    sums = _mix(_mix(sums))
    hashes: NDArray[np.uint32] = np.bitwise_xor.reduce(sums, axis=1)
    return (hashes ^ blocks) % np.uint32(65535) + np.uint32(1)


def _mix(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    mixed: NDArray[np.uint32] = (values * _PRIME) ^ (values >> _SHIFT)
    return mixed
