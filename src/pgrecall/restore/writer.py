"""Write the files of a backup: packs are read once each, in order, by a pool of threads.

A worker takes a pack, reads the frames that are needed in large pieces, checks
and decompresses each, and writes its slices where they belong. Memory stays
under workers x (a piece of stored frames + one raw frame), about 6 MiB each.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

from pgrecall.errors import DestinationError, SpaceError
from pgrecall.model.file_table import DIRECTORY
from pgrecall.repository.contents import Contents, PackRun
from pgrecall.repository.pack_source import PackSource, Piece, pieces_by_frame, spans
from pgrecall.restore.compare import Ranges
from pgrecall.system.durable import WRITE_BYTES
from pgrecall.system.faults import reached
from pgrecall.system.filesystems import WriteBack
from pgrecall.system.held_signals import signals_held
from pgrecall.system.progress import Progress

_WRITE_BACK_BYTES = 8 << 20
_FULL = (28, 122)  # ENOSPC, EDQUOT


class Part(NamedTuple):
    """What of a backup is written.

    ``only``: the bytes of each file, None: all of every file. ``zeros``: files that are made of
    zeros, without a byte on the disk.
    """

    only: Mapping[int, Ranges] | None = None
    zeros: frozenset[int] = frozenset()


class FileWriter:
    """Writes a backup's files below ``root``; those in ``held_back`` are kept in memory."""

    def __init__(
        self,
        root: bytes,
        contents: Contents,
        source: PackSource,
        *,
        held_back: frozenset[int],
        progress: Progress,
        part: Part,
    ) -> None:
        self._only, self._zeros = part
        self.kept: dict[int, bytearray] = {index: bytearray() for index in held_back}
        self._root = root
        self._contents = contents
        self._source = source
        self._progress = progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.write_back = WriteBack()

    def write(self, workers: int) -> None:
        """Write every file. Modes are right when it returns; nothing is durable yet.

        Raises CorruptObjectError, StoreError, SpaceError, DestinationError.
        """
        self._create_empty()
        packs = self._contents.packs()
        if self._only is not None or self._zeros:
            packs = [index for index in packs if self._runs_of(index)]
        packs.sort(key=lambda index: -self._source.packs[index].stored_bytes)
        queue = iter(packs)
        # Permission bits are given to open(); the mask of the user must not narrow them.
        mask = os.umask(0)
        try:
            with ThreadPoolExecutor(workers, thread_name_prefix="restore") as pool:
                try:
                    # A thread that is just being started when a signal comes would be unknown
                    # to the pool, and go on writing while what was written is removed.
                    with signals_held():
                        futures = {pool.submit(self._work, queue) for _ in range(workers)}
                    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                    if any(future.exception() for future in done):
                        self._stop.set()
                    for future in futures:
                        future.result()
                except BaseException:
                    # Inside: leaving the pool waits for its threads, so they must know first.
                    self._stop.set()
                    raise
        finally:
            os.umask(mask)

    def path(self, index: int) -> bytes:
        """The path of a file of the table, relative to PGDATA."""
        return self._contents.table.path(index)

    def advance(self, length: int) -> None:
        """Report so many bytes as written."""
        self._progress.advance(length)

    def _create_empty(self) -> None:
        table = self._contents.table
        for index in table.files():
            is_wanted = self._only is None or index in self._only
            if index in self._zeros or (table.sizes[index] == 0 and is_wanted):
                descriptor = self.open(index)
                try:
                    os.fchmod(descriptor, table.modes[index])
                    os.ftruncate(descriptor, table.sizes[index])
                finally:
                    os.close(descriptor)

    def _work(self, queue: Iterator[int]) -> None:
        while not self._stop.is_set():
            with self._lock:
                index = next(queue, None)
            if index is None:
                return
            self._restore_pack(index)
            reached("restore.pack")

    def _restore_pack(self, index: int) -> None:
        pack = self._source.open(index)
        target = _OpenFile(self)
        try:
            pieces = pieces_by_frame(pack, self._runs_of(index))
            for first, last in spans(pack.frames, sorted(pieces)):
                for number, raw in pack.raw_span(first, last):
                    for piece in pieces.get(number, ()):
                        target.put(piece, raw)
                    if self._stop.is_set():
                        return
        finally:
            target.close()
            pack.close()

    def _runs_of(self, pack: int) -> Sequence[PackRun]:
        runs = self._contents.runs_of(pack)
        if self._zeros:
            runs = [run for run in runs if run.file not in self._zeros]
        return runs if self._only is None else list(_within(runs, self._only))

    def open(self, index: int) -> int:
        """Open a file of the table for writing, with its mode; the caller closes it."""
        path = self._root + b"/" + self._contents.table.path(index)
        try:
            return os.open(
                path,
                os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                self._contents.table.modes[index],
            )
        except OSError as error:
            raise write_failed(path, error) from error


class _OpenFile:
    """The file that a worker writes to now: runs of one file follow each other."""

    def __init__(self, writer: FileWriter) -> None:
        self._writer = writer
        self._index = -1
        self._descriptor = -1
        self._begun = 0

    def put(self, piece: Piece, raw: bytes | memoryview) -> None:
        index, file_offset, start, length = piece
        data = memoryview(raw)[start : start + length]
        kept = self._writer.kept.get(index)
        if kept is not None:
            kept[file_offset : file_offset + length] = data
            return
        if index != self._index:
            self.close()
            self._descriptor = self._writer.open(index)
            self._index = index
            self._begun = file_offset
        try:
            while data:
                written = os.pwrite(self._descriptor, data[:WRITE_BYTES], file_offset)
                data = data[written:]
                file_offset += written
            self._write_back(file_offset)
        except OSError as error:
            path = self._writer.path(index)
            raise write_failed(path, error) from error
        self._writer.advance(length)

    def _write_back(self, end: int) -> None:
        """Have the kernel begin with what was written since the last time."""
        if end - self._begun >= _WRITE_BACK_BYTES:
            self._writer.write_back.start(self._descriptor, self._begun, end - self._begun)
            self._begun = end

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = self._index = -1


def _within(runs: Sequence[PackRun], only: Mapping[int, Ranges]) -> Iterator[PackRun]:
    """The parts of the runs that lie in the ranges of their files."""
    for run in runs:
        for begin, end in only.get(run.file, ()):
            first = max(begin, run.file_offset)
            last = min(end, run.file_offset + run.length)
            if first < last:
                offset = run.frame_offset + first - run.file_offset
                yield PackRun(run.file, run.frame, offset, (first, last - first))


def make_directories(root: bytes, contents: Contents) -> None:
    """Create every directory below ``root`` (which exists) with its mode.

    Raises DestinationError, SpaceError.
    """
    table = contents.table
    for index, kind in enumerate(table.kinds):
        if kind != DIRECTORY:
            continue
        path = root + b"/" + table.path(index)
        try:
            if not os.path.isdir(path):  # a tablespace's link leads to one that is there
                os.mkdir(path)
            os.chmod(path, table.modes[index] | 0o700)
        except OSError as error:
            raise write_failed(path, error) from error


def write_failed(path: bytes, error: OSError) -> DestinationError | SpaceError:
    """The error for a write that failed."""
    shown = os.fsdecode(path)
    if error.errno in _FULL:
        return SpaceError(
            f"{shown} cannot be written: {error.strerror}",
            hint="make room, then run the same restore again",
        )
    return DestinationError(
        f"{shown} cannot be written: {error.strerror}",
        hint="look at the directory's owner and modes",
    )
