"""Page checksums: known values, both implementations, block numbers, never-used pages."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.codec import pages, pages_numpy
from pgrecall.codec.pages import BAD_CHECKSUM, NOT_EMPTY

try:
    from pgrecall.codec import _native
except ImportError:
    _native = None

needs_native = pytest.mark.skipif(
    _native is None, reason="the C extension was not built: nothing to compare"
)
IMPLEMENTATIONS = [
    pytest.param(_native, id="native", marks=needs_native),
    pytest.param(pages_numpy, id="numpy"),
]


def plain_checksum(page, block):
    """checksum_impl.h word for word, one lane at a time."""
    words = struct.unpack(f"={len(page) // 4}I", page[:8] + b"\0\0" + page[10:])
    sums = [int(offset) for offset in pages_numpy._BASE_OFFSETS]
    for at in range(0, len(words) + 64, 32):
        row = words[at : at + 32] or (0,) * 32
        for lane in range(32):
            mixed = sums[lane] ^ row[lane]
            sums[lane] = (mixed * 16777619 & 0xFFFFFFFF) ^ (mixed >> 17)
    result = block
    for lane_sum in sums:
        result ^= lane_sum
    return result % 65535 + 1


def good_page(block, page_bytes=8192, seed=1):
    page = bytearray((i * 2654435761 * seed >> 7) & 0xFF for i in range(page_bytes))
    page[12:16] = struct.pack("=HH", 24, page_bytes // 2)
    page[8:10] = struct.pack("=H", plain_checksum(bytes(page), block))
    return bytes(page)


@pytest.fixture(params=IMPLEMENTATIONS, autouse=True)
def implementation(request, monkeypatch):
    monkeypatch.setattr(pages, "_check_pages", request.param.check_pages)
    monkeypatch.setattr(pages, "_page_checksum", request.param.page_checksum)


def test_good_pages_and_the_place_of_bad_ones():
    buffer = bytearray(b"".join(good_page(block) for block in range(200)))
    assert pages.check_pages(buffer, 0) == []
    buffer[8192 * 150 + 8191] ^= 0x40
    buffer[8192 * 3 + 8] ^= 1
    assert pages.check_pages(memoryview(buffer), 0) == [(3, BAD_CHECKSUM), (150, BAD_CHECKSUM)]


def test_block_numbers_go_on_behind_the_first_gigabyte():
    third_file = 3 * 131072
    assert pages.check_pages(good_page(third_file), third_file) == []
    assert pages.check_pages(good_page(third_file), 0) == [(0, BAD_CHECKSUM)]
    last = 2**32 - 2
    assert pages.check_pages(good_page(last), last) == []


def test_never_used_pages_are_good_only_when_all_zero():
    dirty = bytearray(8192)
    dirty[-1] = 1
    buffer = bytes(8192) + bytes(dirty) + good_page(9)
    assert pages.check_pages(buffer, 7) == [(1, NOT_EMPTY)]


@pytest.mark.parametrize("page_bytes", [1024, 4096, 32768])
def test_other_page_sizes(page_bytes):
    page = good_page(5, page_bytes)
    assert pages.check_pages(page, 5, page_bytes) == []
    assert pages.page_checksum(page, 5) == struct.unpack_from("=H", page, 8)[0]


def test_what_is_no_run_of_pages_is_refused():
    for length, page_bytes in ((8191, 8192), (8192, 100), (65536, 65536)):
        with pytest.raises(ValueError, match="page"):
            pages.check_pages(bytes(length), 0, page_bytes)
    for length in (0, 8191, 65536):
        with pytest.raises(ValueError, match="page"):
            pages.page_checksum(bytes(length), 0)
    assert pages.check_pages(b"", 0) == []


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(1, 2**31),
    block=st.integers(0, 2**32 - 300),
    flips=st.lists(st.integers(0, 130 * 1024 - 1), max_size=5),
    zeroed=st.sets(st.integers(0, 129), max_size=5),
)
def test_native_and_numpy_agree(seed, block, flips, zeroed):
    one = good_page(block, 1024, seed)
    buffer = bytearray(one * 130)
    for page in zeroed:
        buffer[page * 1024 : (page + 1) * 1024] = bytes(1024)
    for flip in flips:
        buffer[flip] ^= 1
    arguments = (bytes(buffer), block, 1024)
    assert _native.check_pages(*arguments) == pages_numpy.check_pages(*arguments)
    assert _native.page_checksum(buffer[:1024], block) == pages_numpy.page_checksum(
        buffer[:1024], block
    )
