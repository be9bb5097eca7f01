"""WAL that others have archived: plain or packed files in a directory, or in a tar archive."""

from __future__ import annotations

import bz2
import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

import msgspec

from pgrecall.codec.streams import open_lz4, open_zstd
from pgrecall.errors import DataDirectoryError, UsageError, WalFormatError
from pgrecall.model.wal_files import HISTORY, MAXIMUM_SEGMENT_BYTES, WalFile

_PACKED = (".gz", ".bz2", ".zst", ".lz4")
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_PIECE = 1 << 20


class ForeignWal(msgspec.Struct, frozen=True):
    """One file: its name in pg_wal, where it lies, and what it is packed with, or empty."""

    name: str
    path: str
    packed: str = ""

    @property
    def is_history(self) -> bool:
        """History files are taken first: segments of their timeline are held to them."""
        return WalFile(self.name).kind == HISTORY


class Found(msgspec.Struct, frozen=True):
    """What there is: WAL, histories first and then by name; ``others`` are no WAL."""

    files: tuple[ForeignWal, ...]
    others: tuple[str, ...]
    stored_bytes: int


def find_wal(path: str, spool: Path) -> Found:
    """The WAL of a directory (and those below it), of a tar archive, or one file.

    The WAL of a tar archive is unpacked into ``spool``. Raises UsageError, WalFormatError,
    DataDirectoryError when something cannot be read.
    """
    root = Path(path)
    try:
        if root.is_dir():
            return _found([one for one in root.rglob("*") if one.is_file()], root)
        if root.is_file() and root.name.endswith(_TARS):
            others = _unpack(root, spool)
            found = _found([one for one in spool.rglob("*") if one.is_file()], spool)
            return msgspec.structs.replace(found, others=tuple(others))
        if root.is_file():
            return _found([root], root.parent)
    except OSError as error:
        raise _unreadable(path, error) from error
    raise UsageError(f"there is no {path}", hint="name a directory, an archive or a file")


@contextmanager
def plain(file: ForeignWal, spool: Path) -> Iterator[str]:
    """The path of a file under its own name; what is packed is unpacked while the block lasts.

    Raises WalFormatError for what cannot be unpacked.
    """
    if not file.packed and os.path.basename(file.path) == file.name:
        yield file.path
        return
    target = spool / file.name
    try:
        with open(file.path, "rb") as raw, target.open("xb") as unpacked:
            _copy(_opened(raw, file.packed), unpacked, file.path)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise _unreadable(file.path, error) from error
        if isinstance(error, OSError | EOFError | ValueError | RuntimeError | zlib.error):
            raise _damaged(file.path, error) from error
        raise
    try:
        yield str(target)
    finally:
        target.unlink(missing_ok=True)


def _found(paths: Sequence[Path], root: Path) -> Found:
    files: dict[str, ForeignWal] = {}
    others, size = [], 0
    for path in sorted(paths):
        name, packed = path.name, ""
        if path.suffix in _PACKED:
            name, packed = path.stem, path.suffix
        try:
            WalFile(name)
        except WalFormatError:
            others.append(str(path.relative_to(root)))
            continue
        if name in files:
            raise UsageError(
                f"{name} is there twice: {files[name].path} and {path}",
                hint="leave one of them; which is the right one cannot be told by the name",
            )
        files[name] = ForeignWal(name, str(path), packed)
        size += path.stat().st_size
    ordered = sorted(files.values(), key=lambda one: (not one.is_history, one.name))
    return Found(tuple(ordered), tuple(others), size)


def _unpack(archive: Path, spool: Path) -> list[str]:
    """WAL of the archive, into directories of their own, as two may have one name; the others."""
    others = []
    try:
        with tarfile.open(archive) as tar:
            for number, member in enumerate(tar):
                source = tar.extractfile(member) if member.isfile() else None
                if source is None:
                    continue
                name = PurePosixPath(member.name).name
                if not _is_wal(name):
                    others.append(member.name)
                    continue
                place = spool / f"{number}"
                place.mkdir()
                with source, (place / name).open("xb") as target:
                    _copy(source, target, f"{archive}: {member.name}")
    except (tarfile.TarError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(str(archive), error) from error
    return others


def _is_wal(name: str) -> bool:
    stem, dot, suffix = name.rpartition(".")
    try:
        WalFile(stem if dot + suffix in _PACKED else name)
    except WalFormatError:
        return False
    return True


def _unreadable(path: str, error: OSError) -> DataDirectoryError:
    return DataDirectoryError(
        f"cannot read {error.filename or path}: {error.strerror}",
        hint="run it as a user who may read all of it; what is packed needs room in"
        " dump.spool_directory",
    )


def _damaged(path: str, error: BaseException) -> WalFormatError:
    return WalFormatError(
        f"{path} cannot be unpacked: {error}",
        hint="it was cut off or damaged; look for another copy of it",
    )


def _opened(raw: IO[bytes], packed: str) -> IO[bytes]:
    if packed == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if packed == ".bz2":
        return cast(IO[bytes], bz2.BZ2File(raw))
    if packed == ".zst":
        return open_zstd(raw)
    return open_lz4(raw) if packed else raw


def _copy(source: IO[bytes], target: IO[bytes], where: str) -> None:
    """At most as much as a segment can have: no small file may fill the disk."""
    copied = 0
    while piece := source.read(_PIECE):
        copied += len(piece)
        if copied > MAXIMUM_SEGMENT_BYTES:
            raise WalFormatError(f"{where} is larger than any WAL segment")
        target.write(piece)


def remove_spool(spool: Path) -> None:
    """Take away what was unpacked."""
    shutil.rmtree(spool, ignore_errors=True)
