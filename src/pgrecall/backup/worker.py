"""One worker of the copy: read, check pages, compress, digest, append to its own pack.

Each worker owns a buffer of one frame, a compressor and an open pack, so that
nothing is locked for a byte. Everything heavy releases the GIL.
"""

from __future__ import annotations

import mmap
import os
import threading

from pgrecall.backup.digest_log import DigestLog
from pgrecall.backup.pack_sink import PackSink
from pgrecall.backup.page_check import BadPage, PageInspector
from pgrecall.backup.run_log import RunLog
from pgrecall.backup.units import Unit
from pgrecall.codec.block_digests import block_records
from pgrecall.errors import DataDirectoryError, PostgresRightsError
from pgrecall.model.file_table import FileTable
from pgrecall.model.relation_files import first_block
from pgrecall.repository.block_digests import DigestSink, DigestStore
from pgrecall.repository.packs import FRAME_BYTES


class CopySource:
    """What the workers copy from. ``relation_blocks``: blocks in a whole relation file (1 GiB).

    ``seed``: of the block digests. ``stopped`` is set when the copy has failed: workers then
    end at the next frame.
    """

    def __init__(
        self,
        root: bytes,
        table: FileTable,
        inspector: PageInspector | None,
        *,
        page_bytes: int,
        relation_blocks: int,
        seed: int,
    ) -> None:
        self.stopped = threading.Event()
        self.seed = seed
        self.root = root
        self.table = table
        self.inspector = inspector
        self.page_bytes = page_bytes
        self.relation_blocks = relation_blocks


class WorkerResult:
    """What one worker did: runs, digests, files that were gone, pages checked and those bad."""

    def __init__(self, digests: DigestSink) -> None:
        self.runs = RunLog()
        self.digests = DigestLog(digests)
        self.vanished: set[int] = set()
        self.bad: dict[int, list[BadPage]] = {}
        self.odd_sizes: set[int] = set()
        self.pages_checked = 0
        self.bytes = 0


class CopyWorker:
    """Copies units into packs; for one thread. ``close`` must be called at the end."""

    def __init__(self, source: CopySource, sink: PackSink, digests: DigestStore) -> None:
        self.result = WorkerResult(DigestSink(digests))
        self._source = source
        self._sink = sink
        self._buffer = memoryview(mmap.mmap(-1, FRAME_BYTES))
        self._used = 0
        self._slices: list[tuple[int, int, int]] = []

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
        self._slices.append((index, 0, len(content)))
        self._used = len(content)
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
                self._read_piece(descriptor, index, path, 0, os.fstat(descriptor).st_size)
                return
            self._take(descriptor, index, path, 0, length)
        finally:
            os.close(descriptor)

    def _copy_piece(self, index: int, offset: int, length: int) -> None:
        self._flush()
        path = self._source.table.path(index)
        descriptor = self._open(path, index)
        if descriptor is None:
            return
        try:
            self._read_piece(descriptor, index, path, offset, length)
        finally:
            os.close(descriptor)

    def _read_piece(
        self, descriptor: int, index: int, path: bytes, offset: int, length: int
    ) -> None:
        end = offset + length
        while offset < end and not self._source.stopped.is_set():
            wanted = min(FRAME_BYTES, end - offset)
            got = self._fill(descriptor, offset, wanted, path)
            if got:
                self._take(descriptor, index, path, offset, got)
                self._flush()
            if got < wanted:
                return  # shorter than at the walk: truncated meanwhile, and replay knows
            offset += got

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
        """Account for ``length`` bytes that lie behind what the buffer holds already."""
        if length == 0:
            return
        data = self._buffer[self._used : self._used + length]
        self._check(data, index, path, descriptor, offset)
        self._slices.append((index, offset, length))
        self._used += length
        self.result.bytes += length

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
        raw = self._buffer[: self._used]
        pack, frame = self._sink.add(raw, slices)
        place = 0
        for index, offset, length in self._slices:
            records, crc = block_records(raw[place : place + length], self._source.seed)
            self.result.digests.add(index, offset, length, records, crc)
            self.result.runs.add(index, offset, length, crc, place=(pack, frame, place))
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
