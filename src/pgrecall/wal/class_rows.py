"""Rows of pg_class as bytes, up to their relkind: from WAL, from name maps, one over another.

An UPDATE within a page logs only the bytes that differ, so that what a row says afterwards is the
old row's bytes and those. Pure. Source: PostgreSQL's catalog/pg_class.h, versions 13 to 18.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pgrecall.model.name_maps import NamedRelation
from pgrecall.model.wal_knowledge import ROW_BYTES, CatalogChange

_HEAD = struct.Struct("=I64sI")
_FILE_AT = 88
_FILE = struct.Struct("=III")
_KIND_13, _KIND_18 = 115, 119
_MAGIC_17 = 0xD116


class ClassRow(NamedTuple):
    """What a row of pg_class says; ``pages`` as the planner was told last, 0 after a TRUNCATE."""

    oid: int
    name: str
    schema_oid: int
    file: int
    tablespace: int
    pages: int
    kind: str
    is_temporary: bool


def parse_row(raw: bytes, magic: int) -> ClassRow | None:
    """The fields of a row's first bytes; None when they are too few or make no sense."""
    kind_at = _kind_at(magic)
    if len(raw) <= kind_at:
        return None
    oid, name, schema_oid = _HEAD.unpack_from(raw)
    file, tablespace, pages = _FILE.unpack_from(raw, _FILE_AT)
    text = name.split(b"\0", 1)[0].decode("utf-8", "replace")
    if not oid or not text:
        return None
    is_temporary = raw[kind_at - 1] == ord("t")
    return ClassRow(oid, text, schema_oid, file, tablespace, pages, chr(raw[kind_at]), is_temporary)


def row_of_map(relation: NamedRelation, magic: int) -> bytes:
    """The bytes that a relation of a name map has in pg_class; what a map does not tell is zero."""
    raw = bytearray(ROW_BYTES)
    _HEAD.pack_into(raw, 0, relation.oid, relation.name.encode(), relation.schema_oid)
    _FILE.pack_into(raw, _FILE_AT, relation.written_file, relation.tablespace, 0)
    raw[_kind_at(magic)] = ord(relation.kind)
    return bytes(raw)


def changed_row(old: bytes | None, change: CatalogChange) -> bytes | None:
    """The row after an INSERT or UPDATE; None when it cannot be told."""
    if not change.skip:
        # Without a byte: the page's image could not be read.
        return change.data or None
    if old is None:
        return None
    row = bytearray(old)
    end = min(change.skip + len(change.data), len(row))
    row[change.skip : end] = change.data[: max(0, end - change.skip)]
    return bytes(row)


def _kind_at(magic: int) -> int:
    return _KIND_18 if magic > _MAGIC_17 else _KIND_13
