"""Checksums of PostgreSQL data pages.

Source: PostgreSQL's storage/checksum_impl.h and storage/bufpage.h. The block
number that goes into a checksum counts across the 1 GiB files of a relation
fork: file ``.3`` begins with block 3 x 131072 (for 8 KiB pages).
"""

from __future__ import annotations

from pgrecall.codec.native import HAS_NATIVE

if HAS_NATIVE:
    from pgrecall.codec import _native

    _check_pages, _page_checksum = _native.check_pages, _native.page_checksum
else:
    from pgrecall.codec import pages_numpy

    _check_pages, _page_checksum = pages_numpy.check_pages, pages_numpy.page_checksum

Buffer = bytes | bytearray | memoryview

PAGE_BYTES = 8192
BAD_CHECKSUM = 1
"""The page's checksum does not match its content and block number."""
NOT_EMPTY = 2
"""The page is marked as never used (pd_upper is 0), and yet is not all zero."""


def check_pages(
    buffer: Buffer, first_block: int, page_bytes: int = PAGE_BYTES
) -> list[tuple[int, int]]:
    """Check the whole pages in ``buffer``, the first of which is block ``first_block``.

    Returns ``(index, kind)`` for each bad page, empty when all are good; index
    counts pages from the start of the buffer, kind is BAD_CHECKSUM or
    NOT_EMPTY. Never-used, all-zero pages are good. Releases the GIL. Raises
    ValueError when the buffer does not hold whole pages.
    """
    return _check_pages(buffer, first_block, page_bytes)


def page_checksum(page: Buffer, block: int) -> int:
    """The checksum, 1 to 65535, that belongs into pd_checksum of this page at this block."""
    return _page_checksum(page, block)
