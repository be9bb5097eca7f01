"""Two restores that are given one place: one writes, the other is refused and harms nothing."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from pgrecall.errors import DestinationError

# NFS has no exclusive lock on what is open for reading only, as a directory always is.
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def claimed(directories: Sequence[str]) -> Iterator[None]:
    """Make the directories, and keep other restores out of them for as long as this runs.

    The kernel gives a claim up with its process, however that ends. On file
    systems without such locks (NFS) nothing is kept out. Raises
    DestinationError when another restore is there, OSError when a directory
    cannot be made or opened.
    """
    with ExitStack() as held:
        for directory in directories:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DestinationError(
                    f"another restore is writing to {directory}",
                    hint="wait for its end, or choose another --target-dir",
                ) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
        yield
