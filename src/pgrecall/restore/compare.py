"""What of a PGDATA differs from a backup: by size and by the digest of every 64 KiB block.

Files are read and digested by a pool of threads; reading and digesting release the interpreter's
lock. Memory: for each thread a buffer of 1 MiB, and of the files their names and facts.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import xxhash

from pgrecall.codec.block_digests import BLOCK_BYTES, KIND, Records, block_count
from pgrecall.errors import CorruptObjectError, DestinationError
from pgrecall.model.file_table import DIRECTORY, FILE
from pgrecall.repository.block_digests import DigestReader
from pgrecall.repository.contents import Contents
from pgrecall.restore.kept import KEPT_PREFIX
from pgrecall.restore.old_data import LOST_AND_FOUND
from pgrecall.system.progress import Progress

_BUFFER_BYTES = 1 << 20
_BATCH = 64
_DIGEST = np.dtype("V16")
_LOG = b"log"

Ranges = list[tuple[int, int]]
"""Bytes of a file, from and up to (exclusive), in order."""


class Found(NamedTuple):
    """An entry on disk: ``kind`` is DIRECTORY, FILE, or 0 for what is neither (a link)."""

    kind: int
    size: int
    mode: int


class Comparison:
    """What must change: ``ranges`` of files to write, by index in the table, whole new ones too.

    ``extra`` are paths to remove, those inside of a directory before it; ``shrink``
    files that are too long, ``modes`` entries with other permission bits.
    """

    def __init__(self) -> None:
        self.ranges: dict[int, Ranges] = {}
        self.extra: list[bytes] = []
        self.shrink: list[int] = []
        self.modes: list[int] = []
        self.compared_bytes = 0
        self.new_files = 0

    @property
    def bytes(self) -> int:
        """How many bytes are written."""
        return sum(end - begin for ranges in self.ranges.values() for begin, end in ranges)


class Comparer:
    """Compares the tree below ``root`` with a backup's contents; writes nothing."""

    def __init__(self, root: bytes, contents: Contents, reader: DigestReader, digest: str) -> None:
        """``digest``: the root's block_digest, kind and seed."""
        self._root = root
        self._contents = contents
        self._reader = reader
        kind, _, seed = digest.partition(":")
        self.has_digests = kind == KIND
        self._seed = int(seed, 16) if self.has_digests else 0
        self._result = Comparison()

    def compare(self, version: bytes, workers: int, progress: Progress) -> Comparison:
        """Look at everything; ``version`` is the directory of this server in a tablespace.

        Raises DestinationError (unreadable), CorruptObjectError, StoreError.
        """
        try:
            there = dict(self._walk(b"", version))
        except OSError as error:
            raise DestinationError(f"{error.filename} cannot be read: {error.strerror}") from error
        same = self._match(there)
        progress.start(sum(self._contents.table.sizes[index] for index, _ in same))
        with ThreadPoolExecutor(workers, thread_name_prefix="compare") as pool:
            for batch, found in pool.map(self._compare_batch, _batches(self._contents, same)):
                self._result.ranges.update(found)
                progress.advance(sum(self._contents.table.sizes[index] for index, _ in batch))
        return self._result

    # --- what is there -----------------------------------------------------------------

    def _walk(self, directory: bytes, version: bytes) -> Iterator[tuple[bytes, Found]]:
        """Every entry below a directory, those inside of one before it."""
        is_tablespace = directory.startswith(b"pg_tblspc/") and directory.count(b"/") == 1
        with os.scandir(self._root + b"/" + directory if directory else self._root) as entries:
            listed = list(entries)
        for entry in listed:
            path = directory + b"/" + entry.name if directory else entry.name
            if (is_tablespace and entry.name != version) or _is_spared(directory, entry.name):
                continue
            facts = entry.stat(follow_symlinks=False)
            kind = DIRECTORY if stat.S_ISDIR(facts.st_mode) else 0
            if stat.S_ISREG(facts.st_mode):
                kind = FILE
            if kind == 0 and _is_own_link(directory, entry.name) and entry.is_dir():
                kind = DIRECTORY
                facts = entry.stat()
            # Behind other links nothing is touched.
            if kind == DIRECTORY and not (path == _LOG and entry.is_symlink()):
                yield from self._walk(path, version)
            yield path, Found(kind, facts.st_size, stat.S_IMODE(facts.st_mode))

    def _match(self, there: dict[bytes, Found]) -> list[tuple[int, Found]]:
        """Sort out what is to be removed and what is new; returns the files to compare."""
        table, result = self._contents.table, self._result
        same = []
        wanted = set()
        for index, kind in enumerate(table.kinds):
            path = table.path(index)
            found = there.get(path)
            if found is not None and found.kind == kind:
                wanted.add(path)
                if kind == FILE and found.mode != table.modes[index]:
                    result.modes.append(index)
                if kind == FILE:
                    same.append((index, found))
                    if found.size > table.sizes[index]:
                        result.shrink.append(index)
            elif kind == FILE:
                result.new_files += 1
                result.ranges[index] = [(0, table.sizes[index])]
        result.extra = [path for path in there if path not in wanted]
        result.compared_bytes = sum(min(table.sizes[index], found.size) for index, found in same)
        return same

    # --- what differs ------------------------------------------------------------------

    def _compare_batch(
        self, batch: Sequence[tuple[int, Found]]
    ) -> tuple[Sequence[tuple[int, Found]], dict[int, Ranges]]:
        buffer = bytearray(_BUFFER_BYTES)
        different = {}
        for index, _ in batch:
            ranges = self._compare(index, memoryview(buffer))
            if ranges:
                different[index] = ranges
        return batch, different

    def _compare(self, index: int, buffer: memoryview) -> Ranges:
        size = self._contents.table.sizes[index]
        if size == 0:
            return []
        spans = self._contents.digests(index) if self.has_digests else []
        if sum(span.count for span in spans) != block_count(size):
            return [(0, size)]
        path = self._root + b"/" + self._contents.table.path(index)
        changed = []
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                at = 0
                for span in spans:
                    records = self._reader.span(span.source, span.first, span.count)
                    length = min(span.count * BLOCK_BYTES, size - at)
                    changed.append(self._differing(descriptor, (at, length), records, buffer))
                    at += length
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DestinationError(
                f"{os.fsdecode(path)} cannot be read: {error.strerror}",
                hint="run the restore as the user that owns the data directory",
            ) from error
        return _ranges(np.concatenate(changed), size)

    def _differing(
        self, descriptor: int, place: tuple[int, int], records: Records, buffer: memoryview
    ) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """For each block of a piece, whether the disk has another one."""
        offset, length = place
        if len(records) != block_count(length):
            raise CorruptObjectError("the digests of a file do not fit its size")
        digests = []
        digest, seed = xxhash.xxh3_128_digest, self._seed
        end = offset + length
        while offset < end:
            part = buffer[: min(len(buffer), end - offset)]
            got = 0
            while got < len(part):
                count = os.preadv(descriptor, [part[got:]], offset + got)
                if count == 0:
                    break
                got += count
            blocks = (part[at : min(at + BLOCK_BYTES, got)] for at in range(0, got, BLOCK_BYTES))
            digests += [digest(block, seed=seed) for block in blocks]
            if got < len(part):
                break
            offset += got
        found = np.frombuffer(b"".join(digests), _DIGEST)
        changed = np.ones(len(records), bool)
        changed[: len(found)] = found != records["digest"][: len(found)]
        return changed


def _ranges(changed: np.ndarray[tuple[int], np.dtype[np.bool_]], size: int) -> Ranges:
    """The ranges of the blocks that have changed, neighbours together."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], changed, [False])))).tolist()
    return [
        (begin * BLOCK_BYTES, min(end * BLOCK_BYTES, size))
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def _batches(
    contents: Contents, files: list[tuple[int, Found]]
) -> Iterator[list[tuple[int, Found]]]:
    """The biggest files alone and first, small ones together."""
    sizes = contents.table.sizes
    files.sort(key=lambda one: -sizes[one[0]])
    batch: list[tuple[int, Found]] = []
    for one in files:
        if sizes[one[0]] >= _BUFFER_BYTES:
            yield [one]
            continue
        batch.append(one)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _is_spared(directory: bytes, name: bytes) -> bool:
    """What is no part of PGDATA, wherever it lies: what is kept, and claims."""
    if name.startswith((KEPT_PREFIX.encode(), b"." + KEPT_PREFIX.encode(), b"pgrecall_unfinished")):
        return True
    return not directory and name == LOST_AND_FOUND.encode()


def _is_own_link(directory: bytes, name: bytes) -> bool:
    """Links that a restore sets itself, and the one of a log directory."""
    return directory == b"pg_tblspc" or (not directory and name in {b"pg_wal", _LOG})
