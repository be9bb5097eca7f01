"""A file of pg_wal that is to be archived: read, and checked as far as it goes alone. Light."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from pgrecall.codec.wal_scan import SegmentHeader, read_segment_header, scan_segment
from pgrecall.errors import DataDirectoryError, IdentityError, WalFormatError
from pgrecall.model.wal_files import HISTORY, PARTIAL, SEGMENT, WalFile
from pgrecall.model.wal_index import WalIndex
from pgrecall.postgres.control import ControlData
from pgrecall.repository.identity import require_owner, require_writer
from pgrecall.store.base import Buffer, Store
from pgrecall.wal.archives import parse_history

LARGEST_SMALL_FILE = 1 << 20
"""PostgreSQL writes a few hundred bytes into what is no segment; a label may have 1 kB."""

# Larger segments are mapped, not read: that bounds memory, at some cost for each page.
_LARGEST_READ = 64 << 20


class Origin:
    """Whose a file is when its server's data directory is not on this host (streamed WAL).

    ``writer`` is the restore id of the copy that the server is, None for an
    original; ``where`` names the server in messages.
    """

    __slots__ = ("system_identifier", "where", "writer")

    def __init__(self, system_identifier: int, where: str, writer: str | None = None) -> None:
        self.system_identifier = system_identifier
        self.where = where
        self.writer = writer


class Source:
    """The file at hand, as far as it was checked without a repository."""

    __slots__ = ("control", "file", "header", "index", "origin", "path", "pgdata", "raw")

    def __init__(self, file: WalFile, path: str, raw: Buffer) -> None:
        self.file = file
        self.path = path
        self.raw = raw
        self.pgdata = ""
        self.control: ControlData | None = None
        self.origin: Origin | None = None
        self.header: SegmentHeader | None = None
        self.index: WalIndex | None = None

    def system(self) -> tuple[int, str]:
        """The system identifier and where it was found."""
        if self.header is not None:
            return self.header.system_identifier, f"{self.file.name} ({self.path})"
        if self.control is not None:
            return self.control.system_identifier, f"the data directory {self.pgdata}"
        if self.origin is not None:
            return self.origin.system_identifier, self.origin.where
        raise IdentityError(
            f"whose {self.file.name} is cannot be told: {self.pgdata} holds no pg_control",
            hint="run it as archive_command, or set data_directory of the server",
        )

    def require_owner(self, store: Store, server: str) -> str | None:
        """The restore id of the writer, if it owns the archive; raises NotOwnerError."""
        origin = self.origin
        if origin is None:
            return require_owner(store, server, self.pgdata)
        return require_writer(store, server, origin.writer, origin.where)


@contextmanager
def opened(path: str, file: WalFile) -> Iterator[Buffer]:
    """The file's content: read, or mapped when it has more than 64 MiB.

    Raises DataDirectoryError (unreadable), WalFormatError (no regular file, or too
    large for what it is).
    """
    is_segment = file.kind in (SEGMENT, PARTIAL)
    try:
        # Not blocking: a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise WalFormatError(f"{path} is not a regular file")
        size = found.st_size
        if size > LARGEST_SMALL_FILE and not is_segment:
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
        raise unreadable(path, error) from error
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


def unreadable(path: str, error: OSError) -> DataDirectoryError:
    """What to raise when a file of pg_wal cannot be read."""
    return DataDirectoryError(
        f"cannot read {path}: {error.strerror}",
        hint="archive_command runs as the server's user, in PGDATA, with %p as path",
    )


def check_source(
    file: WalFile,
    path: str,
    raw: Buffer,
    whose: tuple[str, ControlData | None],
    origin: Origin | None = None,
) -> Source:
    """Everything that can be proven without a repository (invariant 2).

    ``whose`` is the data directory to which ``path`` belongs, and its pg_control as
    it is now (None: it has none); neither counts with an ``origin``. Raises
    WalFormatError (no WAL), IdentityError (another server's), DataDirectoryError
    (``pgdata`` is not known).
    """
    pgdata, control = whose
    if not pgdata and origin is None:
        raise DataDirectoryError(
            f"to which data directory {path} belongs cannot be told",
            hint="run it as archive_command, or set data_directory of the server",
        )
    source = Source(file, path, raw)
    source.origin = origin
    if origin is None:
        source.pgdata = pgdata
        source.control = control
    if file.kind == HISTORY:
        if not parse_history(file.timeline, bytes(raw)).switches:
            raise WalFormatError(f"{path} names no ancestor of timeline {file.timeline}")
    elif file.kind in (SEGMENT, PARTIAL):
        _check_segment(source)
    return source


def _check_segment(source: Source) -> None:
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
    origin = source.origin
    if origin is not None and origin.system_identifier != header.system_identifier:
        raise IdentityError(
            f"{source.path} has system identifier {header.system_identifier}; {origin.where} has "
            f"{origin.system_identifier}",
            hint="the file was put there by something else; move it away",
        )
    source.header = header
    # A tail that is no WAL is PostgreSQL's affair (a switch, a crash); the index tells.
    source.index = scan_segment(raw, start).index
