"""Write the files of a backup: packs are read once each, in order, by a pool of threads.

A worker takes a pack, reads the frames that are needed in large pieces, checks
and decompresses each, and writes its slices where they belong. Memory stays
under workers x (a piece of stored frames + one raw frame), about 6 MiB each.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np

from pgrecall.errors import DestinationError, SpaceError
from pgrecall.model.file_table import DIRECTORY
from pgrecall.repository.contents import RUN, Contents, Runs
from pgrecall.repository.pack_source import PackSource, Pieces, pieces_by_frame, spans
from pgrecall.restore.compare import Ranges
from pgrecall.restore.scatter import scatter
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
            packs = [index for index in packs if len(self._runs_of(index))]
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
                    target.put(pieces[number], raw)
                    if self._stop.is_set():
                        return
        finally:
            target.close()
            pack.close()

    def _runs_of(self, pack: int) -> Runs:
        runs = self._contents.runs_of(pack)
        if self._zeros:
            runs = runs[~np.isin(runs["file"], list(self._zeros))]
        return runs if self._only is None else _within(runs, self._only)

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

    def put(self, pieces: Pieces, raw: bytes | memoryview) -> None:
        """Write what ``raw`` holds where it belongs."""
        files = pieces["file"]
        edges = [0, *(np.flatnonzero(np.diff(files)) + 1).tolist(), len(files)]
        for first, last in itertools.pairwise(edges):
            self._put(int(files[first]), pieces[first:last], raw)

    def _put(self, index: int, pieces: Pieces, raw: bytes | memoryview) -> None:
        """The pieces of one file, in the order of their offsets."""
        kept = self._writer.kept.get(index)
        if kept is not None:
            for _, offset, start, length in pieces.tolist():
                kept[offset : offset + length] = memoryview(raw)[start : start + length]
            return
        if index != self._index:
            self.close()
            self._descriptor = self._writer.open(index)
            self._index = index
            self._begun = int(pieces["offset"][0])
        try:
            written = scatter(self._descriptor, raw, pieces)
            if len(pieces) == 1:
                self._write_back(int(pieces["offset"][0]) + written)
        except OSError as error:
            path = self._writer.path(index)
            raise write_failed(path, error) from error
        self._writer.advance(written)

    def _write_back(self, end: int) -> None:
        """Have the kernel begin with what was written since the last time.

        Not where single pages are written: the gaps between them would come to lie elsewhere
        on the disk, in as many extents.
        """
        if end - self._begun >= _WRITE_BACK_BYTES:
            self._writer.write_back.start(self._descriptor, self._begun, end - self._begun)
            self._begun = end

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = self._index = -1


def _within(runs: Runs, only: Mapping[int, Ranges]) -> Runs:
    """The parts of the runs that lie in the ranges of their files."""
    parts = []
    for file, frame, frame_offset, file_offset, length in runs.tolist():
        for begin, end in only.get(file, ()):
            first = max(begin, file_offset)
            last = min(end, file_offset + length)
            if first < last:
                place = frame_offset + first - file_offset
                parts.append((file, frame, place, first, last - first))
    return np.array(parts, RUN)


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
