"""One worker of the copy: read, check pages, compress, digest, append to its own pack.

Each worker owns a buffer of three frames, a compressor and an open pack, so that
nothing is locked for a byte. Everything heavy releases the GIL.
"""

from __future__ import annotations

import mmap
import os

import numpy as np

from pgrecall.backup.base import BasePiece
from pgrecall.backup.changes import PageShares, Range, changed_ranges, ranges_to_read
from pgrecall.backup.copy_source import ChangedPiece, CopySource, Kept, OpenFile, WorkerResult
from pgrecall.backup.run_log import LEFTOVER_PACK
from pgrecall.backup.summaries import FileChanges
from pgrecall.backup.units import PIECE_BYTES, Unit
from pgrecall.codec.block_digests import (
    BLOCK_BYTES,
    RECORD_BYTES,
    as_records,
    block_count,
    block_records,
    combined_crc,
)
from pgrecall.errors import DataDirectoryError, PostgresRightsError
from pgrecall.model.relation_files import first_block
from pgrecall.repository.block_digests import DigestSink, DigestStore
from pgrecall.repository.pack_sink import PackSink
from pgrecall.repository.packs import FRAME_BYTES

# Of the buffer, so much must be free before more of a file is read behind what it holds.
_LEAST_ROOM = FRAME_BYTES // 2
# Beside a frame, the buffer holds so much that was read and not looked at: the more blocks are
# looked at together, the less Python there is for each.
_WAITING_BYTES = 2 << 20
# Bounds what is held of bytes that need not be stored, and so never fill the buffer.
_MOST_SLICES = 4096


class CopyWorker:
    """Copies units into packs; for one thread. ``close`` must be called at the end."""

    def __init__(self, source: CopySource, sink: PackSink, digests: DigestStore) -> None:
        self.result = WorkerResult(DigestSink(digests), source.page_bytes)
        self._source = source
        self._sink = sink
        self._buffer = memoryview(mmap.mmap(-1, FRAME_BYTES + _WAITING_BYTES))
        self._used = 0
        self._slices: list[Kept] = []
        self._leftover = source.leftover.reader() if source.leftover is not None else None
        self._base: BasePiece | None = None
        self._piece_offset = 0

    def copy(self, unit: Unit) -> int:
        """Copy one unit; returns how many bytes it has."""
        for index in unit.files:
            path = self._source.table.path(index)
            length = self._source.table.sizes[index] if unit.is_batch else unit.length
            changes = self._changes(index, path)
            if changes is not None:
                self._copy_changes(index, path, (unit.offset, unit.offset + length), changes)
            elif unit.is_batch:
                self._copy_small(index, path)
            else:
                self._copy_piece(index, path, unit.offset, unit.length)
        return unit.length

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
        if self._leftover is not None:
            self._leftover.close()
        self._buffer.release()

    def _changes(self, index: int, path: bytes) -> FileChanges | None:
        """What the WAL summaries tell of a file that the base has; None: it must be read."""
        comparison = self._source.comparison
        if comparison is None or comparison.changes is None:
            return None
        base = comparison.base
        if not base.has(index) or base.is_spoilt(index):
            return None
        return comparison.changes.of(path)

    def _copy_changes(self, index: int, path: bytes, place: Range, changes: FileChanges) -> None:
        """Copy the changed pages of a piece, or of a small file; ``place``: its bytes."""
        comparison = self._source.comparison
        assert comparison is not None
        offset, end = place
        span = comparison.base.span(index, offset)
        page_bytes = self._source.page_bytes
        reading = ranges_to_read(changes, place, span[1] if span else 0, page_bytes)
        if span is not None and not reading:
            self.result.digests.lend(index, offset, end - offset, span[0])
            return
        base = comparison.base.piece(index, offset)
        if base is None:
            self._copy_piece(index, path, offset, end - offset)
            return
        descriptor = self._open(path, index)
        if descriptor is None:
            return
        try:
            self._base = base
            self._piece_offset = offset
            shares = None
            if comparison.is_exact:
                base_end = offset + base.length
                shares = PageShares(changes, base_end, page_bytes, comparison.start_lsn)
            file = OpenFile(descriptor, index, path)
            self._read_ranges(file, place, reading, shares)
        finally:
            os.close(descriptor)

    def _read_ranges(
        self, file: OpenFile, place: Range, reading: list[Range], shares: PageShares | None
    ) -> None:
        assert self._base is not None
        offset, end = place
        size = block_count(end - offset) * RECORD_BYTES
        records = bytearray(self._base.records.tobytes()[:size])
        records += bytes(size - len(records))
        piece = ChangedPiece(file, offset, records, shares)
        is_last = end >= self._source.table.sizes[file.number]
        for begin, range_end in reading:
            at = offset + begin
            while at < offset + range_end and not self._source.stopped.is_set():
                wanted = min(self._room_behind(piece), offset + range_end - at)
                got = self._read(file, at, wanted, fills=not is_last, behind=piece.waiting_bytes)
                if got:
                    piece.wait(at, got)
                at += got
                if got < wanted:
                    end = at  # truncated meanwhile, and replay knows
                    break
            if at < offset + range_end:
                break
        self._take_waiting(piece)
        length = end - offset
        is_same = piece.is_same and length == self._base.length
        del records[block_count(length) * RECORD_BYTES :]
        self.result.digests.begin(file.number, offset, self._base)
        crc = combined_crc(as_records(records), length)
        self.result.digests.add(length, records, crc, is_same=is_same)

    def _room_behind(self, piece: ChangedPiece) -> int:
        """As _room, behind what waits; where there is none, what waits is looked at."""
        room = len(self._buffer) - self._used - piece.waiting_bytes
        if room < BLOCK_BYTES:
            self._take_waiting(piece)
            room = len(self._buffer) - self._used
        return room - room % BLOCK_BYTES

    def _take_waiting(self, piece: ChangedPiece) -> None:
        """Account for what waits behind what the buffer holds; keep what the base lacks."""
        if not piece.waiting:
            return
        assert self._base is not None
        file, shares = piece.file, piece.shares
        waiting = self._buffer[self._used : self._used + piece.waiting_bytes]
        begins = 0
        pages, bad = [], []
        chosen: list[tuple[int, Range]] = []
        page_bytes = self._source.page_bytes
        for offset, length in piece.waiting:
            data = waiting[begins : begins + length]
            bad += [begins // page_bytes + page for page in self._check(file, data, offset)]
            records, _ = block_records(data, self._source.seed)
            first = (offset - self._piece_offset) // BLOCK_BYTES
            piece.put(first, records)
            if shares is None:
                found = changed_ranges(as_records(records), self._base.records[first:], length)
                chosen += [(offset + begin, (begins + begin, begins + end)) for begin, end in found]
            else:
                page = offset // page_bytes
                pages.append(np.arange(page, page - (-length // page_bytes), dtype=np.int64))
            begins += length
        if shares is not None:
            chosen = shares.chosen(waiting, np.concatenate(pages), bad)
        self._keep_chosen(file.number, self._used, chosen)
        self.result.bytes += piece.waiting_bytes
        piece.waiting.clear()
        piece.waiting_bytes = 0

    def _copy_small(self, index: int, path: bytes) -> None:
        if self._used + self._source.table.sizes[index] >= FRAME_BYTES:
            self._flush()
        descriptor = self._open(path, index)
        if descriptor is None:
            return
        file = OpenFile(descriptor, index, path)
        try:
            length = self._fill(file, 0, FRAME_BYTES - self._used)
            if self._used + length == FRAME_BYTES and self._used:
                # It grew since the walk, and does not fit behind the others any more.
                self._flush()
                length = self._fill(file, 0, FRAME_BYTES)
            if length == FRAME_BYTES:
                self._read_pieces(file, 0, os.fstat(descriptor).st_size)
                return
            self._begin(index, 0)
            self._take(file, 0, length)
        finally:
            os.close(descriptor)

    def _copy_piece(self, index: int, path: bytes, offset: int, length: int) -> None:
        descriptor = self._open(path, index)
        if descriptor is None:
            return
        try:
            self._read_pieces(OpenFile(descriptor, index, path), offset, length)
        finally:
            os.close(descriptor)

    def _read_pieces(self, file: OpenFile, offset: int, length: int) -> None:
        end = offset + length
        fills = end < self._source.table.sizes[file.number]
        while offset < end and not self._source.stopped.is_set():
            if offset % PIECE_BYTES == 0:
                self._begin(file.number, offset)
            if self._base is None:
                self._flush()  # frames that begin and end with a MiB of the file
            piece_end = min(end, offset - offset % PIECE_BYTES + PIECE_BYTES)
            wanted = min(self._room(), piece_end - offset)
            got = self._read(file, offset, wanted, fills=fills)
            self._take(file, offset, got)
            if got < wanted:
                return  # shorter than at the walk: truncated meanwhile, and replay knows
            offset += got

    def _begin(self, index: int, offset: int) -> None:
        """Begin a file, or its piece of PIECE_BYTES at ``offset``."""
        comparison = self._source.comparison
        self._base = comparison.base.piece(index, offset) if comparison is not None else None
        self._piece_offset = offset
        self.result.digests.begin(index, offset, self._base)

    def _room(self) -> int:
        """Bytes of whole blocks for which the buffer has room; it is emptied where that is few."""
        if FRAME_BYTES - self._used < _LEAST_ROOM:
            self._flush()
        room = FRAME_BYTES - self._used
        return room - room % BLOCK_BYTES

    def _read(
        self, file: OpenFile, offset: int, wanted: int, *, fills: bool, behind: int = 0
    ) -> int:
        """Read as _fill does. ``fills``: where the file is shorter by now, zeros follow.

        It was truncated meanwhile, and a later piece of it may be there again: replay of the WAL
        sees to what belongs here. Zeros, as pg_basebackup has it.
        """
        got = self._fill(file, offset, wanted, behind)
        if got < wanted and fills:
            start = self._used + behind
            self._buffer[start + got : start + wanted] = bytes(wanted - got)
            return wanted
        return got

    def _fill(self, file: OpenFile, offset: int, wanted: int, behind: int = 0) -> int:
        """Read up to ``wanted`` bytes behind what the buffer holds; fewer at the end only.

        ``behind``: so many bytes that wait there are left alone.
        """
        self._source.throttle.take(wanted)
        got = 0
        room = self._buffer[self._used + behind : self._used + behind + wanted]
        while got < wanted:
            try:
                count = os.preadv(file.descriptor, [room[got:]], offset + got)
            except OSError as error:
                raise self._unreadable(file.path, error) from error
            if count == 0:
                break
            got += count
        return got

    def _take(self, file: OpenFile, offset: int, length: int) -> None:
        """Account for ``length`` bytes behind what the buffer holds; keep what the base lacks."""
        if length == 0:
            return
        data = self._buffer[self._used : self._used + length]
        self._check(file, data, offset)
        records, crc = block_records(data, self._source.seed)
        self.result.bytes += length
        base = self._base
        if base is None:
            self._keep(file.number, offset, length)
            self.result.digests.add(length, records, crc, is_same=False)
            return
        first = (offset - self._piece_offset) // BLOCK_BYTES
        changed = changed_ranges(as_records(records), base.records[first:], length)
        start = self._used
        for begin, end in changed:
            self._move(start + begin, end - begin)
            self._keep(file.number, offset + begin, end - begin)
        self.result.digests.add(length, records, crc, is_same=not changed)

    def _move(self, start: int, length: int) -> None:
        """Move bytes of the buffer to where what is kept ends, which is never beyond them."""
        if start != self._used:
            kept = self._buffer[self._used : self._used + length]
            kept[:] = self._buffer[start : start + length]

    def _keep(self, index: int, offset: int, length: int) -> None:
        """So many bytes behind what the buffer holds go into the backup.

        What an unfinished backup has stored of them is referred to.
        """
        start, end = self._used, self._used + length
        while self._leftover is not None and start < end:
            found = self._leftover.find(index, offset, self._buffer[start:end])
            if found is None:
                break
            self._slices.append(Kept(index, offset, found.length, found.place))
            start += found.length
            offset += found.length
        if len(self._slices) >= _MOST_SLICES and start == end:
            self._flush()
        if start < end:
            self._move(start, end - start)
            self._slices.append(Kept(index, offset, end - start))
            self._used += end - start
            self.result.new_bytes += end - start

    def _keep_chosen(self, index: int, start: int, chosen: list[tuple[int, Range]]) -> None:
        """Move and keep what was chosen of the buffer's bytes from ``start`` on, frame by frame.

        ``chosen``: places in the file, and bytes behind ``start``. These are many single pages:
        without a leftover, none of them costs a call.
        """
        buffer, used, kept = self._buffer, self._used, 0
        for place, (begin, end) in chosen:
            offset, at, last = place, start + begin, start + end
            while at < last:
                if used == FRAME_BYTES:
                    self._used = used
                    self._flush()
                    used = 0
                length = min(last - at, FRAME_BYTES - used)
                if at != used:
                    buffer[used : used + length] = buffer[at : at + length]
                if self._leftover is None:
                    self._slices.append(Kept(index, offset, length))
                    used += length
                    kept += length
                else:
                    self._used = used
                    self._keep(index, offset, length)
                    used = self._used
                at += length
                offset += length
        self.result.new_bytes += kept
        self._used = used

    def _check(self, file: OpenFile, data: memoryview, offset: int) -> list[int]:
        """Check the pages in ``data``; the numbers of those that stay bad, from its beginning."""
        first = first_block(file.path, self._source.relation_blocks)
        if first is None:
            return []
        inspector = self._source.inspector
        page_bytes = self._source.page_bytes
        whole = len(data) - len(data) % page_bytes
        if whole != len(data):
            self.result.odd_sizes.add(file.number)
        if inspector is None or not whole:
            return []
        block = first + offset // page_bytes
        try:
            bad = inspector.inspect(data[:whole], block, file.descriptor, offset)
        except OSError as error:
            raise self._unreadable(file.path, error) from error
        self.result.pages_checked += whole // page_bytes
        if bad:
            self.result.bad.setdefault(file.number, []).extend(bad)
        return [page.block - block for page in bad]

    def _flush(self) -> None:
        paths = self._source.table
        own = [one for one in self._slices if one.place is None]
        pack = frame = place = 0
        if own:
            slices = [(paths.path(one.file), one.offset, one.length) for one in own]
            pack, frame = self._sink.add(self._buffer[: self._used], slices)
        add = self.result.runs.add
        for index, offset, length, left in self._slices:
            if left is not None:
                add(index, offset, length, (LEFTOVER_PACK | left[0], *left[1:]))
            else:
                add(index, offset, length, (pack, frame, place))
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
