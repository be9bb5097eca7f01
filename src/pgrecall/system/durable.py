"""Writing files so that they survive a power cut (light).

A file is durable when its bytes and its directory entry are: fsync of the file,
then of the directory (fsync(2), NOTES: "Calling fsync() does not necessarily
ensure that the entry in the directory containing the file has also reached
disk").
"""

from __future__ import annotations

import os
from collections.abc import Iterable


def fsync_directory(path: str) -> None:
    """Make the entries of a directory durable; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Larger writes make the kernel look for large pieces of contiguous memory for its cache. In a
# virtual machine that gives free memory back to its host, those are the ones that the host
# took: measured, 1 MiB writes were three to eight times slower than these.
WRITE_BYTES = 128 << 10


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte, however many calls it takes; raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:WRITE_BYTES]) :]


def write_durable(path: str, chunks: Iterable[bytes], *, mode: int = 0o600) -> None:
    """Put a file in place, whole or not at all, replacing what was there.

    Written aside in the same directory (``.NAME.PID.new``), fsynced, renamed,
    directory fsynced: durable when it returns. After an error nothing of it is
    left and the old file is untouched. Raises OSError.
    """
    directory, name = os.path.split(os.path.abspath(path))
    aside = os.path.join(directory, f".{name}.{os.getpid()}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    is_placed = False
    try:
        try:
            for chunk in chunks:
                write_all(descriptor, chunk)
            os.fchmod(descriptor, mode)  # the umask may have narrowed it
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(aside, path)
        is_placed = True
    finally:
        if not is_placed:
            os.unlink(aside)
    fsync_directory(directory)


def write_new(path: str, chunks: Iterable[bytes], *, mode: int = 0o600) -> None:
    """Make a new file of a narrow mode; durable when it returns.

    Raises OSError, FileExistsError when there is one; after an error nothing of it is left.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    is_whole = False
    try:
        try:
            os.fchmod(descriptor, mode)
            for chunk in chunks:
                write_all(descriptor, chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        is_whole = True
    finally:
        if not is_whole:
            os.unlink(path)
    fsync_directory(os.path.dirname(os.path.abspath(path)))
