"""From the archive to a file: what is checked on the way, whoever asks. Light."""

from __future__ import annotations

import contextlib
import errno
import os

from pgrecall.codec.wal_scan import read_segment_header
from pgrecall.errors import (
    DestinationError,
    IdentityError,
    ObjectMissingError,
    PgrecallError,
    SpaceError,
    WalFormatError,
)
from pgrecall.model.wal_files import PARTIAL, SEGMENT, WalFile, segment_name
from pgrecall.model.wal_index import WalIndex
from pgrecall.repository import layout
from pgrecall.repository.identity import Generation, copy_planned_to
from pgrecall.repository.wal_objects import WalObjectReader, read_index
from pgrecall.system.durable import write_all
from pgrecall.wal.archives import Archive, archived_history
from pgrecall.wal.shared_places import crossing_tablespaces, refuse_shared_tablespaces


def check_tablespaces(
    archive: Archive, server: str, generation: Generation, file: WalFile, pgdata: str
) -> None:
    """For a restored copy, and WAL that its plan did not see: see refuse_shared_tablespaces.

    Raises DestinationError, DataDirectoryError, CorruptObjectError, StoreError.
    """
    planned_to = copy_planned_to(pgdata)
    start = file.start(generation.segment_bytes)
    if planned_to is None or start + generation.segment_bytes <= planned_to:
        return
    index = _index(archive, server, generation, file)
    if index is not None:  # whether it is absent is found out, and said, by the fetch itself
        refuse_tablespaces((archive, generation), server, file, pgdata, index)


def refuse_tablespaces(
    where: tuple[Archive, Generation], server: str, file: WalFile, pgdata: str, index: WalIndex
) -> None:
    """As check_tablespaces, with the ``index`` of what will be replayed of the segment."""
    archive, generation = where
    planned_to = copy_planned_to(pgdata)
    start = file.start(generation.segment_bytes)
    if planned_to is None or start + generation.segment_bytes <= planned_to:
        return
    refuse_shared_tablespaces(pgdata, file.name, index.tablespaces, planned_to)
    if index.contrecord_bytes:
        # A record that crosses the end of a segment does not cross to another timeline.
        before = WalFile(
            segment_name(file.timeline, start - generation.segment_bytes, generation.segment_bytes)
        )
        earlier = _index(archive, server, generation, before)
        if earlier is not None:
            # The plan saw the beginning of such a record only, whatever its LSN.
            crossing = crossing_tablespaces(earlier, index)
            refuse_shared_tablespaces(pgdata, file.name, crossing, earlier.start_lsn)


def _index(archive: Archive, server: str, generation: Generation, file: WalFile) -> WalIndex | None:
    try:
        index = read_index(archive.store, layout.wal_key(server, generation.number, file))
    except ObjectMissingError:
        return None
    return WalIndex.from_bytes(index) if index else None


def _check_header(
    archive: Archive, generation: Generation, file: WalFile, stored: WalObjectReader
) -> None:
    header = stored.header
    for what, wanted, found in (
        ("name", file.name, header.name),
        ("kind", file.kind, header.kind),
        ("system identifier", generation.system_identifier, header.system_identifier),
        ("segment size", generation.segment_bytes, header.segment_bytes),
    ):
        if wanted != found:
            raise IdentityError(
                f"{file.name} in {archive.store.name} has {what} {found!r} in place of {wanted!r}",
                hint="the object was moved here from elsewhere; look for the right one",
            )


def write_verified(
    archive: Archive, server: str, generation: Generation, file: WalFile, path: str
) -> int | None:
    """Write an archived file to ``path``, new; its raw size. None when it is proven absent.

    Whole and verified when this returns, not synced; after an error nothing is
    left. Raises IdentityError, CorruptObjectError, StoreError, WalFormatError,
    and OSError when ``path`` cannot be written.
    """
    key = layout.wal_key(server, generation.number, file)
    try:
        stored = WalObjectReader(archive.store, key, archive.identity.raw_key())
    except ObjectMissingError:
        return None
    with stored:
        _check_header(archive, generation, file, stored)
        try:
            _write(archive, server, generation, file, (stored, path))
        except BaseException:
            remove(path)
            raise
        return stored.header.raw_bytes


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def cannot_write(destination: str, error: OSError) -> PgrecallError:
    """What to raise when ``destination`` could not be written."""
    message = f"cannot write {destination}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(message, hint="recovery needs room for a few segments in pg_wal")
    return DestinationError(message, hint="restore_command runs in PGDATA with %p as path")


def _write(
    archive: Archive,
    server: str,
    generation: Generation,
    file: WalFile,
    transfer: tuple[WalObjectReader, str],
) -> None:
    stored, path = transfer
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        is_first = file.kind in (SEGMENT, PARTIAL)
        for frame in stored.frames():
            if is_first:
                check_first_page(archive, server, generation, file, bytes(frame[:64]))
                is_first = False
            write_all(descriptor, frame)
        if is_first:
            raise WalFormatError(f"{file.name} in {archive.store.name} is empty")
    finally:
        os.close(descriptor)


def check_first_page(
    archive: Archive, server: str, generation: Generation, file: WalFile, page: bytes
) -> None:
    """As on push (invariant 2): the segment says itself whose it is and where it belongs."""
    header = read_segment_header(page)
    where = f"{file.name} in {archive.store.name}"
    for what, wanted, found in (
        ("system identifier", generation.system_identifier, header.system_identifier),
        ("segment size", generation.segment_bytes, header.segment_bytes),
        ("page address", file.start(generation.segment_bytes), header.page_address),
    ):
        if wanted != found:
            raise IdentityError(f"the first page of {where} has {what} {found}, not {wanted}")
    if header.timeline == file.timeline:
        return
    try:
        history = archived_history(archive, server, generation.number, file.timeline)
    except ObjectMissingError as error:
        raise IdentityError(
            f"{where} begins on timeline {header.timeline}, and the history of timeline "
            f"{file.timeline} is not in the archive",
            hint=f"push {file.timeline:08X}.history from a server that still has it",
        ) from error
    if not history.is_ancestor_or_self(header.timeline):
        raise IdentityError(
            f"{where} begins on timeline {header.timeline}, which is no ancestor of {file.timeline}"
        )
