"""The tail of an unfinished segment, for archive recovery alone (fact 7). Light.

A tail ends somewhere, and behind it are zeros, which PostgreSQL takes for the end
of WAL. So it is given only where that is meant: recovery from a backup, of a
segment that is proven absent in every repository. A standby would never ask for
the rest of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pgrecall.errors import ObjectMissingError, StoreError
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import WalFile
from pgrecall.repository.identity import Generation
from pgrecall.repository.wal_tails import StoredTail, find_tail, tail_frames, tail_index
from pgrecall.system.durable import write_all
from pgrecall.wal.archives import Archive
from pgrecall.wal.delivery import check_first_page, refuse_tablespaces, remove

_MAXIMUM_TRIES = 3


class TailResult:
    """A tail was written: from which repository, its bytes and where it ends."""

    __slots__ = ("end", "repository", "tail_bytes")

    def __init__(self, repository: str, end: Lsn, tail_bytes: int) -> None:
        self.repository = repository
        self.end = end
        self.tail_bytes = tail_bytes


def takes_tails(pgdata: str) -> bool:
    """True for a data directory in archive recovery that is not to become a standby."""
    if not pgdata or not os.path.exists(f"{pgdata}/recovery.signal"):
        return False
    return not os.path.exists(f"{pgdata}/standby.signal")


def write_tail(
    looked: Sequence[tuple[Archive, Generation]],
    server: str,
    file: WalFile,
    pgdata: str,
    path: str,
) -> TailResult | None:
    """Write the longest tail of a segment to ``path``, with zeros up to the segment's size.

    ``looked``: repositories in which the segment is proven absent. None when none
    has a tail. Raises StoreError, CorruptObjectError, IdentityError,
    DestinationError (see refuse_tablespaces), and OSError for ``path``.
    """
    for _ in range(_MAXIMUM_TRIES):
        found = [
            (archive, generation, tail)
            for archive, generation in looked
            if (tail := find_tail(archive.store, server, generation, file.name)) is not None
        ]
        if not found:
            return None
        archive, generation, tail = max(found, key=lambda one: one[2].end)
        try:
            index = tail_index(archive.store, server, generation, tail)
            refuse_tablespaces((archive, generation), server, file, pgdata, index)
            _write((archive, generation), server, file, tail, path)
        except ObjectMissingError:
            remove(path)
            continue  # a longer one took its place
        except BaseException:
            remove(path)
            raise
        start = file.start(generation.segment_bytes)
        return TailResult(archive.name, tail.end, tail.end - start)
    raise StoreError(
        f"the tail of {file.name} changes while it is read",
        hint="a receiver is at work on this server: it is running. Ask again",
    )


def _write(
    where: tuple[Archive, Generation], server: str, file: WalFile, tail: StoredTail, path: str
) -> None:
    archive, generation = where
    frames = tail_frames(archive.store, archive.identity.raw_key(), (server, generation), tail)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        is_first = True
        for frame in frames:
            if is_first:
                check_first_page(archive, server, generation, file, bytes(frame[:64]))
                is_first = False
            write_all(descriptor, frame)
    finally:
        os.close(descriptor)
