"""One worker of a streamed backup: check pages, compare, compress, append to its own pack.

It is given units that lie in memory. What it learns of digests it hands back, since the pieces of
a file, whose digests belong together, go to any of the workers.
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

from pgrecall.backup.base import Base, BasePiece
from pgrecall.backup.changes import changed_ranges
from pgrecall.backup.copy_source import PageShape, WorkerResult
from pgrecall.backup.page_check import PageInspector
from pgrecall.backup.units import PIECE_BYTES
from pgrecall.codec.block_digests import BLOCK_BYTES, as_records, block_records
from pgrecall.model.relation_files import first_block
from pgrecall.repository.block_digests import DigestSink, DigestStore
from pgrecall.repository.pack_sink import PackSink
from pgrecall.repository.packs import FRAME_BYTES

UNIT_BYTES = 8 << 20


class Slice(NamedTuple):
    """``length`` bytes of a file from ``offset``, at ``start`` of a unit's buffer.

    At most FRAME_BYTES, within one such part of the file; the file's end or that part's.
    """

    file: int
    path: bytes
    offset: int
    start: int
    length: int


class StreamUnit:
    """Up to UNIT_BYTES that came one behind the other; used again and again."""

    __slots__ = ("buffer", "slices", "used")

    def __init__(self) -> None:
        self.buffer = memoryview(mmap.mmap(-1, UNIT_BYTES))
        self.used = 0
        self.slices: list[Slice] = []

    def clear(self) -> None:
        """Make it empty."""
        self.used = 0
        self.slices = []


class SliceDigests(NamedTuple):
    """The digests of a slice; ``base``: what the base has of its piece, ``is_same`` as there."""

    file: int
    offset: int
    length: int
    records: bytearray
    crc: int
    is_same: bool
    base: BasePiece | None


class StreamSource(NamedTuple):
    """What all workers go by; ``seed`` of the block digests, that of the base if there is one."""

    base: Base | None
    inspector: PageInspector | None
    pages: PageShape
    seed: int


class StreamWorker:
    """Takes units; for one thread at a time. ``close`` must be called at the end."""

    def __init__(self, source: StreamSource, sink: PackSink, digests: DigestStore) -> None:
        self.result = WorkerResult(DigestSink(digests), source.pages.page_bytes)
        self._source = source
        self._sink = sink
        self._buffer = memoryview(mmap.mmap(-1, FRAME_BYTES))
        self._used = 0
        self._kept: list[tuple[Slice, int, int]] = []

    def copy(self, unit: StreamUnit) -> list[SliceDigests]:
        """Keep of a unit what the base lacks; the digests of its slices, in their order."""
        return [
            self._slice(one, unit.buffer[one.start : one.start + one.length]) for one in unit.slices
        ]

    def finish(self) -> None:
        """Write what is still in the buffer, and hand the last pack over."""
        self._flush()
        self._sink.finish_pack()

    def close(self) -> None:
        """Drop an unfinished pack."""
        self._sink.discard()
        self._buffer.release()

    def _slice(self, one: Slice, data: memoryview) -> SliceDigests:
        self._check(one, data)
        records, crc = block_records(data, self._source.seed)
        self.result.bytes += one.length
        place = one.offset % PIECE_BYTES
        base = self._source.base
        piece = base.piece(one.file, one.offset - place) if base is not None else None
        if piece is None:
            self._keep(one, 0, data)
            return SliceDigests(one.file, one.offset, one.length, records, crc, False, None)
        before = piece.records[place // BLOCK_BYTES :]
        changed = changed_ranges(as_records(records), before, one.length)
        for begin, end in changed:
            self._keep(one, begin, data[begin:end])
        return SliceDigests(one.file, one.offset, one.length, records, crc, not changed, piece)

    def _check(self, one: Slice, data: memoryview) -> None:
        first = first_block(one.path, self._source.pages.relation_blocks)
        if first is None:
            return
        page_bytes = self._source.pages.page_bytes
        whole = len(data) - len(data) % page_bytes
        if whole != len(data):
            self.result.odd_sizes.add(one.file)
        if self._source.inspector is None or not whole:
            return
        block = first + one.offset // page_bytes
        bad = self._source.inspector.judge(data[:whole], block)
        self.result.pages_checked += whole // page_bytes
        if bad:
            self.result.bad.setdefault(one.file, []).extend(bad)

    def _keep(self, one: Slice, begin: int, data: memoryview) -> None:
        """``data``, which begins ``begin`` bytes into the slice, goes into the backup."""
        if self._used + len(data) > FRAME_BYTES:
            self._flush()
        self._buffer[self._used : self._used + len(data)] = data
        self._kept.append((one, one.offset + begin, len(data)))
        self._used += len(data)
        self.result.new_bytes += len(data)

    def _flush(self) -> None:
        if not self._used:
            return
        slices = [(one.path, offset, length) for one, offset, length in self._kept]
        pack, frame = self._sink.add(self._buffer[: self._used], slices)
        place = 0
        for one, offset, length in self._kept:
            self.result.runs.add(one.file, offset, length, place=(pack, frame, place))
            place += length
        self._used = 0
        self._kept = []
