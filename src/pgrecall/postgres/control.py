"""``global/pg_control``: what a data directory says about itself.

LIGHT: this is on the path of ``wal push`` and ``wal fetch``.

Layout: PostgreSQL's ``src/include/catalog/pg_control.h`` (struct ControlFileData), identical from
control version 1300 (PostgreSQL 13 to 16) to 1700 (17); 1800 (18) inserts one bool before the
authentication nonce. 17 placed the WAL level of the checkpoint into what was padding before.
The file is written in the byte order of its machine; it is read on the same one.
"""

from __future__ import annotations

import os
import struct
import time

from pgrecall.codec.crc import crc32c
from pgrecall.errors import DataDirectoryError
from pgrecall.model.lsn import Lsn

CONTROL_FILE = "global/pg_control"
CONTROL_FILE_BYTES = 8192
"""The file has always this size; the structure at its start is much shorter."""

CATALOG_MAJORS = {
    1300: (13, 16),
    1700: (17, 17),
    1800: (18, 18),
}
"""Control version to the first and last major version that write it."""

STATES = (
    "starting up",
    "shut down",
    "shut down in recovery",
    "shutting down",
    "in crash recovery",
    "in archive recovery",
    "in production",
)
"""The names that pg_controldata prints, in the order of the enum DBState."""

WAL_LEVELS = ("minimal", "replica", "logical")

# system identifier .. checkpoint LSN
_HEAD = struct.Struct("=QIIi4xqQ")
# The copy of the checkpoint record up to the end of the fields that are used.
_CHECKPOINT = struct.Struct("=QIIB7xQIIIIIII4xq")
_CHECKPOINT_OFFSET = 40
# unlogged LSN .. data checksum version
_REST = struct.Struct("=QQI4xQQB3xiB3xiiiiiB3xIdIIIIIIIIB3xI")
_REST_OFFSET = 128
_CRC = struct.Struct("=I")
_CRC_OFFSETS = {1300: 288, 1700: 288, 1800: 292}
_FLOAT_FORMAT = 1234567.0

_READ_ATTEMPTS = 50
_READ_PAUSE_SECONDS = 0.01


class ControlData:
    """The fields of pg_control that pgrecall uses. Sizes in bytes, times in seconds since 1970."""

    __slots__ = (
        "backup_end",
        "backup_end_required",
        "backup_start",
        "block_bytes",
        "catalog_version",
        "checkpoint_lsn",
        "checkpoint_time",
        "data_checksum_version",
        "max_connections",
        "max_locks_per_transaction",
        "max_prepared_transactions",
        "max_wal_senders",
        "max_worker_processes",
        "min_recovery_point",
        "min_recovery_timeline",
        "previous_timeline",
        "redo_lsn",
        "relation_segment_blocks",
        "segment_bytes",
        "state",
        "system_identifier",
        "timeline",
        "version",
        "wal_block_bytes",
        "wal_level",
        "wal_log_hints",
        "written_time",
    )

    system_identifier: int
    version: int
    catalog_version: int
    state: str
    written_time: int
    checkpoint_lsn: Lsn
    redo_lsn: Lsn
    timeline: int
    previous_timeline: int
    checkpoint_time: int
    min_recovery_point: Lsn
    min_recovery_timeline: int
    backup_start: Lsn
    backup_end: Lsn
    backup_end_required: bool
    wal_level: str
    wal_log_hints: bool
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    block_bytes: int
    relation_segment_blocks: int
    wal_block_bytes: int
    segment_bytes: int
    data_checksum_version: int

    @property
    def has_checksums(self) -> bool:
        """True when data pages carry checksums."""
        return self.data_checksum_version != 0

    @property
    def is_stopped(self) -> bool:
        """True when the state says that no postmaster works on the directory (clean stop)."""
        return self.state in {"shut down", "shut down in recovery"}

    @property
    def primary_timeline(self) -> int | None:
        """The timeline that the server writes, running, crashed or stopped; None on a standby.

        Between a promotion and the first checkpoint after it only the end of recovery
        names the new timeline, in ``min_recovery_timeline``.
        """
        if self.state in {"in archive recovery", "shut down in recovery"}:
            return None
        return max(self.timeline, self.min_recovery_timeline)

    @property
    def majors(self) -> tuple[int, int]:
        """First and last major version that write this control version."""
        return CATALOG_MAJORS[self.version]


def read_control(pgdata: str | os.PathLike[str]) -> ControlData:
    """Read and check ``global/pg_control`` of a data directory, running or not.

    A server writes the file in place; a read may see half of a write, so a wrong CRC is read again
    for half a second before it counts (fact 15, PostgreSQL's get_controlfile does the same).
    Raises DataDirectoryError when the file is missing, unreadable or invalid.
    """
    return parse_control(read_control_bytes(pgdata))


def read_control_bytes(pgdata: str | os.PathLike[str]) -> bytes:
    """The 8192 bytes of a valid ``global/pg_control``, re-read until the CRC is right.

    Raises DataDirectoryError as read_control does.
    """
    path = f"{os.fspath(pgdata)}/{CONTROL_FILE}"
    for attempt in range(_READ_ATTEMPTS):
        content = _read_file(path)
        try:
            parse_control(content, origin=path)
        except DataDirectoryError:
            if attempt == _READ_ATTEMPTS - 1:
                raise
            time.sleep(_READ_PAUSE_SECONDS)
        else:
            return content
    raise AssertionError("unreachable: the last attempt returns or raises")


def parse_control(content: bytes, origin: str = CONTROL_FILE) -> ControlData:
    """Parse the content of pg_control and check its CRC-32C.

    Raises DataDirectoryError, naming ``origin``, when it is truncated, of an unknown version, of
    another byte order, or damaged.
    """
    if len(content) < _HEAD.size:
        raise DataDirectoryError(
            f"{origin} is truncated: {len(content)} bytes",
            hint="the data directory is damaged or still being written",
        )
    version = _HEAD.unpack_from(content)[1]
    crc_offset = _CRC_OFFSETS.get(version)
    if crc_offset is None:
        raise DataDirectoryError(
            f"{origin} has control version {version}, which pgrecall does not know",
            hint="PostgreSQL 13 to 18 are supported; is this a data directory of this machine?",
        )
    if len(content) < crc_offset + _CRC.size:
        raise DataDirectoryError(
            f"{origin} is truncated: {len(content)} bytes",
            hint="the data directory is damaged or still being written",
        )
    (expected,) = _CRC.unpack_from(content, crc_offset)
    if crc32c(content[:crc_offset]) != expected:
        raise DataDirectoryError(
            f"{origin} does not match its checksum",
            hint="the data directory is damaged; restore it from a backup",
        )
    return _decode(content, origin)


def _decode(content: bytes, origin: str) -> ControlData:
    control = ControlData()
    (
        control.system_identifier,
        control.version,
        control.catalog_version,
        state,
        control.written_time,
        checkpoint_lsn,
    ) = _HEAD.unpack_from(content)
    checkpoint = _CHECKPOINT.unpack_from(content, _CHECKPOINT_OFFSET)
    rest = _REST.unpack_from(content, _REST_OFFSET)
    wal_level, float_format = rest[6], rest[15]
    if (
        float_format != _FLOAT_FORMAT
        or not 0 <= state < len(STATES)
        or not 0 <= wal_level < len(WAL_LEVELS)
    ):
        raise DataDirectoryError(
            f"{origin} holds values that no PostgreSQL 13 to 18 of this machine writes",
            hint="the data directory belongs to another platform, or to a modified PostgreSQL",
        )
    control.state = STATES[state]
    control.checkpoint_lsn = Lsn(checkpoint_lsn)
    control.redo_lsn = Lsn(checkpoint[0])
    control.timeline, control.previous_timeline = checkpoint[1:3]
    control.checkpoint_time = checkpoint[12]
    control.min_recovery_point = Lsn(rest[1])
    control.min_recovery_timeline = rest[2]
    control.backup_start = Lsn(rest[3])
    control.backup_end = Lsn(rest[4])
    control.backup_end_required = bool(rest[5])
    control.wal_level = WAL_LEVELS[wal_level]
    control.wal_log_hints = bool(rest[7])
    (
        control.max_connections,
        control.max_worker_processes,
        control.max_wal_senders,
        control.max_prepared_transactions,
        control.max_locks_per_transaction,
    ) = rest[8:13]
    (
        control.block_bytes,
        control.relation_segment_blocks,
        control.wal_block_bytes,
        control.segment_bytes,
    ) = rest[16:20]
    control.data_checksum_version = rest[25]
    return control


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(CONTROL_FILE_BYTES)
    except FileNotFoundError as error:
        raise DataDirectoryError(
            f"{path} does not exist: this is no PostgreSQL data directory",
            hint="check the setting data_directory of the server",
        ) from error
    except PermissionError as error:
        raise DataDirectoryError(
            f"{path} may not be read by this operating system user",
            hint="run pgrecall as the user that owns the data directory, usually postgres",
        ) from error
    except OSError as error:
        raise DataDirectoryError(
            f"{path} cannot be read: {error.strerror}",
            hint="check the disk and the mount of the data directory",
        ) from error
