"""``wal fetch``: bring one file of the archive back for recovery. Light.

Called by PostgreSQL as restore_command. A file is delivered whole and verified,
or not at all; "absent" is an answer only when every repository proves it
(facts 3 and 6), because PostgreSQL takes it for the end of the archive.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from functools import partial

from pgrecall.codec.wal_scan import read_segment_header
from pgrecall.errors import (
    DestinationError,
    IdentityError,
    InterruptedRunError,
    ObjectMissingError,
    PgrecallError,
    SpaceError,
    WalFormatError,
)
from pgrecall.model.wal_files import PARTIAL, SEGMENT, WalFile, segment_name
from pgrecall.model.wal_index import WalIndex
from pgrecall.repository import layout
from pgrecall.repository.identity import (
    Generation,
    copy_planned_to,
    latest_generation,
    open_repository,
    require_generation,
)
from pgrecall.repository.wal_objects import WalObjectReader, read_index
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import ServerSettings
from pgrecall.store.base import Store
from pgrecall.system.durable import write_all
from pgrecall.system.faults import reached
from pgrecall.wal.archives import (
    Archive,
    Question,
    archive_store,
    archived_history,
    control_of,
    data_directory_of,
    first_of,
)
from pgrecall.wal.shared_places import crossing_tablespaces, refuse_shared_tablespaces


class FetchResult:
    """The file is at its destination, verified. ``warnings``: which repositories failed and how."""

    __slots__ = ("name", "raw_bytes", "repository", "warnings")

    def __init__(self, name: str, repository: str, raw_bytes: int, warnings: list[str]) -> None:
        self.name = name
        self.repository = repository
        self.raw_bytes = raw_bytes
        self.warnings = warnings


def fetch_file(
    settings: Settings,
    server: ServerSettings,
    name: str,
    destination: str,
    *,
    pgdata: str,
    environment: Mapping[str, str],
) -> FetchResult | None:
    """Write the archived file ``name`` to ``destination``, replacing what is there.

    None only when it is proven absent in **every** repository of the server. The
    file is written aside in the same directory and renamed when the last digest
    was right; it is not synced (PostgreSQL replays it at once, and asks again
    after a crash). ``pgdata`` counts only when ``destination`` is not in the
    pg_wal of a data directory; its control file chooses the generation, without
    one it is the newest.

    A repository that fails is passed over for the next one and reported. When
    none delivers, the first failure is raised: StoreError, RepositoryError,
    CorruptObjectError, IdentityError, SettingsError; DestinationError and
    SpaceError (cannot write), WalFormatError (no such name) at once.
    """
    file = WalFile(name)
    pgdata = data_directory_of(destination, pgdata)
    control = control_of(pgdata)
    system_identifier = control.system_identifier if control is not None else None
    failures: list[PgrecallError] = []
    for repository in settings.repositories_of(server):
        try:
            store = archive_store(settings, repository, environment)
            chosen = Question(store, partial(_generation, store, server.name, system_identifier))
            archive = Archive(repository.name, store, open_repository(store))
            generation = chosen.answer()
            if file.kind == SEGMENT and pgdata:
                _check_tablespaces(archive, server.name, generation, file, pgdata)
            size = _fetch_from(archive, server.name, generation, file, destination)
        except (DestinationError, InterruptedRunError, SpaceError):
            raise
        except PgrecallError as error:
            failures.append(error)
        else:
            if size is not None:
                warnings = [failure.message for failure in failures]
                return FetchResult(name, repository.name, size, warnings)
    if failures:
        raise first_of(failures)
    return None


def _generation(store: Store, server: str, system_identifier: int | None) -> Generation:
    if system_identifier is not None:
        return require_generation(
            store, server, system_identifier, "the data directory's pg_control"
        )
    generation = latest_generation(store, server)
    if generation is None:
        raise IdentityError(
            f"{store.name} does not know the server {server!r}",
            hint="is this the right repository, and the right name of the server?",
        )
    return generation


def _fetch_from(
    archive: Archive, server: str, generation: Generation, file: WalFile, destination: str
) -> int | None:
    """Deliver from one repository: the raw size; None when it is proven absent there."""
    key = layout.wal_key(server, generation.number, file)
    try:
        stored = WalObjectReader(archive.store, key, archive.identity.raw_key())
    except ObjectMissingError:
        return None
    with stored:
        _check_header(archive, generation, file, stored)
        aside = f"{destination}.pgrecall-{os.getpid()}"
        try:
            _write_aside(archive, server, generation, file, (stored, aside))
            reached("fetch.written")
            os.rename(aside, destination)
        except OSError as error:
            _remove(aside)
            raise _cannot_write(destination, error) from error
        except BaseException:
            _remove(aside)
            raise
        return stored.header.raw_bytes


def _check_tablespaces(
    archive: Archive, server: str, generation: Generation, file: WalFile, pgdata: str
) -> None:
    """For a restored copy, and WAL that its plan did not see: see refuse_shared_tablespaces."""
    planned_to = copy_planned_to(pgdata)
    start = file.start(generation.segment_bytes)
    if planned_to is None or start + generation.segment_bytes <= planned_to:
        return
    index = _index(archive, server, generation, file)
    if index is None:
        return  # whether it is absent is found out, and said, by the fetch itself
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


def _write_aside(
    archive: Archive,
    server: str,
    generation: Generation,
    file: WalFile,
    transfer: tuple[WalObjectReader, str],
) -> None:
    stored, aside = transfer
    _remove(aside)  # of an earlier process with our pid
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        is_first = file.kind in (SEGMENT, PARTIAL)
        for frame in stored.frames():
            if is_first:
                _check_first_page(archive, server, generation, file, bytes(frame[:64]))
                is_first = False
            write_all(descriptor, frame)
        if is_first:
            raise WalFormatError(f"{file.name} in {archive.store.name} is empty")
    finally:
        os.close(descriptor)


def _check_first_page(
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


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _cannot_write(destination: str, error: OSError) -> PgrecallError:
    message = f"cannot write {destination}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(message, hint="recovery needs room for a few segments in pg_wal")
    return DestinationError(message, hint="restore_command runs in PGDATA with %p as path")
