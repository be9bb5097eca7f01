"""Reading WAL segments: the header of the first page, the index, the transactions that end.

The walk itself is C (``_native``) or, without it, ``wal_scan_python``; both
prove every record by its CRC-32C and its link to the record before, so that
what a recycled file holds behind its end is never taken for WAL.

Source: PostgreSQL's access/xlog_internal.h and access/xlogrecord.h, versions
13 to 18. LIGHT.
"""

from __future__ import annotations

import struct

from pgrecall.codec.native import HAS_NATIVE
from pgrecall.codec.wal_knowledge import bounded, parse_knowledge
from pgrecall.codec.wal_records import RECORD_HEADER_BYTES, Special, may_matter, parse_special
from pgrecall.codec.wal_telling import KEPT_TELLING, TELLS_NOTHING, tells
from pgrecall.errors import WalFormatError
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import is_segment_size
from pgrecall.model.wal_index import (
    MAXIMUM_CHECKPOINTS,
    MAXIMUM_RESTORE_POINTS,
    STOPPED_AT_END,
    STOPPED_AT_INVALID,
    STOPPED_AT_SWITCH,
    Checkpoint,
    EndOfRecovery,
    ParameterChange,
    RestorePoint,
    TablespaceCreation,
    Times,
    Transaction,
    Unfinished,
    WalIndex,
)
from pgrecall.model.wal_knowledge import MAXIMUM_CATALOG_EVENTS, SegmentKnowledge

if HAS_NATIVE:
    from pgrecall.codec._native import scan_wal
else:
    from pgrecall.codec.wal_scan_python import scan_wal

Buffer = bytes | bytearray | memoryview

LONG_HEADER_BYTES = 40
SHORT_HEADER_BYTES = 24
WHOLE_CONTRECORD_BYTES = 256
"""The rest of a record begun earlier is kept whole in an index up to so many bytes."""
CONTRECORD_HEAD_BYTES = 48
"""Of a longer rest so much is kept: enough for the header, xid and time of a commit or abort."""
UNFINISHED_HEAD_BYTES = 8192
"""So much of a record that may matter and goes on in the next segment is kept in an index."""

_IS_CONTRECORD = 0x0001
_IS_LONG = 0x0002
_ALL_FLAGS = 0x000F
_LONG_HEADER = struct.Struct("=HHIQI4xQII")
_TRANSACTION = struct.Struct("=QQqII")
_STOPS = (STOPPED_AT_END, STOPPED_AT_SWITCH, STOPPED_AT_INVALID)
_NOTHING_CARRIED = (0, 0, 0, b"")
_NO_LIMIT = (1 << 32) - 1


class SegmentHeader:
    """What the first page of a segment says of itself.

    ``magic`` numbers PostgreSQL's WAL format (0xD106 is 13, 0xD10D 14, 0xD110
    15, 0xD113 16, 0xD116 17, 0xD118 18), ``info`` the page's flags,
    ``page_address`` the LSN of the segment's first byte, ``block_bytes`` is
    XLOG_BLCKSZ, ``contrecord_bytes`` what remains of a record begun earlier.
    """

    __slots__ = (
        "block_bytes",
        "contrecord_bytes",
        "info",
        "magic",
        "page_address",
        "segment_bytes",
        "system_identifier",
        "timeline",
    )

    def __init__(self, data: Buffer) -> None:
        """Unpack the first 40 bytes; see read_segment_header for the checks."""
        (
            self.magic,
            self.info,
            self.timeline,
            address,
            remaining,
            self.system_identifier,
            self.segment_bytes,
            self.block_bytes,
        ) = _LONG_HEADER.unpack_from(data)
        self.page_address = Lsn(address)
        self.contrecord_bytes = remaining if self.info & _IS_CONTRECORD else 0


class ScanResult:
    """``header`` and ``index`` of a segment; ``unfinished`` as the index has it, but unabridged."""

    __slots__ = ("header", "index", "unfinished")

    def __init__(
        self, header: SegmentHeader, index: WalIndex, unfinished: Unfinished | None
    ) -> None:
        self.header = header
        self.index = index
        self.unfinished = unfinished


def read_segment_header(data: Buffer) -> SegmentHeader:
    """The long page header at the beginning of a segment (40 bytes are enough).

    Raises WalFormatError when this is not the beginning of a WAL segment of a
    machine with this byte order.
    """
    if len(data) < LONG_HEADER_BYTES:
        raise WalFormatError(f"a WAL segment begins with 40 bytes of header; here are {len(data)}")
    header = SegmentHeader(data)
    problem = ""
    if header.magic >> 8 != 0xD1:
        problem = f"its magic number is {header.magic:#06x}, PostgreSQL's are 0xd1.."
    elif not header.info & _IS_LONG or header.info & ~_ALL_FLAGS:
        problem = f"the flags of its first page are {header.info:#06x}"
    elif header.timeline == 0:
        problem = "its timeline is 0"
    elif not is_segment_size(header.segment_bytes):
        problem = f"it claims segments of {header.segment_bytes} bytes"
    elif header.block_bytes not in (1024, 2048, 4096, 8192, 16384, 32768, 65536):
        problem = f"it claims WAL blocks of {header.block_bytes} bytes"
    elif header.page_address % header.segment_bytes:
        problem = f"its page address {header.page_address} begins no segment"
    if problem:
        raise WalFormatError(
            f"this is no WAL segment: {problem}",
            hint="a damaged file, an empty one, or one of a machine with another byte order",
        )
    return header


def scan_segment(data: Buffer, start: int) -> ScanResult:
    """Walk over the records of one whole segment and make its index.

    ``data`` is the file's content, ``start`` the LSN of its first byte.
    Raises WalFormatError when the header, the length or ``start`` do not fit
    each other. Bytes behind the end of valid WAL are no error:
    ``index.stopped_at`` and ``index.end_lsn`` tell.
    """
    header = _matching_header(data, start)
    (
        stop,
        timelines,
        (end_lsn, first, last, first_previous),
        contrecord_bytes,
        unfinished_fields,
        _,
        (record_count, commits, aborts),
        commit_times,
        end_times,
        xids,
        specials,
        _,
        events,
        deleted,
        left_out,
    ) = scan_wal(data, start, header.block_bytes, False, _NOTHING_CARRIED, MAXIMUM_CATALOG_EVENTS)
    index = WalIndex(start, header.segment_bytes, header.timeline)
    index.magic, index.page_bytes = header.magic, header.block_bytes
    index.last_timeline = timelines[1]
    index.end_lsn = Lsn(end_lsn)
    if first:
        index.first_record_lsn, index.last_record_lsn = Lsn(first), Lsn(last)
        index.first_previous_lsn = Lsn(first_previous) if first_previous else None
    index.record_count, index.commit_count, index.abort_count = record_count, commits, aborts
    index.commit_times = Times(*commit_times) if commits else None
    index.end_times = Times(*end_times) if commits + aborts else None
    index.least_xid, index.greatest_xid = xids
    index.stopped_at = _STOPS[stop]
    index.contrecord_bytes = contrecord_bytes
    is_short = contrecord_bytes <= WHOLE_CONTRECORD_BYTES
    kept = contrecord_bytes if is_short else CONTRECORD_HEAD_BYTES
    index.contrecord_head = bytes(data[LONG_HEADER_BYTES : LONG_HEADER_BYTES + kept])
    unfinished = Unfinished(*unfinished_fields) if unfinished_fields[0] else None
    index.unfinished = unfinished and _abridged(unfinished, header.magic)
    _add_specials(index, [parse_special(*special) for special in specials])
    index.knowledge = bounded(parse_knowledge(header.magic, events, deleted, left_out))
    return ScanResult(header, index, unfinished)


def read_transactions(
    data: Buffer, start: int, carried: Unfinished | None = None
) -> tuple[list[Transaction], Unfinished | None]:
    """The transactions that end in a segment, in WAL order, and what it leaves unfinished.

    With the ``carried`` unfinished record of the segment before (from this
    function or ScanResult, not an index), a transaction whose record ends
    here is among them. Raises WalFormatError as scan_segment does.
    """
    header = _matching_header(data, start)
    before = _NOTHING_CARRIED
    if carried is not None:
        before = (carried.lsn, carried.total_bytes, carried.have_bytes, carried.head)
    result = scan_wal(data, start, header.block_bytes, True, before, 0)
    ended = [
        Transaction(lsn, end_lsn, xid, time, bool(is_commit))
        for lsn, end_lsn, time, xid, is_commit in _TRANSACTION.iter_unpack(result[11])
    ]
    return ended, Unfinished(*result[4]) if result[4][0] else None


def read_restore_points(data: Buffer, start: int) -> tuple[RestorePoint, ...]:
    """Every restore point of a segment, for where its index says that there are more.

    Raises WalFormatError as scan_segment does.
    """
    header = _matching_header(data, start)
    result = scan_wal(data, start, header.block_bytes, False, _NOTHING_CARRIED, 0)
    specials = (parse_special(*special) for special in result[10])
    return tuple(special for special in specials if isinstance(special, RestorePoint))


def read_knowledge(
    data: Buffer, start: int, carried: Unfinished | None = None
) -> tuple[SegmentKnowledge, list[Transaction], Unfinished | None]:
    """What a segment tells of tables, without a bound; its transactions; what it leaves unfinished.

    ``carried`` as in read_transactions. Raises WalFormatError as scan_segment does.
    """
    header = _matching_header(data, start)
    before = _NOTHING_CARRIED
    if carried is not None:
        before = (carried.lsn, carried.total_bytes, carried.have_bytes, carried.head)
    result = scan_wal(data, start, header.block_bytes, True, before, _NO_LIMIT)
    ended = [
        Transaction(lsn, end_lsn, xid, time, bool(is_commit))
        for lsn, end_lsn, time, xid, is_commit in _TRANSACTION.iter_unpack(result[11])
    ]
    knowledge = parse_knowledge(header.magic, result[12], result[13], result[14])
    return knowledge, ended, Unfinished(*result[4]) if result[4][0] else None


def _matching_header(data: Buffer, start: int) -> SegmentHeader:
    header = read_segment_header(data)
    if header.page_address != start:
        raise WalFormatError(
            f"the segment's first page says {header.page_address}, expected was {Lsn(start)}",
            hint="the file was recycled or renamed; it is not the segment that its name says",
        )
    if len(data) != header.segment_bytes:
        raise WalFormatError(
            f"the segment at {Lsn(start)} has {len(data)} bytes in place of {header.segment_bytes}",
            hint="the file is truncated, or was read while it was written",
        )
    return header


def _abridged(unfinished: Unfinished, magic: int) -> Unfinished:
    kept = RECORD_HEADER_BYTES
    if may_matter(unfinished.head):
        kept = UNFINISHED_HEAD_BYTES
    elif tells(unfinished.head, magic)[0] != TELLS_NOTHING:
        kept = KEPT_TELLING
    return Unfinished(
        unfinished.lsn, unfinished.total_bytes, unfinished.have_bytes, unfinished.head[:kept]
    )


def _add_specials(index: WalIndex, specials: list[Special | None]) -> None:
    points = [special for special in specials if isinstance(special, RestorePoint)]
    checkpoints = [special for special in specials if isinstance(special, Checkpoint)]
    index.restore_points = tuple(points[:MAXIMUM_RESTORE_POINTS])
    index.has_more_restore_points = len(points) > MAXIMUM_RESTORE_POINTS
    index.checkpoints = tuple(checkpoints[-MAXIMUM_CHECKPOINTS:])
    index.parameter_changes = tuple(s for s in specials if isinstance(s, ParameterChange))
    index.ends_of_recovery = tuple(s for s in specials if isinstance(s, EndOfRecovery))
    index.tablespaces = tuple(s for s in specials if isinstance(s, TablespaceCreation))
