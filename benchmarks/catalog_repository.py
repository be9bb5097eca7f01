"""A repository of many backups and segments, as pgrecall itself would have left it after a year.

Every object is real and is read as any other: segments (header, frames, index, digests; only the
WAL itself is a byte long), ``.partial`` and ``.backup`` files, history files of four timelines,
roll-ups, completion records, retention records and run records. Only packs and manifests of the
backups are not there: no command that is timed asks for them. Nothing is synced.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path

from pgrecall.codec.compression import make_frame_encoder
from pgrecall.codec.digests import raw_digest
from pgrecall.model.ids import BACKUP, RUN, new_id
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion, Totals
from pgrecall.model.runs import RunRecord
from pgrecall.model.wal_files import WalFile, history_name, segment_name
from pgrecall.model.wal_index import Times, Unfinished, WalIndex, microseconds_of
from pgrecall.repository import layout
from pgrecall.repository.documents import sealed
from pgrecall.repository.identity import (
    RepositoryIdentity,
    System,
    add_generation,
    create_repository,
    open_repository,
)
from pgrecall.repository.journal import Journal
from pgrecall.repository.retention_log import RetentionRecord, append_record
from pgrecall.repository.segment_rows import row_from
from pgrecall.repository.wal_objects import WalContent, WalHeader, WalObjectWriter
from pgrecall.repository.wal_rollups import RolledSegment, encode_rollup
from pgrecall.store.base import Buffer
from pgrecall.store.buffered import BufferedWriter
from pgrecall.store.local import LocalStore

SIZE = 16 << 20
PER_LOG = (1 << 32) // SIZE
SYSTEM = 7_000_000_000_000_000_001
SERVER = "main"
TIMELINES = 4
DAYS = 365

_ENCODE = make_frame_encoder("none", 1)


class Shape:
    """How large it is: so many backups and segments, evenly over a year that ends at ``end``.

    Timeline ``t`` (1 to 4) has the segments from ``first(t)`` on; the one in which it begins is
    the last of its parent, too.
    """

    def __init__(self, backups: int, segments: int, end: datetime) -> None:
        self.backups = backups
        self.segments = segments
        self.begin = end - timedelta(days=DAYS)
        self.step = timedelta(days=DAYS) / segments

    def moment(self, segment: float) -> datetime:
        """When the WAL at that place was written."""
        return self.begin + self.step * segment

    def first(self, timeline: int) -> int:
        """Number of the first segment of a timeline."""
        return self.segments * (timeline - 1) // TIMELINES

    def timeline_of(self, segment: int) -> int:
        """The timeline on which a segment was finished."""
        return max(t for t in range(1, TIMELINES + 1) if self.first(t) <= segment)


class UnsyncedStore(LocalStore):
    """A directory that is written without a sync and without a look at what is there."""

    @cached_property
    def identity(self) -> RepositoryIdentity:
        """Whose objects are written."""
        return open_repository(self)

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        path = Path(self.root, key)
        try:
            file = path.open("xb")
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        with file:
            file.writelines(parts)
        return True

    def writer(self, key: str) -> BufferedWriter:  # type: ignore[override]
        return BufferedWriter(self.put, key)


def build(root: Path, shape: Shape) -> None:
    """Write the repository below ``root``, with a process for each processor."""
    store = UnsyncedStore(str(root))
    store.create_root()
    create_repository(store, shape.begin)
    add_generation(store, SERVER, System(SYSTEM, 18, SIZE, 8192), shape.begin)
    for timeline in range(2, TIMELINES + 1):
        content = "".join(
            f"{before}\t{_switch(shape, before + 1)}\tno recovery target specified\n"
            for before in range(1, timeline)
        )
        _put(store, history_name(timeline), content.encode(), shape.moment(shape.first(timeline)))
    logs = range(0, shape.segments, PER_LOG)
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(partial(_log_directory, str(root), shape), logs, chunksize=8):
            pass
    for number in range(shape.backups):
        _backup(store, shape, number)
    for number in range(1, 51):
        record = RetentionRecord(
            number=number, kind="hold" if number % 2 else "release", recorded_at=shape.begin,
            run_id="r-20260101T000000Z-0000", host="db1",
            items={"b-20260101T000000Z-0000": "a test"},
        )  # fmt: skip
        append_record(store, SERVER, record)


def _switch(shape: Shape, timeline: int) -> Lsn:
    """Where ``timeline`` leaves its parent: in the middle of its first segment."""
    return Lsn(shape.first(timeline) * SIZE + SIZE // 2)


def _log_directory(root: str, shape: Shape, first: int) -> None:
    store = UnsyncedStore(root)
    rolled: dict[int, list[tuple[RolledSegment, bytes]]] = {}
    for number in range(first, min(first + PER_LOG, shape.segments)):
        timeline = shape.timeline_of(number)
        name = segment_name(timeline, number * SIZE, SIZE)
        index = _index(shape, number).to_bytes()
        size = _put(store, name, b"x", shape.moment(number + 1), index)
        row, points = row_from(index, number * SIZE) or (None, ())
        entry = RolledSegment(
            name, size, raw_digest(store.identity.raw_key(), b"x").hex(), len(index), row, points
        )
        rolled.setdefault(timeline, []).append((entry, index))
        if timeline > 1 and number == shape.first(timeline):
            parent = segment_name(timeline - 1, number * SIZE, SIZE)
            _put(store, f"{parent}.partial", b"x", shape.moment(number + 0.5))
    for timeline, entries in rolled.items():
        if first + 2 * PER_LOG < shape.segments:  # the agent would not have done it yet
            key = layout.rollup_key(SERVER, 1, timeline, f"{first // PER_LOG:08X}")
            store.put(key, [encode_rollup(entries, store.identity.repository_id)])


def _put(store: UnsyncedStore, name: str, content: bytes, at: datetime, index: bytes = b"") -> int:
    """Write a file of the archive, as of ``at``; the size of its object."""
    file = WalFile(name)
    header = WalHeader(name, file.kind)
    header.system_identifier, header.segment_bytes, header.pushed_at = SYSTEM, SIZE, at
    stored = WalContent(content, index, store.identity.raw_key())
    key = layout.wal_key(SERVER, 1, file)
    writer = WalObjectWriter(header, stored, _ENCODE)
    writer.write(store, key)
    os.utime(Path(store.root, key), (at.timestamp(), at.timestamp()))
    return writer.stored_bytes


def _index(shape: Shape, number: int) -> WalIndex:
    index = WalIndex(number * SIZE, SIZE, shape.timeline_of(number))
    begin, end = (microseconds_of(shape.moment(number + part)) for part in (0, 0.9))
    index.end_lsn = Lsn(index.segment_end - 100)
    index.last_record_lsn = Lsn(index.segment_end - 200)
    index.first_record_lsn = Lsn(index.start_lsn + 40)
    index.magic = 0xD118
    # Of an insert into a table, as most are.
    index.unfinished = Unfinished(index.end_lsn, 8000, 100, bytes(17) + b"\n" + bytes(6))
    if number != 1:  # where the first backup ends, commits would be read from the WAL itself
        index.commit_times = index.end_times = Times(begin, end, begin, end)
        index.commit_count = index.record_count = 100
        index.least_xid, index.greatest_xid = 1000 + number * 100, 1099 + number * 100
    return index


def _backup(store: UnsyncedStore, shape: Shape, number: int) -> None:
    place = 1.2 + number * (shape.segments - 3) / shape.backups
    segment = int(place)
    at = shape.moment(place)
    backup_id = new_id(BACKUP, at)
    timeline = shape.timeline_of(segment)
    start = Lsn(int(place * SIZE) // 8 * 8)
    if timeline > 1 and segment == shape.first(timeline):  # begun before the promotion
        start = Lsn(start + SIZE)
    stop = Lsn(min(start + 8000, (start // SIZE + 1) * SIZE - 8))
    ended = at + timedelta(seconds=90)
    record = Completion(
        backup_id=backup_id, repository_id=store.identity.repository_id, server=SERVER,
        generation=1, system_identifier=str(SYSTEM), kind="full", source="local",
        version_num=180006, segment_bytes=SIZE, timeline=timeline, start_lsn=str(start),
        stop_lsn=str(stop), started_at=at, stopped_at=ended, completed_at=ended,
        duration_seconds=90.0, label="pgrecall", compression="zstd:1", has_wal=False,
        manifest_bytes=1, manifest_digest="00",
        totals=Totals(files=1, directories=1, raw_bytes=3 << 30, stored_bytes=1 << 30, packs=9),
    )  # fmt: skip
    store.put(layout.complete_key(SERVER, backup_id), [sealed(record)])
    name = segment_name(timeline, start, SIZE)
    _put(store, f"{name}.{start % SIZE:08X}.backup", b"START WAL LOCATION\n", ended)
    run = RunRecord(
        run_id=new_id(RUN, at), server=SERVER, command="backup", host="db1", started_at=at,
        ended_at=ended, outcome="ok", exit_status=0, backup_id=backup_id,
        raw_bytes=3 << 30, stored_bytes=1 << 30,
    )  # fmt: skip
    Journal(store, SERVER).add(run, store.identity.repository_id, run.host)


def year_before_now(backups: int, segments: int) -> Shape:
    """A year that ends now."""
    return Shape(backups, segments, datetime.now(UTC))
