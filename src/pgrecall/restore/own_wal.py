"""The WAL that came with a backup (``backup --with-wal``): the plan has not looked into it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pgrecall.codec.wal_crossing import complete_crossing
from pgrecall.codec.wal_scan import scan_segment
from pgrecall.errors import CorruptObjectError, WalFormatError
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import WalRange
from pgrecall.model.wal_files import SEGMENT, WalFile
from pgrecall.model.wal_index import TablespaceCreation, WalIndex


def own_tablespaces(
    target_dir: str, wal_range: WalRange, segment_bytes: int
) -> list[TablespaceCreation]:
    """Every CREATE TABLESPACE from the backup's start on in the segments of a restored pg_wal.

    Raises CorruptObjectError for a segment that is none.
    """
    found: list[TablespaceCreation] = []
    previous: WalIndex | None = None
    directory = os.path.join(target_dir, "pg_wal")
    for index in _indexes(directory, wal_range.timeline, segment_bytes):
        if previous is not None:
            crossing = complete_crossing([previous, index]).record
            if isinstance(crossing, TablespaceCreation):
                found.append(crossing)
        found.extend(index.tablespaces)
        previous = index
    start = Lsn.parse(wal_range.start)
    return [made for made in found if made.lsn >= start]


def _indexes(directory: str, timeline: int, segment_bytes: int) -> Iterator[WalIndex]:
    found = map(_segment, os.listdir(directory))
    segments = [file for file in found if file is not None and file.timeline == timeline]
    for file in sorted(segments, key=lambda file: file.start(segment_bytes)):
        with open(os.path.join(directory, file.name), "rb") as content:
            raw = content.read()
        try:
            yield scan_segment(raw, file.start(segment_bytes)).index
        except WalFormatError as error:
            raise CorruptObjectError(
                f"the backup's own {file.name} is no WAL: {error.message}",
                hint="restore another backup; this one cannot be replayed",
            ) from error


def _segment(name: str) -> WalFile | None:
    try:
        file = WalFile(name)
    except WalFormatError:
        return None
    return file if file.kind == SEGMENT else None
