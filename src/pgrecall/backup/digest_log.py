"""Where the digests of each file's blocks went: spans as the workers stored them."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

from pgrecall.backup.units import PIECE_BYTES
from pgrecall.codec.block_digests import BLOCK_BYTES, block_count
from pgrecall.codec.crc import crc32c_combine
from pgrecall.model.manifest import DigestSpan
from pgrecall.repository.block_digests import DigestSink

_RECORD = struct.Struct("<IQIIII")
_NONE = 0xFFFFFFFF


class DigestLog:
    """One worker's digests; for one thread. A span ends with a file, or its piece of 64 MiB."""

    def __init__(self, sink: DigestSink) -> None:
        self._sink = sink
        self._spans = bytearray()
        self._pending = bytearray()
        self._file = -1
        self._start = self._end = self._crc = 0

    def add(self, file: int, offset: int, length: int, records: bytearray, crc: int) -> None:
        """Note the records of ``length`` bytes of a file from ``offset``; ``crc`` of them all."""
        if file == self._file and offset == self._end and offset % PIECE_BYTES:
            self._crc = crc32c_combine(self._crc, crc, length)
            self._pending += records
        else:
            self._close()
            self._file, self._start, self._crc = file, offset, crc
            self._pending = records
        self._end = offset + length

    def finish(self) -> None:
        """Store what is pending."""
        self._close()
        self._sink.finish()

    def spans(self) -> bytearray:
        """Everything that was stored."""
        return self._spans

    def _close(self) -> None:
        if self._file < 0:
            return
        count = block_count(self._end - self._start)
        number, first = self._sink.add(self._pending)
        self._spans += _RECORD.pack(self._file, self._start, number, first, count, self._crc)
        self._file = -1


class DigestIndex:
    """The spans of all workers, found by file; a file of which a block is missing has none."""

    def __init__(self, logs: Sequence[DigestLog], file_count: int) -> None:
        self._spans = bytearray().join(log.spans() for log in logs)
        self._first = array("I", [_NONE]) * file_count
        self._next = array("I", [_NONE]) * (len(self._spans) // _RECORD.size)
        for number, (file, *_) in enumerate(_RECORD.iter_unpack(self._spans)):
            self._next[number] = self._first[file]
            self._first[file] = number

    def of(self, file: int, size: int) -> tuple[DigestSpan, ...]:
        """The spans of a file of ``size`` bytes, in order."""
        found = []
        number = self._first[file]
        while number != _NONE:
            found.append(_RECORD.unpack_from(self._spans, number * _RECORD.size))
            number = self._next[number]
        found.sort(key=lambda span: int(span[1]))
        spans = []
        end = 0
        for _, offset, source, first, count, crc in found:
            if offset != end * BLOCK_BYTES:
                return ()
            end += count
            spans.append(DigestSpan(source, first, count, crc))
        return tuple(spans) if end == block_count(size) else ()
