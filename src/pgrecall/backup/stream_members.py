"""What the members of a streamed archive become: entries, units for the workers, or nothing.

The rules are those of a walk (selection.py): the server leaves out most of it by itself, and knows
nothing of what pgrecall keeps in a data directory.
"""

from __future__ import annotations

from pgrecall.backup import selection
from pgrecall.backup.stream_pool import StreamPool
from pgrecall.backup.stream_table import StreamTable
from pgrecall.backup.stream_worker import UNIT_BYTES, Slice, StreamUnit
from pgrecall.codec.tar_stream import DIRECTORY as TAR_DIRECTORY
from pgrecall.codec.tar_stream import FILE as TAR_FILE
from pgrecall.codec.tar_stream import TarMember, TarReader
from pgrecall.errors import BackupError, WalFormatError
from pgrecall.model.file_table import DIRECTORY, FILE
from pgrecall.model.wal_files import SEGMENT, WalFile, history_name
from pgrecall.repository.packs import FRAME_BYTES

LABEL_FILE = b"backup_label"
MAP_FILE = b"tablespace_map"
#: Small files that are looked into; the last is stored as well.
_READ = frozenset({LABEL_FILE, MAP_FILE, selection.COPY_MARKER, selection.CONTROL_FILE})
_LARGEST_READ = 1 << 20
_UNIT_SLICES = 2048


class StreamMembers:
    """Takes the archives of one backup, one after the other; for the thread that reads.

    ``contents``: of backup_label, tablespace_map, pg_control and a copy's marker, by path.
    ``wal_files``: the WAL that came along.
    """

    def __init__(self, table: StreamTable, pool: StreamPool, timeline: int) -> None:
        self.contents: dict[bytes, bytes] = {}
        self.wal_files: list[str] = []
        self._table = table
        self._pool = pool
        self._timeline = timeline
        self._unit: StreamUnit | None = None
        self._prefix = b""
        self._reader: TarReader | None = None
        # The member under way: where its bytes go, and how many have come.
        self._path = b""
        self._file = -1
        self._size = self._offset = 0
        self._wanted = self._slice_start = 0
        self._collected: bytearray | None = None

    # --- archives ------------------------------------------------------------------

    def archive(self, oid: int | None) -> None:
        """The archive of a tablespace begins, or that of PGDATA (None)."""
        self.finish_archive()
        self._prefix = b"" if oid is None else b"pg_tblspc/%d/" % oid
        name = "the server's archive of " + ("PGDATA" if oid is None else f"tablespace {oid}")
        self._reader = TarReader(self, name)

    def archive_data(self, data: memoryview) -> None:
        """The next bytes of the archive."""
        if self._reader is None:
            raise BackupError("the server sent data before the first archive")
        self._reader.feed(data)

    def finish_archive(self) -> None:
        """The archive is complete; raises BackupError if it is not."""
        if self._reader is not None:
            self._reader.finish()
        self._reader = None

    def flush(self) -> None:
        """Hand over what is not handed over yet."""
        unit, self._unit = self._unit, None
        if unit is not None:
            self._pool.submit(unit)

    # --- members (TarSink) -----------------------------------------------------------

    def begin(self, member: TarMember) -> None:
        """A member begins."""
        path = self._prefix + member.path
        self._path, self._file, self._collected = path, -1, None
        self._size, self._offset, self._wanted = member.size, 0, 0
        if self._prefix and b"/" not in member.path:
            # The link of a tablespace is not sent: it is a directory to us, as its content is.
            self._add(self._prefix[:-1], DIRECTORY, member)
        if member.kind == TAR_FILE and path in _READ:
            if member.size > _LARGEST_READ:
                raise BackupError(f"the server sent {path.decode()} with {member.size} bytes")
            self._collected = bytearray()
        if is_left_out(path) or self._is_other_wal(path, member):
            return
        if member.kind == TAR_FILE:
            self._file = self._add(path, FILE, member)
        elif member.kind == TAR_DIRECTORY:
            self._add(path, DIRECTORY, member)
        else:
            raise BackupError(f"the server sent the link {path!r}, which it never does")

    def content(self, data: memoryview) -> None:
        """The next bytes of the member."""
        if self._collected is not None:
            self._collected += data
        if self._file < 0:
            return
        at, end = 0, len(data)
        while at < end:
            if not self._wanted:
                self._begin_slice()
            unit = self._unit
            assert unit is not None
            count = min(self._wanted, end - at)
            unit.buffer[unit.used : unit.used + count] = data[at : at + count]
            unit.used += count
            self._wanted -= count
            if not self._wanted:
                self._end_slice(unit)
            at += count

    def end(self) -> None:
        """The member is complete."""
        if self._collected is not None:
            self.contents[self._path] = bytes(self._collected)

    # --- inside ----------------------------------------------------------------------

    def _begin_slice(self) -> None:
        """Make room for the next MiB of the file, or what is left of it."""
        place = self._offset % FRAME_BYTES
        self._wanted = min(FRAME_BYTES - place, self._size - self._offset)
        unit = self._unit
        if unit is not None and (
            unit.used + self._wanted > UNIT_BYTES or len(unit.slices) >= _UNIT_SLICES
        ):
            self.flush()
        if self._unit is None:
            self._unit = self._pool.empty_unit()
        self._slice_start = self._unit.used

    def _end_slice(self, unit: StreamUnit) -> None:
        length = unit.used - self._slice_start
        unit.slices.append(Slice(self._file, self._path, self._offset, self._slice_start, length))
        self._offset += length

    def _add(self, path: bytes, kind: int, member: TarMember) -> int:
        stat = (member.mode, member.uid, member.gid, member.modified)
        return self._table.add(path, kind, member.size, stat)

    def _is_other_wal(self, path: bytes, member: TarMember) -> bool:
        """Whether it is a file of pg_wal that no backup holds; notes those that one does."""
        directory, _, name = path.rpartition(b"/")
        if member.kind != TAR_FILE or not (directory + b"/").startswith(b"pg_wal/"):
            return False
        text = name.decode("ascii", "replace")
        if directory != b"pg_wal" or not self._is_needed(text):
            return True
        self.wal_files.append(text)
        return False

    def _is_needed(self, name: str) -> bool:
        """A segment of the backup's timeline, or its history, as a local backup takes them."""
        if name == history_name(self._timeline) and self._timeline > 1:
            return True
        try:
            file = WalFile(name)
        except WalFormatError:
            return False
        return file.kind == SEGMENT and file.timeline == self._timeline


def is_left_out(path: bytes) -> bool:
    """Whether no backup holds it, though a server sends it."""
    directory, _, name = path.rpartition(b"/")
    if path.startswith(selection.KEPT_PREFIX):
        return True
    return selection.is_excluded_file(directory, name)
