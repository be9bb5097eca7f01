"""One worker of the copy: read, check pages, compress, digest, append to its own pack.

Each worker owns a buffer of one frame, a compressor and an open pack, so that
nothing is locked for a byte. Everything heavy releases the GIL.
"""

from __future__ import annotations

import mmap
import os
import threading
from typing import NamedTuple

from pgrecall.backup.base import Base, BasePiece
from pgrecall.backup.changes import changed_ranges
from pgrecall.backup.digest_log import DigestLog
from pgrecall.backup.pack_sink import PackSink
from pgrecall.backup.page_check import BadPage, PageInspector
from pgrecall.backup.run_log import RunLog
from pgrecall.backup.units import PIECE_BYTES, Unit
from pgrecall.codec.block_digests import BLOCK_BYTES, as_records, block_records
from pgrecall.errors import DataDirectoryError, PostgresRightsError
from pgrecall.model.file_table import FileTable
from pgrecall.model.relation_files import first_block
from pgrecall.repository.block_digests import DigestSink, DigestStore
from pgrecall.repository.packs import FRAME_BYTES

# Of the buffer, so much must be free before more of a file is read behind what it holds.
_LEAST_ROOM = FRAME_BYTES // 2


class PageShape(NamedTuple):
    """Bytes of a page, and how many of them a whole relation file (1 GiB) has."""

    page_bytes: int
    relation_blocks: int


class CopySource:
    """What the workers copy from.

    ``seed``: of the block digests. ``base``: the backup whose blocks are not stored again, with
    the same seed. ``stopped`` is set when the copy has failed: workers then end at the next frame.
    """

    def __init__(
        self,
        root: bytes,
        table: FileTable,
        inspector: PageInspector | None,
        pages: PageShape,
        *,
        seed: int,
        base: Base | None = None,
    ) -> None:
        self.stopped = threading.Event()
        self.seed = seed
        self.base = base
        self.root = root
        self.table = table
        self.inspector = inspector
        self.page_bytes = pages.page_bytes
        self.relation_blocks = pages.relation_blocks


class WorkerResult:
    """What one worker did: runs, digests, files that were gone, pages checked and those bad.

    ``bytes`` were read, ``new_bytes`` of them went into packs.
    """

    def __init__(self, digests: DigestSink, page_bytes: int) -> None:
        self.runs = RunLog(page_bytes)
        self.digests = DigestLog(digests)
        self.vanished: set[int] = set()
        self.bad: dict[int, list[BadPage]] = {}
        self.odd_sizes: set[int] = set()
        self.pages_checked = 0
        self.bytes = 0
        self.new_bytes = 0


class CopyWorker:
    """Copies units into packs; for one thread. ``close`` must be called at the end."""

    def __init__(self, source: CopySource, sink: PackSink, digests: DigestStore) -> None:
        self.result = WorkerResult(DigestSink(digests), source.page_bytes)
        self._source = source
        self._sink = sink
        self._buffer = memoryview(mmap.mmap(-1, FRAME_BYTES))
        self._used = 0
        self._slices: list[tuple[int, int, int]] = []
        self._base: BasePiece | None = None
        self._piece_offset = 0

    def copy(self, unit: Unit) -> int:
        """Copy one unit; returns the bytes that were read."""
        before = self.result.bytes
        if unit.is_batch:
            for index in unit.files:
                self._copy_small(index)
        else:
            self._copy_piece(unit.files[0], unit.offset, unit.length)
        return self.result.bytes - before

    def store(self, index: int, content: bytes) -> None:
        """Store ``content`` as the whole of a file that was read already (at most one frame)."""
        self._flush()
        self._buffer[: len(content)] = content
        self.result.digests.begin(index, 0, None)
        records, crc = block_records(self._buffer[: len(content)], self._source.seed)
        self.result.digests.add(len(content), records, crc, is_same=False)
        self._keep(index, 0, len(content))
        self.result.bytes += len(content)

    def finish(self) -> None:
        """Write what is still in the buffer, and hand the last pack and the digests over."""
        self._flush()
        self._sink.finish_pack()
        self.result.digests.finish()

    def close(self) -> None:
        """Drop an unfinished pack. The buffer goes when nothing looks at it any more.

        It is not closed here: after a failure, the frames of its traceback hold views of it, and
        closing would raise in its place.
        """
        self._sink.discard()
        self._buffer.release()

    def _copy_small(self, index: int) -> None:
        path = self._source.table.path(index)
        if self._used + self._source.table.sizes[index] >= FRAME_BYTES:
            self._flush()
        descriptor = self._open(path, index)
        if descriptor is None:
            return
        try:
            length = self._fill(descriptor, 0, FRAME_BYTES - self._used, path)
            if self._used + length == FRAME_BYTES and self._used:
                # It grew since the walk, and does not fit behind the others any more.
                self._flush()
                length = self._fill(descriptor, 0, FRAME_BYTES, path)
            if length == FRAME_BYTES:
                self._read_pieces(descriptor, index, path, 0, os.fstat(descriptor).st_size)
                return
            self._begin(index, 0)
            self._take(descriptor, index, path, 0, length)
        finally:
            os.close(descriptor)

    def _copy_piece(self, index: int, offset: int, length: int) -> None:
        path = self._source.table.path(index)
        descriptor = self._open(path, index)
        if descriptor is None:
            return
        try:
            self._read_pieces(descriptor, index, path, offset, length)
        finally:
            os.close(descriptor)

    def _read_pieces(
        self, descriptor: int, index: int, path: bytes, offset: int, length: int
    ) -> None:
        end = offset + length
        while offset < end and not self._source.stopped.is_set():
            if offset % PIECE_BYTES == 0:
                self._begin(index, offset)
            room = FRAME_BYTES - self._used
            if room < _LEAST_ROOM or self._base is None:
                self._flush()
                room = FRAME_BYTES
            piece_end = min(end, offset - offset % PIECE_BYTES + PIECE_BYTES)
            wanted = min(room - room % BLOCK_BYTES, piece_end - offset)
            got = self._fill(descriptor, offset, wanted, path)
            if got < wanted and end < self._source.table.sizes[index]:
                # Truncated meanwhile, and a later piece may be there again: replay of the WAL
                # sees to what belongs here. Zeros, as pg_basebackup has it.
                self._buffer[self._used + got : self._used + wanted] = bytes(wanted - got)
                got = wanted
            self._take(descriptor, index, path, offset, got)
            if got < wanted:
                return  # shorter than at the walk: truncated meanwhile, and replay knows
            offset += got

    def _begin(self, index: int, offset: int) -> None:
        """Begin a file, or its piece of PIECE_BYTES at ``offset``."""
        base = self._source.base
        self._base = base.piece(index, offset) if base is not None else None
        self._piece_offset = offset
        self.result.digests.begin(index, offset, self._base)

    def _fill(self, descriptor: int, offset: int, wanted: int, path: bytes) -> int:
        """Read up to ``wanted`` bytes behind what the buffer holds; fewer at the end only."""
        got = 0
        room = self._buffer[self._used : self._used + wanted]
        while got < wanted:
            try:
                count = os.preadv(descriptor, [room[got:]], offset + got)
            except OSError as error:
                raise self._unreadable(path, error) from error
            if count == 0:
                break
            got += count
        return got

    def _take(self, descriptor: int, index: int, path: bytes, offset: int, length: int) -> None:
        """Account for ``length`` bytes behind what the buffer holds; keep what the base lacks."""
        if length == 0:
            return
        data = self._buffer[self._used : self._used + length]
        self._check(data, index, path, descriptor, offset)
        records, crc = block_records(data, self._source.seed)
        self.result.bytes += length
        base = self._base
        if base is None:
            self._keep(index, offset, length)
            self.result.digests.add(length, records, crc, is_same=False)
            return
        first = (offset - self._piece_offset) // BLOCK_BYTES
        changed = changed_ranges(as_records(records), base.records[first:], length)
        start = self._used
        for begin, end in changed:
            # What is kept moves up to where what was kept before ends: never beyond itself.
            if start + begin != self._used:
                kept = self._buffer[self._used : self._used + end - begin]
                kept[:] = self._buffer[start + begin : start + end]
            self._keep(index, offset + begin, end - begin)
        self.result.digests.add(length, records, crc, is_same=not changed)

    def _keep(self, index: int, offset: int, length: int) -> None:
        """So many bytes behind what the buffer holds go into the backup."""
        self._slices.append((index, offset, length))
        self._used += length
        self.result.new_bytes += length

    def _check(
        self, data: memoryview, index: int, path: bytes, descriptor: int, offset: int
    ) -> None:
        first = first_block(path, self._source.relation_blocks)
        if first is None:
            return
        inspector = self._source.inspector
        page_bytes = self._source.page_bytes
        whole = len(data) - len(data) % page_bytes
        if whole != len(data):
            self.result.odd_sizes.add(index)
        if inspector is None or not whole:
            return
        block = first + offset // page_bytes
        try:
            bad = inspector.inspect(data[:whole], block, descriptor, offset)
        except OSError as error:
            raise self._unreadable(path, error) from error
        self.result.pages_checked += whole // page_bytes
        if bad:
            self.result.bad.setdefault(index, []).extend(bad)

    def _flush(self) -> None:
        if not self._used:
            return
        paths = self._source.table
        slices = [(paths.path(index), offset, length) for index, offset, length in self._slices]
        pack, frame = self._sink.add(self._buffer[: self._used], slices)
        place = 0
        for index, offset, length in self._slices:
            self.result.runs.add(index, offset, length, place=(pack, frame, place))
            place += length
        self._used = 0
        self._slices.clear()

    def _open(self, path: bytes, index: int) -> int | None:
        absolute = self._source.root + b"/" + path
        try:
            return os.open(absolute, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            self.result.vanished.add(index)
            return None
        except PermissionError as error:
            raise PostgresRightsError(
                f"{os.fsdecode(absolute)} may not be read by user id {os.geteuid()}",
                hint="run pgrecall as the operating system user that owns PGDATA",
            ) from error
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: bytes, error: OSError) -> DataDirectoryError:
        return DataDirectoryError(
            f"{os.fsdecode(self._source.root + b'/' + path)} cannot be read: {error.strerror}",
            hint="the disk may be failing: look at the kernel's log",
        )
