"""Writes WAL as PostgreSQL lays it out, so that tests can have any record at any position."""

from __future__ import annotations

import struct

import google_crc32c

RM_XLOG, RM_XACT, RM_TABLESPACE, RM_HEAP = 0, 1, 5, 10
MAGIC = {13: 0xD106, 14: 0xD10D, 15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118}


class WalBuilder:
    """A run of WAL from ``start``, which must begin a segment."""

    def __init__(
        self,
        start: int = 0x3000000,
        segment_bytes: int = 1 << 20,
        page_bytes: int = 8192,
        version: int = 18,
    ) -> None:
        self.start = start
        self.segment_bytes = segment_bytes
        self.page_bytes = page_bytes
        self.magic = MAGIC[version]
        self.timeline = 1
        self.system_identifier = 7_000_000_000_000_000_001
        self.previous = 0
        self.image = bytearray()

    @property
    def position(self) -> int:
        return self.start + len(self.image)

    def page_header(self, remaining: int, flags: int = 0) -> None:
        is_long = len(self.image) % self.segment_bytes == 0
        info = flags | (2 if is_long else 0) | (1 if remaining else 0)
        self.image += struct.pack(
            "=HHIQI4x", self.magic, info, self.timeline, self.position, remaining
        )
        if is_long:
            self.image += struct.pack(
                "=QII", self.system_identifier, self.segment_bytes, self.page_bytes
            )

    def add(self, manager: int, info: int, data: bytes, xid: int = 0) -> tuple[int, int]:
        """One record with this main data; returns its start and its end."""
        if len(data) < 256:
            body = struct.pack("=BB", 255, len(data)) + data
        else:
            body = struct.pack("=BI", 254, len(data)) + data
        return self.add_body(manager, info, body, xid)

    def add_body(self, manager: int, info: int, body: bytes, xid: int = 0) -> tuple[int, int]:
        """One record with what follows its header given as it is."""
        if len(self.image) % self.page_bytes == 0:
            self.page_header(0)
        start = self.position
        header = struct.pack("=IIQBBxx", 24 + len(body), xid, self.previous, info, manager)
        crc = google_crc32c.extend(google_crc32c.extend(0, body), header)
        record = header + struct.pack("=I", crc) + body
        self.previous = start
        while record:
            left = self.page_bytes - len(self.image) % self.page_bytes
            if left == self.page_bytes:
                self.page_header(len(record))
                left -= len(self.image) % self.page_bytes
            self.image += record[:left]
            record = record[left:]
        self.image += bytes(-len(self.image) % 8)
        return start, self.position

    def fill_to(self, position: int) -> None:
        """One heap record that ends exactly at ``position``, 8-byte aligned, 32 or more on."""
        end = position - self.start
        first_page = -(-len(self.image) // self.page_bytes) * self.page_bytes
        headers = (
            40 if page % self.segment_bytes == 0 else 24
            for page in range(first_page, end, self.page_bytes)
        )
        size = end - len(self.image) - sum(headers)
        if size < 280:
            self.add(RM_HEAP, 0, bytes(size - 26))
        else:
            self.add(RM_HEAP, 0, bytes(size - 29))
        assert self.position == position

    def segments(self) -> list[bytes]:
        """The files, the last one padded with zeros."""
        padded = bytes(self.image) + bytes(-len(self.image) % self.segment_bytes)
        return [
            padded[at : at + self.segment_bytes] for at in range(0, len(padded), self.segment_bytes)
        ]


def commit(
    time: int,
    *,
    database: bool = False,
    subtransactions: int = 0,
    relations: int = 0,
    statistics: tuple[int, int] = (0, 12),
    messages: int = 0,
    prepared_xid: int = 0,
) -> tuple[int, bytes]:
    """Info flag and main data of a commit record; ``statistics`` is (count, bytes of each)."""
    xinfo = 0
    parts = b""
    if database:
        xinfo |= 0x01
        parts += struct.pack("=II", 5, 1663)
    lists = (
        (0x02, subtransactions, 4),
        (0x04, relations, 12),
        (0x100, *statistics),
        (0x08, messages, 16),
    )
    for bit, count, item_bytes in lists:
        if count:
            xinfo |= bit
            parts += struct.pack("=I", count) + b"\x77" * (count * item_bytes)
    if prepared_xid:
        xinfo |= 0x90
        parts += struct.pack("=I", prepared_xid) + b"gid\0"
    if not xinfo:
        return 0x00, struct.pack("=q", time)
    return 0x80, struct.pack("=qI", time, xinfo) + parts


def restore_point(time: int, name: bytes) -> bytes:
    """Main data of a restore point record."""
    return struct.pack("=q64s", time, name)
