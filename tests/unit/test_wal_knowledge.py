"""What WAL tells of tables: both walks agree, indexes hold it, bounds and borders lose nothing."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.codec import wal_scan, wal_scan_python
from pgrecall.codec.wal_blocks import page_row
from pgrecall.codec.wal_scan import read_knowledge
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import segment_name
from pgrecall.model.wal_index import WalIndex
from pgrecall.model.wal_knowledge import (
    CATALOGS,
    COMMITTED,
    DELETIONS,
    MAXIMUM_CATALOG_EVENTS,
    MAXIMUM_DELETIONS,
    MAXIMUM_FILES,
    OPEN,
    PG_CLASS,
    PG_DATABASE,
    PG_NAMESPACE,
    UNLINKINGS,
    DatabaseMark,
    SegmentKnowledge,
)
from pgrecall.repository.wal_knowledge import KnowledgeReader, path_segments
from tests.support.wal_builder import RM_HEAP, RM_TABLESPACE, RM_XACT, RM_XLOG, WalBuilder
from tests.support.wal_records import (
    DATABASE,
    RM_DBASE,
    RM_RELMAP,
    RM_SMGR,
    SPACE,
    block,
    class_row,
    commit_data,
    delete_body,
    heap_body,
    insert_body,
    update_body,
)
from tests.support.wal_scene import Scene

try:
    from pgrecall.codec._native import scan_wal as native_scan
except ImportError:
    native_scan = None

START = 0x3000000
SEGMENT = 1 << 20
NOTHING_CARRIED = (0, 0, 0, b"")

needs_native = pytest.mark.skipif(native_scan is None, reason="the C extension was not built")


@pytest.fixture(
    params=[
        pytest.param(native_scan, id="native", marks=needs_native),
        pytest.param(wal_scan_python.scan_wal, id="python"),
    ],
    autouse=True,
)
def implementation(request, monkeypatch):
    monkeypatch.setattr(wal_scan, "scan_wal", request.param)


def knowledge_of(wal: WalBuilder) -> SegmentKnowledge:
    """Of the first segment, through its stored index."""
    index = wal_scan.scan_segment(wal.segments()[0], START).index
    stored = WalIndex.from_bytes(index.to_bytes())
    assert stored == index
    assert stored.knowledge is not None
    return stored.knowledge


def test_a_drop_and_what_led_to_it():
    wal = WalBuilder()
    row = class_row(20000, "orders", 20000)
    moved = class_row(20000, "orders", 20256)
    made, _ = wal.add_body(RM_HEAP, 0, insert_body(PG_CLASS, row, (3, 4)), 700)
    change, _ = wal.add_body(
        RM_HEAP, 0x40, update_body(PG_CLASS, row, moved, ((3, 4), (3, 5))), 701
    )
    gone, _ = wal.add_body(RM_HEAP, 0x10, delete_body(PG_CLASS, 5), 702)
    data = commit_data(77, children=(702,), files=(20256, 20003), dropped=(20000,))
    place = wal.add(RM_XACT, 0x80, data, xid=701)
    known = knowledge_of(wal)

    (unlinking,) = known.unlinkings
    assert (unlinking.lsn, unlinking.end_lsn) == place
    assert (unlinking.xid, unlinking.time, unlinking.subtransactions) == (701, 77, (702,))
    assert unlinking.files == ((SPACE, DATABASE, 20256), (SPACE, DATABASE, 20003))
    assert (unlinking.dropped, unlinking.has_more) == (((DATABASE, 20000),), False)
    assert [(commit.lsn, commit.xid) for commit in known.commits] == [(place[0], 701)]
    assert [(one.lsn, one.kind, one.old, one.new) for one in known.changes] == [
        (made, "insert", None, (3, 4)),
        (change, "update", (3, 4), (3, 5)),
        (gone, "delete", (7, 5), None),
    ]
    assert known.changes[0].data == row[:120]
    assert (known.changes[1].skip, known.changes[1].data) == (89, moved[89:90])
    assert known.more == ()


def test_truncations_databases_and_moves():
    wal = WalBuilder()
    wal.add(RM_SMGR, 0x20, struct.pack("=IIIIi", 9, SPACE, DATABASE, 20001, 1), xid=5)
    wal.add(RM_SMGR, 0x10, struct.pack("=IIIi", SPACE, DATABASE, 20001, 0), xid=5)
    wal.add(RM_HEAP, 0x30, struct.pack("=IIB3xII", DATABASE, 2, 0, 20000, 20010), xid=6)
    row = bytearray(100)
    struct.pack_into("=I64s", row, 0, 16500, b"shop")
    struct.pack_into("=i", row, 80, -2)
    body = heap_body(block(PG_DATABASE, 0, bytes(row)), struct.pack("=H", 1))
    mark, _ = wal.add_body(RM_HEAP, 0x70, body, 7)
    struct.pack_into("=i", row, 80, -1)
    body = heap_body(block(PG_DATABASE, 0, bytes(row)), struct.pack("=H", 1))
    wal.add_body(RM_HEAP, 0x70, body, 7)
    drop = wal.add(RM_DBASE, 0x20, struct.pack("=III", 16500, 1, SPACE), xid=7)
    pairs = struct.pack("=iiIIII", 0x592717, 2, 1249, 30000, PG_CLASS, 30001)
    wal.add(RM_RELMAP, 0, struct.pack("=IIi", DATABASE, SPACE, len(pairs)) + pairs)
    known = knowledge_of(wal)

    (truncation,) = known.file_truncations
    assert (truncation.xid, truncation.file[2], truncation.blocks) == (5, 20001, 9)
    assert [one.oids for one in known.table_truncations] == [(20000, 20010)]
    assert known.database_marks == (DatabaseMark(mark, 7, 16500),)
    assert [(one.lsn, one.end_lsn, one.database) for one in known.database_drops] == [
        (*drop, 16500)
    ]
    assert [(one.database, one.class_file) for one in known.moves] == [(DATABASE, 30001)]


def test_deleted_rows_are_counted_by_transaction():
    wal = WalBuilder()
    for xid, file, rows in ((700, 20000, 30), (701, 20000, 12), (702, 20001, 9), (703, 20000, 40)):
        for _ in range(rows):
            wal.add_body(RM_HEAP, 0x10, delete_body(file), xid)
    wal.add_body(RM_HEAP, 0x10, delete_body(1259), 700)  # a catalog's row is a change, no count
    wal.add(RM_XACT, 0x80, commit_data(1, children=(701,), invalidations=0), xid=700)
    wal.add(RM_XACT, 0x00, struct.pack("=q", 2), xid=702)
    wal.add(RM_XACT, 0x20, struct.pack("=q", 3), xid=703)
    first = wal.add_body(RM_HEAP, 0x10, delete_body(20005), 704)[0]
    found = {(one.xid, one.file, one.rows, one.state) for one in knowledge_of(wal).deletions}
    assert found == {(700, 20000, 42, COMMITTED), (704, 20005, 1, OPEN)}
    assert knowledge_of(wal).deletions[-1].first_lsn == first


def test_what_is_beyond_the_bounds_sends_the_reader_to_the_segment():
    wal = WalBuilder(segment_bytes=16 << 20)
    wal.add_body(RM_HEAP, 0, b"")
    for number in range(MAXIMUM_CATALOG_EVENTS + 5):
        wal.add_body(RM_HEAP, 0x10, delete_body(PG_NAMESPACE, number), 9)
    for number in range(MAXIMUM_DELETIONS + 5):
        wal.add_body(RM_HEAP, 0x10, delete_body(20000 + number), 10)
    many = tuple(range(20000, 20001 + MAXIMUM_FILES))
    wal.add(RM_XACT, 0x80, commit_data(1, files=many), xid=9)
    data = wal.segments()[0]
    index = wal_scan.scan_segment(data, START).index
    known = WalIndex.from_bytes(index.to_bytes()).knowledge
    assert known is not None
    assert set(known.more) == {CATALOGS, DELETIONS, UNLINKINGS}
    assert len(known.unlinkings) == 1, "what removes files is never left out for catalog rows"
    whole, _, _ = read_knowledge(data, START)
    assert whole.more == ()
    assert len(whole.changes) == MAXIMUM_CATALOG_EVENTS + 5
    assert len(whole.deletions) == MAXIMUM_DELETIONS + 5
    assert len(whole.unlinkings[0].files) == len(many)


def test_an_index_of_before_says_that_it_does_not_know():
    wal = WalBuilder()
    wal.add(RM_XACT, 0x80, commit_data(1, files=(20000,)), xid=9)
    index = wal_scan.scan_segment(wal.segments()[0], START).index
    stored = index.to_bytes()
    assert b'"v":1' in stored[:10]
    before = stored[: stored.index(b',"knowledge"')] + b"}"
    assert WalIndex.from_bytes(before).knowledge is None
    newer = stored.replace(b'"knowledge":{"v":1', b'"knowledge":{"v":2')
    assert WalIndex.from_bytes(newer).knowledge is None


_PLACES = st.integers(0, 40)
_BODIES = st.one_of(
    st.builds(delete_body, st.sampled_from([1259, 20000, 20001]), _PLACES),
    st.builds(
        lambda catalog, place: insert_body(catalog, class_row(5, "t", 6), place),
        st.sampled_from([PG_CLASS, PG_DATABASE, PG_NAMESPACE, 20000]),
        st.tuples(_PLACES, _PLACES),
    ),
    st.binary(max_size=60),
)
_RECORDS = st.one_of(
    st.tuples(st.just(RM_HEAP), st.integers(0, 255), _BODIES, st.integers(1, 5)),
    st.tuples(
        st.sampled_from([RM_SMGR, RM_DBASE, RM_RELMAP, RM_TABLESPACE, RM_XLOG]),
        st.integers(0, 15).map(lambda high: high << 4),
        st.binary(max_size=40).map(lambda data: bytes([255, len(data)]) + data),
        st.integers(0, 5),
    ),
    st.tuples(
        st.just(RM_XACT),
        st.sampled_from([0x80, 0xA0, 0xB0, 0xC0]),
        st.builds(
            lambda children, files: commit_data(
                5, children=tuple(children), files=tuple(files), dropped=tuple(files)
            ),
            st.lists(st.integers(1, 5), max_size=3),
            st.lists(st.integers(16000, 16010), max_size=3),
        ).map(lambda data: bytes([255, len(data)]) + data),
        st.integers(1, 5),
    ),
)


@needs_native
@pytest.mark.parametrize("implementation", [pytest.param(native_scan, id="both")], indirect=True)
@settings(max_examples=200, deadline=None)
@given(
    records=st.lists(_RECORDS, max_size=40),
    mutations=st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 255)), max_size=2),
    limit=st.integers(0, 4),
    wants=st.booleans(),
    version=st.sampled_from([13, 14, 15, 18]),
)
def test_both_walks_agree(records, mutations, limit, wants, version):
    wal = WalBuilder(page_bytes=1024, version=version)
    for manager, info, body, xid in records:
        wal.add_body(manager, info, body, xid)
    image = bytearray(wal.image) + bytes(-len(wal.image) % 1024 + 1024)
    for at, value in mutations:
        image[at % len(image)] ^= value
    arguments = (bytes(image), START, 1024, wants, NOTHING_CARRIED, limit)
    native, python = native_scan(*arguments), wal_scan_python.scan_wal(*arguments)
    assert native == python
    # Whatever the bytes, no parser stumbles over them.
    wal_scan.parse_knowledge(wal.magic, *native[12:15])


@pytest.mark.parametrize("gap", [8, 16, 24, 32, 48, 64, 80])
@pytest.mark.parametrize("files", [1, 200])
def test_a_drop_whose_record_crosses_the_end_is_found(tmp_path, gap, files):
    wal = WalBuilder()
    wal.fill_to(START + SEGMENT - gap)
    place = wal.add(RM_XACT, 0x80, commit_data(77, files=tuple(range(20000, 20000 + files))), xid=9)
    wal.add_body(RM_HEAP, 0, b"")
    first, second = _read(tmp_path, wal)
    assert first.knowledge is not None
    assert second.knowledge is not None
    assert first.knowledge.unlinkings == ()
    (unlinking,) = second.knowledge.unlinkings
    assert ((unlinking.lsn, unlinking.end_lsn), len(unlinking.files)) == (place, files)


@pytest.mark.parametrize("gap", [8, 16, 24, 32, 48])
def test_a_catalog_row_and_a_deleted_row_may_cross(tmp_path, gap):
    wal = WalBuilder()
    wal.fill_to(START + SEGMENT - gap)
    row = class_row(20000, "orders", 20000)
    wal.add_body(RM_HEAP, 0, insert_body(PG_CLASS, row, (1, 1)), 9)
    wal.fill_to(START + 2 * SEGMENT - gap)
    wal.add_body(RM_HEAP, 0x10, delete_body(20000), 10)
    wal.add_body(RM_HEAP, 0, b"")
    known = [segment.knowledge for segment in _read(tmp_path, wal)]
    assert [len(one.changes) for one in known] == [0, 1, 0]
    assert known[1].changes[0].data == row[:120]
    assert [[(d.xid, d.rows) for d in one.deletions] for one in known] == [[], [], [(10, 1)]]


def test_a_commit_longer_than_a_segment(tmp_path):
    wal = WalBuilder()
    wal.fill_to(START + SEGMENT - 64)
    many = tuple(range(20000, 20000 + 150_000))
    place = wal.add(RM_XACT, 0x80, commit_data(77, files=many), xid=9)
    wal.add_body(RM_HEAP, 0, b"")
    known = [segment.knowledge for segment in _read(tmp_path, wal)]
    assert [len(one.unlinkings) for one in known] == [0, 0, 1]
    assert (known[2].unlinkings[0].lsn, known[2].unlinkings[0].end_lsn) == place
    assert len(known[2].unlinkings[0].files) == len(many)


def _read(tmp_path, wal):
    """The segments as an archive gives them back."""
    scene = Scene(tmp_path)
    names = []
    for number, data in enumerate(wal.segments()):
        name = segment_name(1, START + number * SEGMENT, SEGMENT)
        scene.push_new(name, data)
        names.append(name)
    archive = scene.archive()
    segments = path_segments(archive, TimelineHistory(1))
    assert [name for name, _ in segments] == names
    return list(KnowledgeReader(archive).along(segments))


def test_rows_of_a_page():
    page = bytearray(8192)
    tuple_bytes = bytes(22) + bytes([24]) + b"\0" + b"columns"
    page[8000 : 8000 + len(tuple_bytes)] = tuple_bytes
    struct.pack_into("=I", page, 24, 8000 | 1 << 15 | len(tuple_bytes) << 17)
    struct.pack_into("=I", page, 28, 8190 | 1 << 15 | 60 << 17)
    assert page_row(bytes(page), 1) == b"columns"
    assert page_row(bytes(page), 1, 3) == b"col"
    for offset in (0, 2, 3, 5000):
        assert page_row(bytes(page), offset) == b""
    assert page_row(b"", 1) == b""
    assert datetime(2000, 1, 1, tzinfo=UTC).year == 2000
