"""The few WAL records that matter to a recovery target, from their bytes.

Sources: PostgreSQL's access/xlogrecord.h, access/xact.h, xactdesc.c,
access/xlog_internal.h, commands/tablespace.h and catalog/pg_control.h, versions 13 to 18. Integers
are in the byte order of the machine that wrote them, which must be this one's.
LIGHT.
"""

from __future__ import annotations

import struct

from pgrecall.model.wal_index import (
    Checkpoint,
    EndOfRecovery,
    ParameterChange,
    RestorePoint,
    TablespaceCreation,
)

RECORD_HEADER_BYTES = 24
RECORD_CRC_OFFSET = 20
MAXIMUM_RECORD_BYTES = 1020 << 20

RM_XLOG = 0
RM_XACT = 1
RM_TABLESPACE = 5

CHECKPOINT_SHUTDOWN = 0x00
CHECKPOINT_ONLINE = 0x10
SWITCH = 0x40
PARAMETER_CHANGE = 0x60
RESTORE_POINT = 0x70
END_OF_RECOVERY = 0x90
SPECIALS = frozenset(
    (CHECKPOINT_SHUTDOWN, CHECKPOINT_ONLINE, PARAMETER_CHANGE, RESTORE_POINT, END_OF_RECOVERY)
)
TABLESPACE_CREATED = 0x05
"""Stands for a creation of a tablespace; no operation of XLOG: their low halves are 0."""
MAXIMUM_SPECIAL_BYTES = 1040

_COMMIT, _ABORT, _COMMIT_PREPARED, _ABORT_PREPARED = 0x00, 0x20, 0x30, 0x40
_COMMITS = frozenset((_COMMIT, _COMMIT_PREPARED))
_PREPARED = frozenset((_COMMIT_PREPARED, _ABORT_PREPARED))
_ENDS = frozenset((_COMMIT, _ABORT, _COMMIT_PREPARED, _ABORT_PREPARED))
_XACT_OPERATION = 0x70
_HAS_XINFO = 0x80

_BLOCK_DATA_SHORT, _BLOCK_DATA_LONG, _BLOCK_ORIGIN, _BLOCK_TOP_XID = 255, 254, 253, 252

# Parts of a commit or abort record that precede the two-phase part: bit, bytes of an item.
_XINFO_DATABASE, _XINFO_TWOPHASE = 0x01, 0x10
_XINFO_LISTS = ((0x02, 4), (0x04, 12), (0x100, 0), (0x08, 16))
_MAGIC_17 = 0xD116

_U32 = struct.Struct("=I")
_I64 = struct.Struct("=q")
_POINT = struct.Struct("=q64s")
_PARAMETERS = struct.Struct("=6i")
_RECOVERY = struct.Struct("=qII")
_CHECKPOINT = struct.Struct("=QII48xq")

Special = RestorePoint | ParameterChange | Checkpoint | EndOfRecovery | TablespaceCreation


def main_data(record: bytes, total_bytes: int) -> tuple[int, int] | None:
    """Offset and length of the main data of a record that refers to no block.

    ``record`` may hold only the first of its ``total_bytes``. None when it has
    another shape, or ends before the main data begins.
    """
    at = RECORD_HEADER_BYTES
    size = min(len(record), total_bytes)
    while at < size:
        kind = record[at]
        at += 1
        if kind == _BLOCK_DATA_SHORT and size - at >= 1:
            length = record[at]
            return (at + 1, length) if length == total_bytes - at - 1 else None
        if kind == _BLOCK_DATA_LONG and size - at >= 4:
            length = _U32.unpack_from(record, at)[0]
            return (at + 4, length) if length == total_bytes - at - 4 else None
        if kind == _BLOCK_ORIGIN:
            at += 2
        elif kind == _BLOCK_TOP_XID:
            at += 4
        else:
            return None
    return None


def ends_transaction(record: bytes) -> bool:
    """True for a commit or abort record, also of a prepared transaction; its header is enough."""
    return record[17] == RM_XACT and record[16] & _XACT_OPERATION in _ENDS


def creates_tablespace(record: bytes) -> bool:
    """True for the record of CREATE TABLESPACE; its header is enough."""
    return record[17] == RM_TABLESPACE and record[16] & 0xF0 == 0


def may_matter(record: bytes) -> bool:
    """False when these first bytes of a record prove that no plan of a recovery asks for it."""
    if len(record) < RECORD_HEADER_BYTES:
        return True
    if record[17] == RM_XLOG:
        return record[16] & 0xF0 in SPECIALS
    return ends_transaction(record) or creates_tablespace(record)


def transaction_end(
    record: bytes, total_bytes: int, magic: int
) -> tuple[int, int | None, bool] | None:
    """``(time, xid, is_commit)`` of a commit or abort record.

    ``record`` may hold only its first bytes; then xid is None when it lies
    beyond them. ``magic`` of the page header tells the layout. xid is 0 when
    the layout is unknown. None when it is no such record or the time lies
    beyond the bytes.
    """
    operation = record[16] & _XACT_OPERATION
    place = main_data(record, total_bytes) if operation in _ENDS else None
    if place is None or place[1] < 8 or len(record) < place[0] + 8:
        return None
    offset, length = place
    time = _I64.unpack_from(record, offset)[0]
    xid: int | None
    if operation not in _PREPARED:
        xid = _U32.unpack_from(record, 4)[0]
    elif len(record) < offset + length:
        xid = None
    else:
        xid = _prepared_xid(record[offset : offset + length], record[16], magic)
    return time, xid, operation in _COMMITS


def _prepared_xid(data: bytes, info: int, magic: int) -> int:
    """The xid in the two-phase part (order of parts as in xactdesc.c); 0 if it cannot be read."""
    length = len(data)
    if not info & _HAS_XINFO or length < 12:
        return 0
    xinfo = _U32.unpack_from(data, 8)[0]
    at = 12 + (8 if xinfo & _XINFO_DATABASE else 0)
    for bit, item_bytes in _XINFO_LISTS:
        if not xinfo & bit:
            continue
        if length - at < 4:
            return 0
        # An item of the dropped-statistics list grew from 12 to 16 bytes in version 18.
        size = item_bytes or (16 if magic > _MAGIC_17 else 12)
        at += 4 + _U32.unpack_from(data, at)[0] * size
        if at > length:
            return 0
    if not xinfo & _XINFO_TWOPHASE or length - at < 4:
        return 0
    return int(_U32.unpack_from(data, at)[0])


def parse_special(lsn: int, end_lsn: int, operation: int, data: bytes) -> Special | None:
    """The value of an XLOG record of SPECIALS, or of TABLESPACE_CREATED, from its main data.

    None when that is too short.
    """
    if operation == TABLESPACE_CREATED and len(data) > _U32.size:
        path, end, _ = data[_U32.size :].partition(b"\0")
        location = path.decode("utf-8", "surrogateescape")
        oid = _U32.unpack_from(data)[0]
        return TablespaceCreation(lsn, oid, location, is_whole=bool(end))
    if operation == RESTORE_POINT and len(data) >= _POINT.size:
        time, name = _POINT.unpack_from(data)
        text = name.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        return RestorePoint(text, lsn, end_lsn, time)
    if operation == PARAMETER_CHANGE and len(data) >= _PARAMETERS.size:
        return ParameterChange(lsn, _PARAMETERS.unpack_from(data))
    if operation == END_OF_RECOVERY and len(data) >= _RECOVERY.size:
        return EndOfRecovery(lsn, *_RECOVERY.unpack_from(data))
    is_checkpoint = operation in (CHECKPOINT_SHUTDOWN, CHECKPOINT_ONLINE)
    if is_checkpoint and len(data) >= _CHECKPOINT.size:
        redo, timeline, previous, seconds = _CHECKPOINT.unpack_from(data)
        shutdown = operation == CHECKPOINT_SHUTDOWN
        return Checkpoint(lsn, redo, (timeline, previous), seconds, shutdown=shutdown)
    return None
