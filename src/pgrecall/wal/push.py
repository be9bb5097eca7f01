"""``wal push``: put one file of pg_wal into every repository of its server. Light.

Called by PostgreSQL as archive_command. It answers success only when the file is
durable in every required repository (invariant 1), never overwrites (invariant 2),
and refuses what is not this server's (facts 1 and 2). It takes no lock: two
pushes of one file end with one that created it and one that found it.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from pgrecall.codec.compression import make_frame_encoder
from pgrecall.codec.wal_scan import SegmentHeader, read_segment_header, scan_segment
from pgrecall.errors import (
    CorruptObjectError,
    DataDirectoryError,
    IdentityError,
    InterruptedRunError,
    ObjectMissingError,
    PgrecallError,
    SettingsError,
    StoreError,
    WalConflictError,
    WalFormatError,
)
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import HISTORY, PARTIAL, SEGMENT, WalFile, history_name
from pgrecall.model.wal_index import WalIndex
from pgrecall.postgres.control import ControlData
from pgrecall.repository import layout
from pgrecall.repository.identity import (
    Generation,
    open_repository,
    require_generation,
    require_owner,
)
from pgrecall.repository.records import format_time
from pgrecall.repository.wal_objects import (
    WalContent,
    WalHeader,
    WalObjectReader,
    WalObjectWriter,
)
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import ServerSettings
from pgrecall.store.base import Buffer, Store
from pgrecall.system.faults import reached
from pgrecall.wal.archives import (
    Archive,
    Question,
    archive_store,
    archived_history,
    control_of,
    data_directory_of,
    first_of,
    parse_history,
)

CREATED = "created"
ALREADY_STORED = "already-stored"

# Larger segments are mapped, not read: that bounds memory, at some cost for each page.
_LARGEST_READ = 64 << 20
# PostgreSQL writes a few hundred bytes; a label may have 1 kB.
_LARGEST_SMALL_FILE = 1 << 20


class PushOutcome:
    """What became of the file in one repository: ``status`` is CREATED or ALREADY_STORED."""

    __slots__ = ("repository", "status", "stored_bytes")

    def __init__(self, repository: str, status: str, stored_bytes: int = 0) -> None:
        self.repository = repository
        self.status = status
        self.stored_bytes = stored_bytes


class PushResult:
    """The file is durable in every required repository.

    ``warnings``: what best-effort repositories missed, one text each.
    ``stopped_at`` as in WalIndex; empty for what is no segment. ``invalid``
    there is no failure: PostgreSQL handed the segment over as it is.
    """

    __slots__ = ("name", "outcomes", "raw_bytes", "stopped_at", "warnings")

    def __init__(self, name: str, raw_bytes: int, stopped_at: str) -> None:
        self.name = name
        self.raw_bytes = raw_bytes
        self.stopped_at = stopped_at
        self.outcomes: list[PushOutcome] = []
        self.warnings: list[str] = []

    @property
    def outcome(self) -> str:
        """CREATED if any repository lacked the file, else ALREADY_STORED."""
        statuses = [outcome.status for outcome in self.outcomes]
        return CREATED if CREATED in statuses else ALREADY_STORED

    @property
    def stored_bytes(self) -> int:
        """Bytes written, in all repositories together."""
        return sum(outcome.stored_bytes for outcome in self.outcomes)


class _Source:
    """The file at hand, as far as it was checked without a repository."""

    __slots__ = ("control", "file", "header", "index", "path", "pgdata", "raw")

    def __init__(self, file: WalFile, path: str, raw: Buffer) -> None:
        self.file = file
        self.path = path
        self.raw = raw
        self.pgdata = ""
        self.control: ControlData | None = None
        self.header: SegmentHeader | None = None
        self.index: WalIndex | None = None

    def system(self) -> tuple[int, str]:
        """The system identifier and where it was found."""
        if self.header is not None:
            return self.header.system_identifier, f"{self.file.name} ({self.path})"
        if self.control is not None:
            return self.control.system_identifier, f"the data directory {self.pgdata}"
        raise IdentityError(
            f"whose {self.file.name} is cannot be told: {self.pgdata} holds no pg_control",
            hint="run it as archive_command, or set data_directory of the server",
        )


def push_file(
    settings: Settings,
    server: ServerSettings,
    path: str,
    *,
    pgdata: str,
    environment: Mapping[str, str],
) -> PushResult:
    """Archive the file at ``path``; when this returns it is durable in every required repository.

    ``pgdata`` counts only when ``path`` is not in the pg_wal of a data directory
    (see data_directory_of); ``environment`` resolves secrets. What was stored
    before an error stays: pushing again is always right.

    Raises WalFormatError (no WAL), IdentityError (another server's),
    NotOwnerError (a restored copy), WalConflictError (other content under this
    name), CorruptObjectError (a damaged object under this name), StoreError,
    RepositoryError, SettingsError, DataDirectoryError.
    """
    file = WalFile(os.path.basename(path))
    repositories = settings.repositories_of(server)
    if all(repository.role != "required" for repository in repositories):
        raise SettingsError(
            f"no repository of server {server.name!r} is required: nothing would guarantee its WAL",
            hint='set role = "required" for at least one of them',
        )
    with _opened(path, file) as raw:
        source = _check_source(file, path, raw, data_directory_of(path, pgdata))
        reached("push.checked")
        stopped_at = source.index.stopped_at if source.index is not None else ""
        result = PushResult(file.name, len(raw), stopped_at)
        failures: list[PgrecallError] = []
        for repository in repositories:
            try:
                # repository.json is read in any case: that proves an object store to be ours,
                # and an empty listing need not ask for it again.
                is_local = repository.store == "local"
                store = archive_store(settings, repository, environment, is_anchored=is_local)
                outcome = _push_to(settings, server.name, (repository.name, store), source)
                result.outcomes.append(outcome)
            except InterruptedRunError:
                raise
            except PgrecallError as error:
                if repository.role == "required":
                    failures.append(error)
                else:
                    result.warnings.append(f"repository {repository.name!r}: {error.message}")
    if failures:
        raise first_of(failures)
    return result


# --- the file ------------------------------------------------------------------------


@contextmanager
def _opened(path: str, file: WalFile) -> Iterator[Buffer]:
    """The file's content: read, or mapped when it is large."""
    is_segment = file.kind in (SEGMENT, PARTIAL)
    try:
        # Not blocking: a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise WalFormatError(f"{path} is not a regular file")
        size = found.st_size
        if size > _LARGEST_SMALL_FILE and not is_segment:
            raise WalFormatError(f"{path} has {size} bytes; PostgreSQL writes a few hundred")
        if size > _LARGEST_READ:
            with (
                mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped,
                memoryview(mapped) as view,
            ):
                yield view
            return
        yield _read_all(descriptor, size)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, size: int) -> bytes:
    content = os.read(descriptor, size + 1)
    while 0 < len(content) < size:
        piece = os.read(descriptor, size + 1 - len(content))
        if not piece:
            break
        content += piece
    return content


def _unreadable(path: str, error: OSError) -> DataDirectoryError:
    return DataDirectoryError(
        f"cannot read {path}: {error.strerror}",
        hint="archive_command runs as the server's user, in PGDATA, with %p as path",
    )


def _check_source(file: WalFile, path: str, raw: Buffer, pgdata: str) -> _Source:
    """Everything that can be proven without a repository."""
    if not pgdata:
        raise DataDirectoryError(
            f"to which data directory {path} belongs cannot be told",
            hint="run it as archive_command, or set data_directory of the server",
        )
    source = _Source(file, path, raw)
    source.pgdata = pgdata
    source.control = control_of(pgdata)
    if file.kind == HISTORY:
        if not parse_history(file.timeline, bytes(raw)).switches:
            raise WalFormatError(f"{path} names no ancestor of timeline {file.timeline}")
    elif file.kind in (SEGMENT, PARTIAL):
        _check_segment(source)
    return source


def _check_segment(source: _Source) -> None:
    """Size, page address, system identifier; then the index (invariant 2)."""
    file, raw = source.file, source.raw
    try:
        header = read_segment_header(raw[:64])
    except WalFormatError as error:
        raise WalFormatError(f"{source.path}: {error.message}", hint=error.hint) from error
    if len(raw) != header.segment_bytes:
        raise WalFormatError(
            f"{source.path} has {len(raw)} bytes; a segment of its server has "
            f"{header.segment_bytes}",
            hint="the file is truncated, or is still being written",
        )
    start = file.start(header.segment_bytes)
    if header.page_address != start:
        raise IdentityError(
            f"{source.path} begins at LSN {header.page_address}; its name says {start}",
            hint="the file was renamed, or recycled and never written",
        )
    control = source.control
    if control is not None:
        for what, ours, theirs in (
            ("system identifier", control.system_identifier, header.system_identifier),
            ("segment size", control.segment_bytes, header.segment_bytes),
        ):
            if ours != theirs:
                raise IdentityError(
                    f"{source.path} has {what} {theirs}; the server in {source.pgdata} has {ours}",
                    hint="this WAL is another server's: find out how it came here",
                )
    source.header = header
    # A tail that is no WAL is PostgreSQL's affair (a switch, a crash); the index tells.
    source.index = scan_segment(raw, start).index


# --- one repository ------------------------------------------------------------------------


def _push_to(
    settings: Settings, server: str, repository: tuple[str, Store], source: _Source
) -> PushOutcome:
    name, store = repository
    file = source.file
    system_identifier, found_in = source.system()
    known = Question(store, lambda: require_generation(store, server, system_identifier, found_in))
    owned = Question(store, lambda: require_owner(store, server, source.pgdata))
    archive = Archive(name, store, open_repository(store))
    generation = known.answer()
    _check_generation(archive, server, generation, source)
    header = WalHeader(file.name, file.kind)
    header.system_identifier = system_identifier
    header.segment_bytes = generation.segment_bytes
    header.writer = owned.answer()
    header.pushed_at = datetime.now(UTC)
    index = source.index.to_bytes() if source.index is not None else b""
    content = WalContent(source.raw, index, archive.identity.raw_key())
    encode = make_frame_encoder(settings.wal.compression, settings.wal.level)
    key = layout.wal_key(server, generation.number, file)
    writer = WalObjectWriter(header, content, encode)
    reached("push.put")
    is_created = writer.write(store, key)
    reached("push.stored")
    if is_created:
        return PushOutcome(archive.name, CREATED, writer.stored_bytes)
    _compare(archive, key, header)
    return PushOutcome(archive.name, ALREADY_STORED)


def _check_generation(
    archive: Archive, server: str, generation: Generation, source: _Source
) -> None:
    header, file = source.header, source.file
    if header is None:
        return
    if header.segment_bytes != generation.segment_bytes:
        raise IdentityError(
            f"{source.path} is a segment of {header.segment_bytes} bytes; the server {server!r} "
            f"in {archive.store.name} has {generation.segment_bytes}",
            hint="after pg_resetwal --wal-segsize, open a new generation with "
            "`pgrecall server upgrade`",
        )
    if header.timeline == file.timeline:
        return
    history = _history_for(archive, server, generation, source)
    if history is None or not history.is_ancestor_or_self(header.timeline):
        lacks = "no history file here or in the archive" if history is None else "no such ancestor"
        raise IdentityError(
            f"{source.path} begins on timeline {header.timeline}; "
            f"timeline {file.timeline} has {lacks}",
            hint="the first segment after a promotion begins on an ancestor's timeline; this one "
            "belongs to another branch, or its history file is lost",
        )


def _history_for(
    archive: Archive, server: str, generation: Generation, source: _Source
) -> TimelineHistory | None:
    """The history of the file's timeline: beside it in pg_wal, or archived (fact 1)."""
    timeline = source.file.timeline
    beside = os.path.join(os.path.dirname(source.path), history_name(timeline))
    try:
        with open(beside, "rb") as file:
            return parse_history(timeline, file.read(_LARGEST_SMALL_FILE))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unreadable(beside, error) from error
    try:
        return archived_history(archive, server, generation.number, timeline)
    except ObjectMissingError:
        return None


def _compare(archive: Archive, key: str, header: WalHeader) -> None:
    """Accept what is stored under the name if it equals what was to be stored (fact 5).

    Header, end and frame table are read: an object that a store has cut off is
    not taken for the file, its frames are not read again.
    """
    store = archive.store
    raw_key = archive.identity.raw_key()
    try:
        with WalObjectReader(store, key, raw_key, reads_frames=False) as opened:
            stored = opened.header
    except ObjectMissingError as error:
        raise StoreError(
            f"{key} in {store.name} was taken when {header.name} was put, and is gone now",
            hint="something else deletes in this repository",
        ) from error
    except CorruptObjectError as error:
        raise CorruptObjectError(
            f"what is stored under the name {header.name} is damaged, and was not replaced: "
            f"{error.message}",
            hint=f"move {key} out of the repository; the next push stores the file again",
        ) from error
    if stored.same_content(header) and stored.name == header.name:
        return
    when = format_time(stored.pushed_at) if stored.pushed_at is not None else "an unknown time"
    raise WalConflictError(
        f"{store.name} already holds {header.name} with other content: pushed at {when} by "
        f"{_who(stored.writer)}, {stored.raw_bytes} bytes, system {stored.system_identifier}; "
        f"now {_who(header.writer)} brings {header.raw_bytes} bytes, system "
        f"{header.system_identifier}. Nothing was replaced.",
        hint="two servers write this timeline (a copy that was promoted, an old primary that came "
        "back): stop the wrong one. If it is this one, set archive_mode = off here. If this one "
        "is right, promote it to a new timeline and take a backup at once",
    )


def _who(writer: str | None) -> str:
    return "the original server" if writer is None else f"the restored copy {writer}"
