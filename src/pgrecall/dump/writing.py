"""What a tool writes, as a file of the dump: frames in packs, and the entry in the manifest."""

from __future__ import annotations

import io
import stat
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Self, cast

from pgrecall.codec.crc import crc32c
from pgrecall.model.manifest import FileEntry, Run
from pgrecall.repository.pack_sink import PackFactory, PackSink
from pgrecall.repository.packs import FRAME_BYTES

_MODE = stat.S_IRUSR | stat.S_IWUSR


class FileWriter:
    """Writes files of a dump, one after the other; for one thread."""

    def __init__(self, factory: PackFactory, advance: Callable[[int], None]) -> None:
        """``advance`` is told how many raw bytes were stored."""
        self._sink = PackSink(factory)
        self._advance = advance
        self._buffer = memoryview(bytearray(FRAME_BYTES))
        self.entries: list[FileEntry] = []
        self._path = ""
        self._filled = 0
        self._size = 0
        self._crc = 0
        self._runs: list[Run] = []

    def begin(self, path: str) -> None:
        """The next file; the one before has ended."""
        self._path, self._filled, self._size, self._crc, self._runs = path, 0, 0, 0, []

    def take(self, stream: IO[bytes]) -> None:
        """Everything that comes until the (unbuffered) stream's end; its reads may be short."""
        raw = cast(io.RawIOBase, stream)
        while True:
            got = raw.readinto(self._buffer[self._filled :])
            if not got:
                return
            self._filled += got
            if self._filled == FRAME_BYTES:
                self._flush()

    def add(self, data: bytes) -> None:
        """These bytes."""
        view = memoryview(data)
        while view:
            piece = view[: FRAME_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            view = view[len(piece) :]
            if self._filled == FRAME_BYTES:
                self._flush()

    def end(self) -> int:
        """The file is whole; returns its size in bytes."""
        self._flush()
        self.entries.append(
            FileEntry(
                path=self._path,
                kind="f",
                mode=_MODE,
                owner=0,
                group=0,
                modified_at=int(time.time()),
                size=self._size,
                crc32c=self._crc,
                runs=tuple(self._runs),
            )
        )
        return self._size

    def finish(self) -> None:
        """Hand over what is open: the packs are whole then."""
        self._sink.finish_pack()

    def close(self) -> None:
        """Drop what was not handed over."""
        self._sink.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _flush(self) -> None:
        if not self._filled:
            return
        raw = self._buffer[: self._filled]
        pack, frame = self._sink.add(raw, [(self._path.encode(), self._size, self._filled)])
        self._crc = crc32c(raw, self._crc)
        last = self._runs[-1] if self._runs else None
        # The frames of one file follow each other, as nobody else writes into this sink.
        if last is not None and last.pack == pack:
            self._runs[-1] = Run(pack, last.frame, 0, last.file_offset, last.length + self._filled)
        else:
            self._runs.append(Run(pack, frame, 0, self._size, self._filled))
        self._size += self._filled
        self._advance(self._filled)
        self._filled = 0
