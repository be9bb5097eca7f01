"""Files of the directory store: one being written, one being read, and what makes them durable.

Light: imported for every WAL segment that PostgreSQL archives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from types import TracebackType
from typing import Self

from pgrecall.errors import (
    CorruptObjectError,
    ObjectMissingError,
    StoreAbsentError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
    UnsafeStoreError,
)
from pgrecall.store.base import Buffer
from pgrecall.system.durable import WRITE_BYTES

_DIRECTORY_MODE = 0o750
# Bytes after which the kernel is asked to begin writing: keeps the final fdatasync short.
_WRITE_BACK_BYTES = 8 << 20

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class LocalWriter:
    """A temporary file beside its final name; ``commit`` links it there."""

    def __init__(self, path: str, temporary: str, descriptor: int) -> None:
        self.size = 0
        self._path = path
        self._temporary = temporary
        self._descriptor = descriptor
        self._asked_bytes = 0

    def write(self, data: Buffer) -> None:
        if self._descriptor < 0:
            raise ValueError("the writer was committed or discarded")
        view = memoryview(data).cast("B")
        try:
            while view:
                written = os.write(self._descriptor, view[:WRITE_BYTES])
                self.size += written
                view = view[written:]
            if self.size - self._asked_bytes >= _WRITE_BACK_BYTES:
                # On Linux, DONTNEED starts write-back of dirty pages at once (and keeps them, as
                # they are not clean yet): packs of 128 MiB are stored 1.4 times as fast.
                os.posix_fadvise(
                    self._descriptor,
                    self._asked_bytes,
                    self.size - self._asked_bytes,
                    os.POSIX_FADV_DONTNEED,
                )
                self._asked_bytes = self.size
        except OSError as error:
            self.discard()  # a caller who goes on must not be able to commit half an object
            raise write_failure(error, self._path) from error

    def commit(self) -> bool:
        if self._descriptor < 0:
            raise ValueError("the writer was committed or discarded")
        try:
            os.fdatasync(self._descriptor)
            is_created = self._link()
            self.discard()
            # Also when the name was taken: whoever took it may have died before this fsync,
            # and our caller may report its content as safe.
            sync_directory(os.path.dirname(self._path))
        except OSError as error:
            raise write_failure(error, self._path) from error
        finally:
            self.discard()
        return is_created

    def discard(self) -> None:
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            # What is dropped may fail to be written; after a commit fdatasync has had its say.
            with contextlib.suppress(OSError):
                os.close(descriptor)
        finally:  # also when a signal ends the run right here
            # Left behind, it is invisible and found by leftovers(): no reason to fail.
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def _link(self) -> bool:
        try:
            os.link(self._temporary, self._path)
        except OSError as error:
            # NFS repeats a link whose answer was lost and then reports the name as taken, or
            # an error; the count of links tells what happened (open(2), on O_EXCL and NFS).
            if os.stat(self._temporary).st_nlink > 1:
                return True
            if error.errno == errno.EEXIST:
                if not stat.S_ISREG(os.stat(self._path).st_mode):
                    raise StoreError(f"{self._path} is in the way: not a file") from error
                return False
            if error.errno in _NO_LINKS:
                raise UnsafeStoreError(
                    f"cannot link {self._path}: {error.strerror}",
                    hint="the store's file system must have hard links (ext4, xfs, btrfs, zfs, "
                    "NFS): they are what keeps an object from being overwritten",
                ) from error
            raise
        return True


class LocalReader:
    """An open file, read at any position by any number of threads."""

    def __init__(self, root: str, path: str, descriptor: int, size: int) -> None:
        self.size = size
        self._root = root
        self._path = path
        self._descriptor = descriptor

    def read(self, start: int, length: int) -> bytes:
        try:
            content = os.pread(self._descriptor, length, start)
            if len(content) == length:
                return content
            # A read may be short (above 2 GiB, or on a signal) without being at the end.
            parts = [content]
            done = len(content)
            while content and done < length:
                content = os.pread(self._descriptor, length - done, start + done)
                parts.append(content)
                done += len(content)
        except OSError as error:
            raise read_failure(error, self._path, self._root) from error
        if done < length:
            raise self._ends_early(start, length)
        return b"".join(parts)

    def read_into(self, start: int, buffer: bytearray | memoryview) -> None:
        view = memoryview(buffer).cast("B")
        length = len(view)
        try:
            while view:
                done = os.preadv(self._descriptor, [view], start + length - len(view))
                if done == 0:
                    raise self._ends_early(start, length)
                view = view[done:]
        except OSError as error:
            raise read_failure(error, self._path, self._root) from error

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ends_early(self, start: int, length: int) -> CorruptObjectError:
        return CorruptObjectError(
            f"{self._path} ends at byte {self.size}, {length} bytes at {start} were expected"
        )


def write_failure(error: OSError, path: str) -> StoreError:
    """The error to raise when writing or deleting ``path`` failed with ``error``."""
    return _failure(error, f"cannot write {path}")


def read_failure(error: OSError, path: str, root: str) -> StoreError:
    """The error to raise when reading ``path`` below the store ``root`` failed with ``error``.

    ObjectMissingError only where the root is there to prove it; StoreAbsentError
    is raised, not returned, where it is not.
    """
    if error.errno in _NOT_THERE:
        require_root(root)
        return ObjectMissingError(f"no object {path}")
    return _failure(error, f"cannot read {path}")


def require_root(root: str) -> None:
    """Raise StoreAbsentError, or another StoreError, unless ``root`` is a directory."""
    try:
        if stat.S_ISDIR(os.stat(root).st_mode):
            return
        reason = "is not a directory"
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise _failure(error, f"cannot look up {root}") from error
        reason = "does not exist"
    raise StoreAbsentError(
        f"the store {root} {reason}",
        hint="mount it, or correct the repository's path; `pgrecall init` makes a new one",
    )


def _failure(error: OSError, doing: str) -> StoreError:
    text = f"{doing}: {error.strerror or error}"
    if error.errno in _FULL:
        return StoreFullError(
            text, hint="free space or raise the quota; nothing was stored under this key"
        )
    if error.errno in _REFUSED:
        return StoreRefusedError(
            text,
            hint=f"see owner and mode of the directory (this is user {os.geteuid()}), "
            "and whether it is mounted read-only",
        )
    return StoreError(text, hint="see the system log for errors of the disk or the mount")


def make_directory(path: str) -> None:
    """Create and make durable in its parent; existing is success."""
    try:
        os.mkdir(path, _DIRECTORY_MODE)
    except FileExistsError:
        if has_visible_entry(path):
            return
    sync_directory(os.path.dirname(path))


def has_visible_entry(directory: str) -> bool:
    """Whether anything but temporary files is in it: then it is durable in its parent."""
    with os.scandir(directory) as entries:
        return any(entry.name[0] != "." for entry in entries)


def sync_directory(path: str) -> None:
    """fsync a directory: names linked or removed in it survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise UnsafeStoreError(
                f"the file system of {path} cannot sync a directory",
                hint="a file that is stored there may be gone after a power failure: "
                "use ext4, xfs, btrfs, zfs or NFS",
            ) from error
        raise
    finally:
        os.close(descriptor)
