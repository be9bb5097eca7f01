"""Taking a heap record apart: its block references, page images, and the rows on them.

Sources: PostgreSQL's access/xlogrecord.h, access/xloginsert.c, storage/bufpage.h and
common/pg_lzcompress.c, versions 13 to 18. LIGHT.
"""

from __future__ import annotations

import struct

from pgrecall.codec.compression import CODEC_LZ4, CODEC_ZSTD, decompress
from pgrecall.codec.wal_telling import MAGIC_14, RECORD_HEADER_BYTES
from pgrecall.errors import CorruptObjectError
from pgrecall.model.wal_knowledge import ROW_BYTES, File, Item

PAGE_BYTES = 8192
"""Of the heap. A server that was built with another block size tells less: images are not read."""

_MAXIMUM_BLOCK_ID = 32
_HAS_IMAGE, _HAS_DATA, _SAME_FILE, _FORK = 0x10, 0x20, 0x80, 0x0F
_HAS_HOLE = 0x01
_PGLZ, _LZ4, _ZSTD = 0x04, 0x08, 0x10
_IMAGE = struct.Struct("=HHB")
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_FILE = struct.Struct("=III")
_PAGE_HEADER_BYTES = 24
_TUPLE_HEADER_BYTES = 23
_NORMAL_ITEM = 1


_Reference = tuple[File, int, tuple[int, int, int, int] | None, int]
"""A block reference: file, block, image (stored bytes, hole at, hole, how), bytes of data."""


class Block(Item):
    """One block reference: ``page`` the image (empty without one), ``data`` what was logged."""

    __slots__ = (  # noqa: RUF023 - the order of fields
        "file",
        "number",
        "page",
        "data",
    )

    def __init__(
        self,
        file: File,
        number: int,
        page: bytes,
        data: bytes,
    ) -> None:
        self.file = file
        self.number = number
        self.page = page
        self.data = data


class HeapRecord(Item):
    """A heap record; ``data`` is its main data."""

    __slots__ = (  # noqa: RUF023 - the order of fields
        "xid",
        "info",
        "blocks",
        "data",
    )

    def __init__(
        self,
        xid: int,
        info: int,
        blocks: tuple[Block, ...],
        data: bytes,
    ) -> None:
        self.xid = xid
        self.info = info
        self.blocks = blocks
        self.data = data


def heap_record(record: bytes, magic: int) -> HeapRecord | None:
    """Take a whole record apart; None when it has another shape, or refers to no block."""
    try:
        references, at, main_bytes = _references(record, magic)
    except (struct.error, IndexError):
        return None
    blocks = []
    for file, number, image, data_bytes in references:
        page = b""
        if image is not None:
            page = _page(record[at : at + image[0]], image, magic)
            at += image[0]
        blocks.append(Block(file, number, page, record[at : at + data_bytes]))
        at += data_bytes
    if not blocks or at + main_bytes != len(record):
        return None
    xid = _U32.unpack_from(record, 4)[0]
    return HeapRecord(xid, record[16], tuple(blocks), record[at:])


def page_row(page: bytes, offset: int, limit: int = ROW_BYTES) -> bytes:
    """The first ``limit`` bytes of the columns of the row at ``offset``; empty if there is none."""
    at = _PAGE_HEADER_BYTES + 4 * (offset - 1)
    if offset < 1 or at + 4 > len(page):
        return b""
    item = _U32.unpack_from(page, at)[0]
    start, state, length = item & 0x7FFF, item >> 15 & 3, item >> 17
    if state != _NORMAL_ITEM or length < _TUPLE_HEADER_BYTES or start + length > len(page):
        return b""
    columns = page[start + _TUPLE_HEADER_BYTES - 1]
    return page[start + columns : start + min(length, columns + limit)]


def _references(record: bytes, magic: int) -> tuple[list[_Reference], int, int]:
    """The references, where the payload begins, and the length of the main data."""
    found: list[_Reference] = []
    at = RECORD_HEADER_BYTES
    payload = 0
    main_bytes = 0
    compressed = _PGLZ | _LZ4 | _ZSTD if magic > MAGIC_14 else 0x02
    while at + payload + main_bytes < len(record):
        kind = record[at]
        at += 1
        if kind <= _MAXIMUM_BLOCK_ID:
            flags = record[at]
            data_bytes = _U16.unpack_from(record, at + 1)[0]
            at += 3
            image = None
            if flags & _HAS_IMAGE:
                stored, hole_at, how = _IMAGE.unpack_from(record, at)
                at += _IMAGE.size
                hole = PAGE_BYTES - stored if how & _HAS_HOLE else 0
                if how & _HAS_HOLE and how & compressed:
                    hole = _U16.unpack_from(record, at)[0]
                    at += 2
                image = (stored, hole_at, hole, how & compressed)
                payload += stored
            if not flags & _SAME_FILE:
                space, database, number = _FILE.unpack_from(record, at)
                file = (space, database, number)
                at += _FILE.size
            elif found:
                file = found[-1][0]
            else:
                raise IndexError("the first reference names no file")
            found.append((file, _U32.unpack_from(record, at)[0], image, data_bytes))
            at += 4
            payload += data_bytes
        elif kind == 255:
            main_bytes = record[at]
            at += 1
            break
        elif kind == 254:
            main_bytes = _U32.unpack_from(record, at)[0]
            at += 4
            break
        elif kind in (253, 252):
            at += 2 if kind == 253 else 4
        else:
            raise IndexError("no block reference")
    return found, at, main_bytes


def _page(stored: bytes, image: tuple[int, int, int, int], magic: int) -> bytes:
    """The page of an image; empty when it cannot be made."""
    _, hole_at, hole, how = image
    raw_bytes = PAGE_BYTES - hole
    raw: bytes | memoryview
    try:
        if not how:
            raw = stored
        elif magic <= MAGIC_14 or how & _PGLZ:
            raw = _pglz(stored, raw_bytes)
        else:
            raw = decompress(CODEC_LZ4 if how & _LZ4 else CODEC_ZSTD, stored, raw_bytes)
    except CorruptObjectError:
        return b""
    if len(raw) != raw_bytes or hole_at > raw_bytes:
        return b""
    return b"".join((raw[:hole_at], bytes(hole), raw[hole_at:]))


def _pglz(stored: bytes, raw_bytes: int) -> bytes:
    """PostgreSQL's own compression: a byte of flags, then literals or references back."""
    raw = bytearray()
    at = 0
    while at < len(stored) and len(raw) < raw_bytes:
        flags = stored[at]
        at += 1
        for bit in range(8):
            if at >= len(stored) or len(raw) >= raw_bytes:
                break
            if not flags >> bit & 1:
                raw.append(stored[at])
                at += 1
                continue
            if at + 1 >= len(stored):
                return b""
            length = (stored[at] & 0x0F) + 3
            back = (stored[at] & 0xF0) << 4 | stored[at + 1]
            at += 2
            if length == 18 and at < len(stored):
                length += stored[at]
                at += 1
            if not 0 < back <= len(raw):
                return b""
            for _ in range(min(length, raw_bytes - len(raw))):
                raw.append(raw[-back])
    return bytes(raw)
