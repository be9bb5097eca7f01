"""Where the digests of each file's blocks are: spans that workers stored, and the base's own."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from pgrecall.backup.base import BasePiece
from pgrecall.backup.run_log import renumber_files
from pgrecall.codec.block_digests import block_count
from pgrecall.codec.crc import crc32c_combine
from pgrecall.errors import BackupError
from pgrecall.model.manifest import DigestSpan
from pgrecall.repository.block_digests import DigestSink

_RECORD = struct.Struct("<IIQQIII")
_NONE = 0xFFFFFFFF
_OWN, _LENT = 0, 1


class FileDigests(NamedTuple):
    """A file's size, its CRC-32C, and its spans, each with whether it is the base's."""

    size: int
    crc: int
    spans: tuple[tuple[DigestSpan, bool], ...]


class DigestLog:
    """One worker's digests; for one thread. A span ends with a file, or its piece of 64 MiB."""

    def __init__(self, sink: DigestSink) -> None:
        self._sink = sink
        self._spans = bytearray()
        self._pending = bytearray()
        self._file = -1
        self._start = self._end = self._crc = 0
        self._base: BasePiece | None = None
        self._is_same = False

    def begin(self, file: int, offset: int, base: BasePiece | None) -> None:
        """Begin a file, or its piece at ``offset``; ``base``: what the base has in its place."""
        self._close()
        self._file, self._start, self._end, self._crc = file, offset, offset, 0
        self._pending = bytearray()
        self._base, self._is_same = base, True

    def add(self, length: int, records: bytes | bytearray, crc: int, *, is_same: bool) -> None:
        """Note the records of the next ``length`` bytes; ``is_same``: as the base has them."""
        self._crc = crc32c_combine(self._crc, crc, length) if self._end > self._start else crc
        self._pending += records
        self._end += length
        self._is_same &= is_same

    def lend(self, file: int, offset: int, length: int, span: DigestSpan) -> None:
        """A piece was not read, because it is as the base has it."""
        self._close()
        self._file, self._start = file, offset
        self._note(_LENT, length, span)
        self._file = -1

    def finish(self) -> None:
        """Store what is pending."""
        self._close()
        self._sink.finish()

    def renumber(self, places: array[int]) -> None:
        """Give every file the number that ``places`` has at its old one."""
        renumber_files(self._spans, _RECORD.size, places)

    def spans(self) -> bytearray:
        """Everything that was noted."""
        return self._spans

    def _close(self) -> None:
        if self._file < 0:
            return
        length = self._end - self._start
        base = self._base
        if base is not None and self._is_same and length == base.length:
            self._note(_LENT, length, base.span)
        elif length:
            source, first = self._sink.add(self._pending)
            self._note(_OWN, length, DigestSpan(source, first, block_count(length), self._crc))
        self._file = -1

    def _note(self, whose: int, length: int, span: DigestSpan) -> None:
        self._spans += _RECORD.pack(
            self._file, whose, self._start, length, span.source, span.first, span.crc32c
        )


class DigestIndex:
    """The spans of all workers, found by file."""

    def __init__(self, logs: Sequence[DigestLog], file_count: int) -> None:
        self._spans = bytearray().join(log.spans() for log in logs)
        self._first = array("I", [_NONE]) * file_count
        self._next = array("I", [_NONE]) * (len(self._spans) // _RECORD.size)
        for number, (file, *_) in enumerate(_RECORD.iter_unpack(self._spans)):
            self._next[number] = self._first[file]
            self._first[file] = number

    def of(self, file: int) -> FileDigests:
        """What is known of a file; the pieces that were read lie side by side."""
        found = []
        number = self._first[file]
        while number != _NONE:
            found.append(_RECORD.unpack_from(self._spans, number * _RECORD.size))
            number = self._next[number]
        found.sort(key=lambda span: int(span[2]))
        spans = []
        size = crc = 0
        for _, whose, offset, length, source, first, span_crc in found:
            if offset != size:
                raise BackupError(f"a file of the backup was read with a gap at byte {size}")
            crc = crc32c_combine(crc, span_crc, length) if offset else span_crc
            size += length
            spans.append((DigestSpan(source, first, block_count(length), span_crc), whose == _LENT))
        return FileDigests(size, crc, tuple(spans))
