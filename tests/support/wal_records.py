"""Bodies of WAL records about tables, as PostgreSQL writes them, for tests/support/wal_builder."""

from __future__ import annotations

import struct

RM_SMGR, RM_DBASE, RM_RELMAP, RM_HEAP, RM_XACT = 2, 4, 7, 10, 1
SPACE, DATABASE = 1663, 5


def block(
    file: int, number: int = 0, data: bytes = b"", *, database: int = DATABASE, space: int = SPACE
) -> tuple[bytes, bytes]:
    """Header and payload of a block reference without an image."""
    flags = 0x20 if data else 0
    head = struct.pack("=BBHIIII", 0, flags, len(data), space, database, file, number)
    return head, data


def heap_body(reference: tuple[bytes, bytes], data: bytes) -> bytes:
    """What follows the header of a heap record with this one block reference."""
    head, payload = reference
    return head + struct.pack("=BB", 255, len(data)) + payload + data


def delete_body(file: int, offset: int = 1, *, database: int = DATABASE) -> bytes:
    """A row deleted."""
    return heap_body(block(file, 7, database=database), struct.pack("=IHBB", 0, offset, 0, 0))


def class_row(oid: int, name: str, file: int, *, kind: str = "r", schema: int = 2200) -> bytes:
    """The first bytes of a row of pg_class in version 18, and some more."""
    row = bytearray(140)
    struct.pack_into("=I64sI", row, 0, oid, name.encode(), schema)
    struct.pack_into("=III", row, 88, file, 0, 0)
    row[119] = ord(kind)
    return bytes(row)


def insert_body(catalog: int, row: bytes, place: tuple[int, int]) -> bytes:
    """A row of a catalog inserted, logged whole."""
    logged = struct.pack("=HHB", 0, 0, 24) + b"\0" + row
    return heap_body(block(catalog, place[0], logged), struct.pack("=HB", place[1], 0))


def update_body(
    catalog: int, old: bytes, new: bytes, places: tuple[tuple[int, int], tuple[int, int]]
) -> bytes:
    """A row updated within its page: only the bytes that differ are logged."""
    prefix = next(i for i in range(len(old)) if old[i] != new[i])
    suffix = next(i for i in range(len(old)) if old[-1 - i] != new[-1 - i])
    middle = new[prefix : len(new) - suffix]
    logged = struct.pack("=HH", prefix, suffix) + struct.pack("=HHB", 0, 0, 24) + b"\0" + middle
    main = struct.pack("=IHBBIH", 0, places[0][1], 0, 0x60, 0, places[1][1])
    return heap_body(block(catalog, places[1][0], logged), main)


def commit_data(
    time: int,
    *,
    children: tuple[int, ...] = (),
    files: tuple[int, ...] = (),
    dropped: tuple[int, ...] = (),
    invalidations: int = 1,
) -> bytes:
    """Main data of a commit of version 18 (info 0x80) that unlinks and drops."""
    xinfo = 0x01 | (0x02 if children else 0) | (0x04 if files else 0) | (0x100 if dropped else 0)
    data = struct.pack("=II", DATABASE, SPACE)
    if children:
        data += struct.pack(f"={1 + len(children)}I", len(children), *children)
    if files:
        data += struct.pack("=I", len(files))
        data += b"".join(struct.pack("=III", SPACE, DATABASE, file) for file in files)
    if dropped:
        data += struct.pack("=I", len(dropped))
        data += b"".join(struct.pack("=iIII", 2, DATABASE, oid, 0) for oid in dropped)
    if invalidations:
        xinfo |= 0x08
        data += struct.pack("=I", invalidations) + bytes(16 * invalidations)
    return struct.pack("=qI", time, xinfo) + data
