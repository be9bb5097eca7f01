"""The receiver's spool: WAL on this host's disk, durable before anybody is told so.

In the directory are, with the names that PostgreSQL gives them:

- ``SEGMENT.partial``: being written; its size is what was received of it.
- ``SEGMENT``: whole and durable, until every required repository has it.
- ``SEGMENT.tail``: the last of a timeline that was left in it; no more will come.
- ``TTTTTTTT.history``: not in every required repository yet.
- ``origin.json``: whose WAL this is, so that it can be stored when the server is gone.
- ``lock``: held by the receiver.

A file is fsynced before it is renamed, and the directory after that. After a
crash the newest partial file is cut back to the end of its last valid record
(by CRC): what follows in it may never have reached the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Sequence

from pgrecall.codec.wal_scan import read_segment_header, scan_segment
from pgrecall.errors import DestinationError, PgrecallError, SpaceError, WalFormatError
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import HISTORY, PARTIAL, SEGMENT, WalFile, segment_name, segment_start
from pgrecall.system.durable import fsync_directory, write_durable
from pgrecall.system.faults import reached
from pgrecall.wal.agent_places import DIRECTORY_MODE
from pgrecall.wal.receive_plan import Position, SpoolDiverged

PARTIAL_SUFFIX = ".partial"
TAIL_SUFFIX = ".tail"
_FILE_MODE = 0o600
# The kernel takes one more in one call (IOV_MAX); that one is the piece at hand.
_MOST_PIECES = 1023

Buffer = bytes | memoryview


class Unfinished:
    """What the spool durably holds of the segment that is being written."""

    __slots__ = ("end", "name", "path", "start")

    def __init__(self, name: str, path: str, start: Lsn, end: Lsn) -> None:
        self.name = name
        self.path = path
        self.start = start
        self.end = end


class Spool:
    """One receiver's spool. Writing is for one thread; ``unfinished`` and ``ready`` for any."""

    def __init__(self, directory: str) -> None:
        """Make the directory and take its lock; raises DestinationError, SpaceError."""
        self.directory = directory
        self.segment_bytes = 0
        self.position = Position(0, Lsn(0))
        self.flushed_to = Lsn(0)
        self._file = -1
        self._name = ""
        self._held_bytes = 0
        self._guard = threading.Lock()
        try:
            _make_durable(directory)
            self._lock = _locked(f"{directory}/lock")
        except OSError as error:
            raise cannot_write(directory, error) from error

    # --- after a start -------------------------------------------------------------

    def recover(self, segment_bytes: int) -> Position | None:
        """Make what an earlier process left sound; where it ends (None: nothing is here).

        Cut-off writes are cut back, older partial files become tails. Everything is
        durable when it returns. Raises DestinationError, SpaceError.
        """
        self.segment_bytes = segment_bytes
        try:
            names = os.listdir(self.directory)
            for name in names:
                if name.startswith("."):
                    os.unlink(f"{self.directory}/{name}")  # written aside, never put in place
            partial = sorted(name for name in names if _is(name, PARTIAL))
            whole = sorted(name for name in names if _is(name, SEGMENT))
            ended = [name for name in partial[:-1] if not self._cut(name)]
            for name in ended:
                self._rename(name, name.removesuffix(PARTIAL_SUFFIX) + TAIL_SUFFIX)
            kept = partial[-1:] if partial and not self._cut(partial[-1]) else []
            fsync_directory(self.directory)
        except OSError as error:
            raise cannot_write(self.directory, error) from error
        last = max([*whole, *kept], default="")
        if not last:
            return None
        file = WalFile(last)
        start = file.start(segment_bytes)
        if file.kind == SEGMENT and kept:
            self._rename(kept[0], kept[0].removesuffix(PARTIAL_SUFFIX) + TAIL_SUFFIX)
            fsync_directory(self.directory)
        if file.kind == SEGMENT:
            return Position(file.timeline, Lsn(start + segment_bytes))
        size = os.stat(f"{self.directory}/{last}").st_size
        self._name, self._held_bytes = file.segment, size
        self.position = Position(file.timeline, start)
        self.flushed_to = Lsn(start + size)
        return Position(file.timeline, Lsn(start + size))

    def _cut(self, name: str) -> bool:
        """Cut a partial file back to its valid records; True: nothing was valid, it is gone."""
        path = f"{self.directory}/{name}"
        with open(path, "r+b") as file:
            content = file.read()
            end = valid_bytes(content, WalFile(name).start(self.segment_bytes), self.segment_bytes)
            if end < len(content):
                file.truncate(end)
            os.fsync(file.fileno())
        if end == 0:
            os.unlink(path)
        return end == 0

    # --- writing -------------------------------------------------------------------

    def begin(self, timeline: int, start: Lsn) -> None:
        """Write from the segment that begins at ``start`` on.

        What is there of it already is compared with what comes, not written again.
        Another partial file stays as a tail. Raises DestinationError, SpaceError.
        """
        name = segment_name(timeline, start, self.segment_bytes)
        try:
            self._close()
            if self._name and self._name != name:
                self.end_timeline()
            self._open(name)
        except OSError as error:
            raise cannot_write(self.directory, error) from error
        self.position = Position(timeline, start)

    @property
    def is_comparing(self) -> bool:
        """True while what arrives is in the spool already."""
        return self.position.lsn % self.segment_bytes < self._held_bytes

    @property
    def is_dirty(self) -> bool:
        """True when there is something to flush."""
        return self.position.lsn > self.flushed_to

    def write(self, pieces: Sequence[Buffer]) -> list[str]:
        """Write consecutive pieces at the position; the names of segments that became whole.

        Those are durable, the rest after ``flush``. Raises SpoolDiverged when other
        bytes are there already, SpaceError, DestinationError; then the position
        stands before what was not written.
        """
        whole: list[str] = []
        waiting: list[Buffer] = []
        at = begins = self.position.lsn % self.segment_bytes
        try:
            for piece in pieces:
                rest = piece
                while at + len(rest) >= self.segment_bytes or len(waiting) == _MOST_PIECES:
                    # The segment becomes whole, or the kernel takes no more in one call.
                    part = rest[: self.segment_bytes - at]
                    rest = rest[len(part) :]
                    at += len(part)
                    self._put([*waiting, part], at - begins)
                    waiting = []
                    if at == self.segment_bytes:
                        whole.append(self._finish())
                        at = 0
                    begins = at
                if len(rest):
                    waiting.append(rest)
                    at += len(rest)
            if waiting:
                self._put(waiting, at - begins)
        except OSError as error:
            raise cannot_write(self.directory, error) from error
        return whole

    def flush(self) -> Lsn:
        """Make everything that was written durable; up to where that is."""
        if self._file >= 0 and self.is_dirty:
            reached("receive.flush")
            try:
                self._sync()
            except OSError as error:
                raise cannot_write(self.directory, error) from error
            reached("receive.flushed")
            with self._guard:
                self.flushed_to = self.position.lsn
        return self.flushed_to

    def end_timeline(self) -> None:
        """Nothing more comes for the partial file: it becomes a tail."""
        if not self._name:
            return
        self.flush()
        self._close()
        name, self._name, self._held_bytes = self._name, "", 0
        path = f"{self.directory}/{name}{PARTIAL_SUFFIX}"
        try:
            if os.stat(path).st_size:
                self._rename(name + PARTIAL_SUFFIX, name + TAIL_SUFFIX)
            else:
                os.unlink(path)
            fsync_directory(self.directory)
        except OSError as error:
            raise cannot_write(self.directory, error) from error

    def add(self, name: str, content: bytes) -> None:
        """Put a history file or a record into the spool, durable."""
        try:
            write_durable(f"{self.directory}/{name}", [content])
        except OSError as error:
            raise cannot_write(self.directory, error) from error

    # --- what is here ----------------------------------------------------------------

    def ready(self) -> list[str]:
        """Names of what can be stored: histories first, then segments and tails in order."""
        names = os.listdir(self.directory)
        histories = sorted(name for name in names if _is(name, HISTORY))
        segments = [name for name in names if _is(name, SEGMENT)]
        tails = [name for name in names if name.endswith(TAIL_SUFFIX)]
        return histories + sorted(segments + tails)

    def holds_wal(self) -> bool:
        """True when anything here is not stored yet, the unfinished segment included."""
        return bool(self._name or self.ready())

    def unfinished(self) -> Unfinished | None:
        """What is durable of the segment that is being written; None when nothing is."""
        with self._guard:
            name, end = self._name, self.flushed_to
        if not name:
            return None
        start = WalFile(name).start(self.segment_bytes)
        if not start < end < start + self.segment_bytes:
            return None
        return Unfinished(name, f"{self.directory}/{name}{PARTIAL_SUFFIX}", start, end)

    def close(self) -> None:
        """Let go of file and lock; what was not flushed is not promised."""
        self._close()
        os.close(self._lock)

    # --- inside ------------------------------------------------------------------------

    def _open(self, name: str) -> None:
        path = f"{self.directory}/{name}{PARTIAL_SUFFIX}"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(path, flags, _FILE_MODE)
        self._held_bytes = os.fstat(self._file).st_size
        if self._held_bytes:
            os.fsync(self._file)
        fsync_directory(self.directory)
        # Together: what is unfinished is never told with another segment's end.
        with self._guard:
            self._name = name
            start = WalFile(name).start(self.segment_bytes)
            self.flushed_to = Lsn(start + self._held_bytes)

    def _put(self, parts: list[Buffer], total: int) -> None:
        """Write parts that lie in one segment, or compare them with what it has."""
        if self._file < 0:
            start = segment_start(self.position.lsn, self.segment_bytes)
            self._open(segment_name(self.position.timeline, start, self.segment_bytes))
        offset = self.position.lsn % self.segment_bytes
        if offset < self._held_bytes:
            parts, compared = self._compare(parts, offset)
            offset += compared
            total -= compared
            self.position = Position(self.position.timeline, Lsn(self.position.lsn + compared))
        while total:
            written = os.pwritev(self._file, parts, offset)
            offset += written
            total -= written
            self.position = Position(self.position.timeline, Lsn(self.position.lsn + written))
            if total:
                parts = _without(parts, written)
        reached("receive.written")

    def _compare(self, parts: list[Buffer], offset: int) -> tuple[list[Buffer], int]:
        """The parts that are new, and how many bytes were compared; raises SpoolDiverged."""
        fresh: list[Buffer] = []
        compared = 0
        for part in parts:
            known = part[: max(0, self._held_bytes - offset - compared)]
            if len(known) and os.pread(self._file, len(known), offset + compared) != known:
                raise SpoolDiverged(self._name, Lsn(self.position.lsn + compared))
            compared += len(known)
            if len(known) < len(part):
                fresh.append(part[len(known) :])
        return fresh, compared

    def _finish(self) -> str:
        """The segment is whole: durable under its name."""
        self._sync()
        reached("receive.whole")
        self._close()
        name = self._name
        self._rename(name + PARTIAL_SUFFIX, name)
        fsync_directory(self.directory)
        reached("receive.renamed")
        with self._guard:
            self._name, self._held_bytes = "", 0
            self.flushed_to = self.position.lsn
        return name

    def _sync(self) -> None:
        try:
            os.fdatasync(self._file)
        except OSError:
            # What the kernel could not write it now calls clean: a second call would succeed
            # without it. So nothing is kept of what was not flushed before.
            kept = max(0, self.flushed_to - WalFile(self._name).start(self.segment_bytes))
            os.ftruncate(self._file, kept)
            raise

    def _rename(self, old: str, new: str) -> None:
        os.rename(f"{self.directory}/{old}", f"{self.directory}/{new}")

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def valid_bytes(content: bytes, start: int, segment_bytes: int) -> int:
    """How many bytes from the segment's beginning are whole, valid records."""
    try:
        read_segment_header(content[:64])
        padded = bytearray(segment_bytes)
        padded[: len(content)] = content
        index = scan_segment(padded, start).index
    except WalFormatError:
        return 0
    return min(len(content), index.end_lsn - start)


def cannot_write(path: str, error: OSError) -> PgrecallError:
    """What to raise when the spool fails."""
    message = f"cannot write {path}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(
            message,
            hint="the server keeps what was not received (see max_slot_wal_keep_size): make room,"
            " or see why the repositories do not take what is spooled, and start it again",
        )
    return DestinationError(message, hint="agent.directory must be this user's, on a healthy disk")


def _make_durable(directory: str) -> None:
    """Make a directory and those above it; each entry that is new survives a power cut."""
    if os.path.isdir(directory):
        return
    above = os.path.dirname(directory)
    _make_durable(above)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, DIRECTORY_MODE)
    fsync_directory(above)


def _locked(path: str) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DestinationError(
            f"another receiver writes to {os.path.dirname(path)}",
            hint="one is enough: the agent receives already, or another wal receive does",
        ) from None
    return descriptor


def _is(name: str, kind: str) -> bool:
    try:
        return WalFile(name).kind == kind
    except WalFormatError:
        return False


def _without(parts: list[Buffer], count: int) -> list[Buffer]:
    """``parts`` without their first ``count`` bytes."""
    rest: list[Buffer] = []
    for part in parts:
        if count >= len(part):
            count -= len(part)
            continue
        rest.append(part[count:])
        count = 0
    return rest
