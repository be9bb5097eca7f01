"""Names of the files in pg_wal: segments, partial segments, history and backup history files.

Source: PostgreSQL's src/include/access/xlog_internal.h. Segment size is a
parameter everywhere: 1 MiB to 1 GiB, a power of two.
"""

from __future__ import annotations

from pgrecall.errors import WalFormatError
from pgrecall.model.lsn import Lsn

SEGMENT = "segment"
PARTIAL = "partial"
HISTORY = "history"
BACKUP_HISTORY = "backup-history"

MINIMUM_SEGMENT_BYTES = 1 << 20
MAXIMUM_SEGMENT_BYTES = 1 << 30

_HEX = frozenset("0123456789ABCDEF")


def is_segment_size(size_bytes: int) -> bool:
    """True for a power of two from 1 MiB to 1 GiB."""
    in_range = MINIMUM_SEGMENT_BYTES <= size_bytes <= MAXIMUM_SEGMENT_BYTES
    return in_range and size_bytes & (size_bytes - 1) == 0


class WalFile:
    """A parsed name of a file that PostgreSQL archives.

    ``kind`` is SEGMENT, PARTIAL, HISTORY or BACKUP_HISTORY; ``timeline`` its
    timeline. ``segment`` is the 24-character segment name (empty for a history
    file); ``log`` its first number (LSN >> 32), ``part`` the second, which
    counts segments within the 4 GiB of one log.
    """

    __slots__ = ("kind", "log", "name", "part", "segment", "timeline")

    def __init__(self, name: str) -> None:
        """Parse ``name``; raises WalFormatError when PostgreSQL uses no such name."""
        self.name = name
        self.log = 0
        self.part = 0
        self.segment = ""
        stem, _, suffix = name.partition(".")
        if suffix == "history" and _is_hex(stem, 8):
            self.kind = HISTORY
            self.timeline = int(stem, 16)
        elif _is_hex(stem, 24):
            self.kind = self._segment_kind(suffix)
            self.segment = stem
            self.timeline = int(stem[:8], 16)
            self.log = int(stem[8:16], 16)
            self.part = int(stem[16:], 16)
        else:
            raise _bad_name(name)
        if self.timeline == 0:
            raise _bad_name(name)

    def _segment_kind(self, suffix: str) -> str:
        if suffix == "":
            kind = SEGMENT if "." not in self.name else ""
        elif suffix == "partial":
            kind = PARTIAL
        else:
            offset, _, backup = suffix.partition(".")
            kind = BACKUP_HISTORY if backup == "backup" and _is_hex(offset, 8) else ""
        if not kind:
            raise _bad_name(self.name)
        return kind

    def start(self, segment_bytes: int) -> Lsn:
        """LSN of the first byte; raises WalFormatError if the name does not fit the size."""
        if self.part >= (1 << 32) // segment_bytes:
            raise WalFormatError(
                f"{self.name} is no segment of a server with {segment_bytes >> 20} MiB segments"
            )
        return Lsn((self.log << 32) + self.part * segment_bytes)

    def __repr__(self) -> str:
        return f"WalFile({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WalFile) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


def segment_name(timeline: int, lsn: int, segment_bytes: int) -> str:
    """Name of the segment that holds the byte at ``lsn`` on ``timeline``."""
    part = (lsn & 0xFFFFFFFF) // segment_bytes
    return f"{timeline:08X}{lsn >> 32:08X}{part:08X}"


def segment_start(lsn: int, segment_bytes: int) -> Lsn:
    """First byte of the segment that holds ``lsn``."""
    return Lsn(lsn - lsn % segment_bytes)


def history_name(timeline: int) -> str:
    """Name of a timeline's history file."""
    return f"{timeline:08X}.history"


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and _HEX.issuperset(text)


def _bad_name(name: str) -> WalFormatError:
    return WalFormatError(
        f"{name!r} is not the name of a WAL file",
        hint="PostgreSQL passes %f (a file name) and %p (its path); check archive_command",
    )
