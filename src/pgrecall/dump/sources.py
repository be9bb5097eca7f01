"""What is loaded: a database of a dump in a repository, or a file or directory of anybody's."""

from __future__ import annotations

import bz2
import gzip
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Protocol, cast

from pgrecall.codec.streams import open_lz4, open_zstd
from pgrecall.dump.decrypting import SUFFIXES, decrypted
from pgrecall.dump.reading import DumpFiles
from pgrecall.dump.tool_run import Feed
from pgrecall.errors import UsageError
from pgrecall.further_errors import LoadError
from pgrecall.model.dumps import DumpFormat

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SourceFormat = Literal["plain", "custom", "directory", "tar"]

_CUSTOM_MAGIC = b"PGDMP"
_TAR_MAGIC_AT = 257
_CONTENTS = "toc.dat"
_PIECE = 1 << 20
_HEAD = 512


class LoadSource(Protocol):
    """Something to load: what pg_restore calls its format, its name, and its bytes."""

    name: str
    source_format: SourceFormat

    def feed(self, stream: Feed) -> None:
        """Write all of it to a pipe; not of format directory."""
        ...

    def spooled(self, directory: str) -> AbstractContextManager[str]:
        """Gives the path of it as a file or directory, for as long as the block lasts."""
        ...


class RepositorySource:
    """One file (or directory) of a dump in a repository."""

    def __init__(self, files: DumpFiles, path: str, source_format: DumpFormat, name: str) -> None:
        self.name = name
        self.source_format: SourceFormat = source_format
        self._files = files
        self._path = path

    def feed(self, stream: Feed) -> None:
        """Write all of it to a pipe."""
        pieces: Iterator[bytes | memoryview] = self._files.stream(self._path)
        compressed = Path(self._path).suffix
        if self.source_format == "plain" and compressed != ".sql":
            with open_compressed(_Pieces(pieces), compressed) as unpacked:
                shutil.copyfileobj(unpacked, stream, _PIECE)
            return
        for raw in pieces:
            stream.write(raw)

    @contextmanager
    def spooled(self, directory: str) -> Iterator[str]:
        """As a file or directory, for as long as the block lasts."""
        with self._files.spooled(self._path, directory) as path:
            yield path


class PathSource:
    """A file or directory that pg_dump made, whoever ran it; also compressed, or encrypted."""

    def __init__(self, path: str, passphrase: str = "") -> None:
        """Look what it is; raises UsageError. ``passphrase``: as of ``decrypted``."""
        self.name = path
        self._path = Path(path)
        self._passphrase = passphrase
        self._is_encrypted = self._path.suffix.lower() in SUFFIXES
        self._compressed = ""
        self.source_format = self._find_format()

    def feed(self, stream: Feed) -> None:
        """Write all of it to a pipe."""
        with self._open() as source:
            shutil.copyfileobj(source, stream, _PIECE)

    @contextmanager
    def spooled(self, directory: str) -> Iterator[str]:
        """Its own path, or where it is unpacked for as long as the block lasts."""
        if not self._compressed and not self._is_encrypted:
            yield str(self._path)
            return
        place = Path(tempfile.mkdtemp(prefix="pgrecall-load-", dir=directory or None))
        try:
            with self._open() as source, (place / "dump").open("xb") as target:
                shutil.copyfileobj(source, target, _PIECE)
            yield str(place / "dump")
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _find_format(self) -> SourceFormat:
        path = self._path
        if path.is_dir():
            if (path / _CONTENTS).exists() or list(path.glob(_CONTENTS + ".*")):
                return "directory"
            raise UsageError(
                f"{path} is a directory without {_CONTENTS}: pg_dump made no such thing",
                hint="name one of the files in it",
            )
        try:
            with self._raw() as stream:
                head = stream.read(_HEAD)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}", hint="is the path right?") from error
        self._compressed = _compression_of(head)
        if self._compressed:
            with self._open() as stream:
                try:
                    head = stream.read(_HEAD)
                except (OSError, EOFError, ValueError) as error:
                    raise UsageError(f"{path} cannot be unpacked: {error}") from error
        if head.startswith(_CUSTOM_MAGIC):
            return "custom"
        if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
            if head.startswith(_CONTENTS.encode()):
                return "tar"
            raise UsageError(
                f"{path} is a tar archive, and none that pg_dump made",
                hint="unpack it, and name the dump in it",
            )
        if b"\0" in head or not head:
            raise UsageError(
                f"{path} is " + ("empty" if not head else "neither a dump nor SQL"),
                hint="what pg_dump and pg_dumpall write can be loaded, also compressed",
            )
        return "plain"

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            with self._raw() as raw:
                if not self._compressed:
                    yield raw
                    return
                with open_compressed(raw, self._compressed) as unpacked:
                    yield unpacked
        except (EOFError, gzip.BadGzipFile) as error:
            raise LoadError(
                f"{self._path} ends before its end, or is damaged: {error}",
                hint="it was cut off when it was written or copied; use another dump",
            ) from error

    @contextmanager
    def _raw(self) -> Iterator[IO[bytes]]:
        """As it lies there, but decrypted."""
        with self._path.open("rb") as plain:
            if not self._is_encrypted:
                yield plain
                return
        with decrypted(str(self._path), self._passphrase) as stream:
            yield stream


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a stream to read."""

    def __init__(self, pieces: Iterator[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer).cast("B")
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def open_compressed(raw: io.RawIOBase | IO[bytes], suffix: str) -> IO[bytes]:
    """A stream of what is packed in ``raw``; ``suffix`` as of a file's name."""
    source = cast(IO[bytes], raw)
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=source))
    if suffix == ".bz2":
        return cast(IO[bytes], bz2.BZ2File(source))
    return open_zstd(source) if suffix == ".zst" else open_lz4(source)


def _compression_of(head: bytes) -> str:
    for magic, suffix in (
        (b"\x1f\x8b", ".gz"),
        (b"BZh", ".bz2"),
        (b"\x28\xb5\x2f\xfd", ".zst"),
        (b"\x04\x22\x4d\x18", ".lz4"),
    ):
        if head.startswith(magic):
            return suffix
    return ""
