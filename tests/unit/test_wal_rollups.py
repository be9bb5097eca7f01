"""Roll-ups of WAL indexes: one read instead of many, and nothing can hide behind one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import msgspec
import pytest

from pgrecall.app.context import RunContext, Surroundings
from pgrecall.app.indexing import run_wal_index
from pgrecall.app.requests import WalIndexRequest
from pgrecall.codec.compression import make_frame_encoder
from pgrecall.codec.wal_scan import scan_segment
from pgrecall.errors import CorruptObjectError, StoreError, WalMissingError
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import SEGMENT, WalFile, segment_name
from pgrecall.model.wal_index import WalIndex
from pgrecall.repository import layout
from pgrecall.repository.documents import encode_document
from pgrecall.repository.identity import Generation
from pgrecall.repository.recoverable import ArchiveSnapshot
from pgrecall.repository.segment_rows import row_from, row_of
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.repository.wal_objects import WalContent, WalHeader, WalObjectWriter
from pgrecall.repository.wal_rollups import KIND, check_rollup, read_rollup, write_rollups
from pgrecall.store.base import Store
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.memory import MemoryStore
from pgrecall.system.progress import NoProgress
from tests.support.product import Approvals
from tests.support.wal_builder import RM_HEAP, RM_XACT, RM_XLOG, WalBuilder, commit, restore_point
from tests.support.wal_scene import NOW, SYSTEM, Scene

# With segments of 1 GiB a log directory is whole with four; the content does not matter here.
SIZE = 1 << 30
GENERATION = Generation(
    1,
    {
        "system_identifier": str(SYSTEM),
        "major_version": 18,
        "segment_bytes": SIZE,
        "block_bytes": 8192,
        "first_seen_at": NOW.isoformat(),
    },
)
REPOSITORY = "0" * 32


def segment(number: int, timeline: int = 1) -> str:
    return segment_name(timeline, number * SIZE, SIZE)


def put(store: Store, name: str, content: bytes = b"x", records: int = 1, end: int = 100) -> str:
    """A stored segment, whose index tells ``records``; its key."""
    index = WalIndex(WalFile(name).start(SIZE), SIZE, WalFile(name).timeline)
    index.record_count = records
    index.end_lsn = Lsn(index.start_lsn + end)
    header = WalHeader(name, SEGMENT)
    header.system_identifier, header.segment_bytes = SYSTEM, SIZE
    header.pushed_at = NOW
    key = layout.wal_key("main", 1, WalFile(name))
    writer = WalObjectWriter(
        header, WalContent(content, index.to_bytes(), bytes(32)), make_frame_encoder("none", 1)
    )
    assert writer.write(store, key)
    return key


def archived(*numbers: int) -> MemoryStore:
    store = MemoryStore()
    for number in numbers:
        put(store, segment(number), records=number + 1)
    return store


def rolled(store: MemoryStore) -> list[tuple[str, int]]:
    written, findings = write_rollups(store, "main", GENERATION, REPOSITORY)
    assert findings == []
    return [(one.log, one.segments) for one in written]


def read_all(store: FaultyStore | MemoryStore) -> tuple[list[int], list[str]]:
    """Record counts by the indexes of all segments, after a listing; and the keys read."""
    counting = FaultyStore(store) if isinstance(store, MemoryStore) else store
    archive = WalArchive(counting, "main", GENERATION)
    names = [found.name for found in archive.segments(1)]
    counts = [index.record_count for _, index in archive.indexes(names)]
    return counts, [key for method, key in counting.calls if method == "read"]


def test_a_finished_directory_is_read_at_once() -> None:
    store = archived(*range(9))
    assert rolled(store) == [("00000000", 4), ("00000001", 4)]
    counts, reads = read_all(store)
    assert counts == list(range(1, 10))
    assert len(reads) == 3  # two roll-ups, and the newest segment's own end
    assert rolled(store) == []


def test_only_finished_directories_are_rolled_up() -> None:
    assert rolled(archived(0, 1, 2)) == []
    assert rolled(archived(0, 1, 2, 4)) == []
    # Two later directories: what is missing will hardly come.
    assert rolled(archived(0, 1, 3, 4, 8)) == [("00000000", 3)]


def test_a_timeline_that_was_left_is_finished_when_its_successor_has_gone_on() -> None:
    store = archived(0, 1, 2, 3, 4, 5)
    rolled(store)
    for number in (5, 6, 7, 8):
        put(store, segment(number, 2))
    assert rolled(store) == []
    put(store, segment(12, 2))
    assert rolled(store) == [("00000001", 3), ("00000001", 2)]


def test_a_segment_that_arrives_late_is_read_by_itself() -> None:
    store = archived(0, 1, 3, 4, 8)
    rolled(store)
    put(store, segment(2), records=3)
    counts, reads = read_all(store)
    assert counts == [1, 2, 3, 4, 5, 9]
    assert layout.wal_key("main", 1, WalFile(segment(2))) in reads


def test_a_missing_segment_is_not_hidden() -> None:
    store = archived(*range(4))
    rolled(store)
    store.delete(layout.wal_key("main", 1, WalFile(segment(1))))
    archive = WalArchive(store, "main", GENERATION)
    assert [found.name for found in archive.segments(1)] == [segment(n) for n in (0, 2, 3)]
    with pytest.raises(WalMissingError):
        archive.index(segment(1))


@pytest.mark.parametrize("content", [b"x", b"y", b"much longer than before"])
def test_a_segment_that_was_put_anew_is_not_hidden(content: bytes) -> None:
    """Even one of the very same size: it is newer than the roll-up."""
    store = archived(*range(4))
    rolled(store)
    store.delete(layout.wal_key("main", 1, WalFile(segment(1))))
    put(store, segment(1), content, records=7)
    assert read_all(store)[0] == [1, 7, 3, 4]
    found = check_rollup(store, "main", 1, 1, "00000000")
    assert [(finding.code, finding.subject) for finding in found] == [
        ("rollup-differs", segment(1))
    ]


def test_another_size_is_enough_where_clocks_tell_nothing() -> None:
    store = archived(*range(4))
    rolled(store)
    key = layout.wal_key("main", 1, WalFile(segment(1)))
    store.delete(key)
    put(store, segment(1), b"longer", records=7)
    data, _ = store.objects[key]
    store.objects[key] = (data, datetime.now(UTC) - timedelta(days=1))
    assert read_all(store)[0] == [1, 7, 3, 4]


def test_a_damaged_roll_up_serves_nothing_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    store = archived(*range(4))
    rolled(store)
    key = layout.rollup_key("main", 1, 1, "00000000")
    data, at = store.objects[key]
    store.objects[key] = (data[:-40] + b"?" + data[-39:], at)
    counts, reads = read_all(store)
    assert counts == [1, 2, 3, 4]
    assert len(reads) == 5
    assert "roll-up" in caplog.text
    with pytest.raises(CorruptObjectError):
        read_rollup(store, "main", 1, 1, "00000000")


def test_a_damaged_segment_gets_no_roll_up() -> None:
    store = archived(*range(4))
    key = layout.wal_key("main", 1, WalFile(segment(2)))
    data, at = store.objects[key]
    store.objects[key] = (b"?" + data[1:], at)
    written, findings = write_rollups(store, "main", GENERATION, REPOSITORY)
    assert written == []
    assert [finding.code for finding in findings] == ["corrupt-object"]


def test_a_roll_up_says_what_the_segments_say() -> None:
    store = archived(*range(4))
    rolled(store)
    entries = read_rollup(store, "main", 1, 1, "00000000")
    assert [entry.name for entry, _ in entries] == [segment(number) for number in range(4)]
    assert [WalIndex.from_bytes(index).record_count for _, index in entries] == [1, 2, 3, 4]
    assert check_rollup(store, "main", 1, 1, "00000000") == []


def rows_and_reads(store: MemoryStore) -> tuple[list[tuple[int, ...]], list[str]]:
    """The rows that the ranges take, and the keys that were read for them."""
    counting = FaultyStore(store)
    snapshot = ArchiveSnapshot(WalArchive(counting, "main", GENERATION))
    before = len(counting.calls)
    rows = [
        tuple(row.item())
        for run in snapshot.path_runs(TimelineHistory(1), ()).runs
        for row in snapshot.rows_of(run).rows
    ]
    return rows, [key for method, key in counting.calls[before:] if method == "read"]


def test_the_ranges_read_a_finished_directory_at_once() -> None:
    store = archived(*range(9))
    expected = rows_and_reads(store)[0]
    assert [row[0] for row in expected] == [number * SIZE + 100 for number in range(9)]
    rolled(store)
    rows, reads = rows_and_reads(store)
    assert rows == expected
    assert len(reads) == 3


def test_a_roll_up_without_rows_serves_the_ranges_too() -> None:
    """Those of older versions have none."""
    store = archived(*range(4))
    expected = rows_and_reads(store)[0]
    indexes = read_rollup_of(store)
    body = msgspec.json.encode([entry[:4] for entry, _ in indexes]) + b"\n"
    body += b"".join(index for _, index in indexes)
    key = layout.rollup_key("main", 1, 1, "00000000")
    store.put(key, [encode_document(KIND, REPOSITORY, body)])
    assert rows_and_reads(store) == (expected, [key])
    assert check_rollup(store, "main", 1, 1, "00000000") == []


def read_rollup_of(store: MemoryStore) -> list[tuple[list[object], bytes]]:
    """What a roll-up of the first directory holds, which is not stored."""
    other = MemoryStore()
    other.objects.update(store.objects)
    rolled(other)
    return [
        (msgspec.to_builtins(entry), index)
        for entry, index in read_rollup(other, "main", 1, 1, "00000000")
    ]


@pytest.mark.parametrize("content", [b"x", b"much longer than before"])
def test_the_ranges_see_what_was_put_anew_or_came_late(content: bytes) -> None:
    store = archived(0, 1, 3, 4, 8)
    rolled(store)
    key = layout.wal_key("main", 1, WalFile(segment(1)))
    store.delete(key)
    put(store, segment(1), content, end=7000)
    put(store, segment(2), content, end=8000)
    ends = [row[0] % SIZE for row in rows_and_reads(store)[0]]
    assert ends == [100, 7000, 8000, 100, 100, 100]
    assert "rollup-differs" in [one.code for one in check_rollup(store, "main", 1, 1, "00000000")]


def test_another_size_is_enough_for_the_ranges_too() -> None:
    store = archived(*range(4))
    rolled(store)
    key = layout.wal_key("main", 1, WalFile(segment(1)))
    store.delete(key)
    put(store, segment(1), b"longer", end=7000)
    store.objects[key] = (store.objects[key][0], datetime.now(UTC) - timedelta(days=1))
    assert [row[0] % SIZE for row in rows_and_reads(store)[0]] == [100, 7000, 100, 100]


def test_rows_are_made_of_indexes_in_two_ways_that_agree() -> None:
    builder = WalBuilder(start=3 << 20, segment_bytes=1 << 20)
    random = Random(5)
    points = (b"plain", b"plain too", b"and \xff not")
    while builder.position < 9 << 20:
        clock = random.randrange(1 << 40)
        builder.add(RM_HEAP, 0, bytes(random.randrange(60_000)), xid=1000)
        info, data = commit(clock, subtransactions=random.randrange(900))
        builder.add(RM_XACT, info, data, xid=random.randrange(3, 1 << 31))
        if random.random() < 0.1:
            builder.add(RM_XLOG, 0x70, restore_point(clock, random.choice(points)))
    served = 0
    for number, content in enumerate(builder.segments()):
        index = scan_segment(content, builder.start + (number << 20)).index
        found = row_from(index.to_bytes(), index.start_lsn)
        assert found in (row_of(index), None)  # None: a name that is no UTF-8
        served += found is not None
    assert served > 1
    plain = WalIndex(0, 1 << 20, 1)
    assert row_from(plain.to_bytes(), 0) == row_of(plain)
    assert row_from(plain.to_bytes(), 1 << 20) is None  # another segment's


@pytest.mark.parametrize("method", ["list", "read"])
def test_an_outage_is_an_outage(method: str) -> None:
    store = archived(*range(4))
    rolled(store)
    archive = WalArchive(store, "main", GENERATION)
    names = [found.name for found in archive.segments(1)]
    faulty = FaultyStore(store, [Fault("before", method=method, is_lasting=True)])
    broken = WalArchive(faulty, "main", GENERATION)
    broken._sizes, broken._stored_at = archive._sizes, archive._stored_at
    with pytest.raises(StoreError, match="injected"):
        broken.index(names[0])
    with pytest.raises(StoreError, match="injected"):
        write_rollups(FaultyStore(archived(*range(4)), faulty.plan), "main", GENERATION, REPOSITORY)


def test_wal_index_rolls_up_what_is_finished(tmp_path: Path) -> None:
    scene = Scene(tmp_path, segment_bytes=SIZE)
    for number in range(9):
        put(scene.store(), segment(number), records=number + 1)
    approvals = Approvals()
    surroundings = Surroundings(
        environment={}, progress=NoProgress(), run_id="r-test", approve=approvals
    )
    context = RunContext(scene.settings, surroundings)
    result = run_wal_index(context, WalIndexRequest())
    assert result.plan.to_roll_up == 2
    assert result.rolled_up == 2
    archive = scene.archive()
    names = [found.name for found in archive.segments(1)]
    counts = [index.record_count for _, index in archive.indexes(names)]
    assert counts == list(range(1, 10))
    assert run_wal_index(context, WalIndexRequest()).plan.to_roll_up == 0
    assert len(approvals.plans) >= 1
