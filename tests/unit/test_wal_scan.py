"""The walk over WAL records: both implementations, on WAL laid out by hand and on mutated bytes."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.codec import wal_scan, wal_scan_python
from pgrecall.codec.wal_crossing import (
    COMPLETE,
    DISCARDED,
    NOTHING,
    OPEN,
    UNREADABLE,
    complete_crossing,
)
from pgrecall.errors import CorruptObjectError, RepositoryError, WalFormatError
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_index import (
    ParameterChange,
    RestorePoint,
    TablespaceCreation,
    Transaction,
    WalIndex,
    datetime_of,
    microseconds_of,
)
from tests.support.wal_builder import (
    RM_HEAP,
    RM_TABLESPACE,
    RM_XACT,
    RM_XLOG,
    WalBuilder,
    commit,
    restore_point,
)

try:
    from pgrecall.codec._native import scan_wal as native_scan
except ImportError:
    native_scan = None

NOTHING_CARRIED = (0, 0, 0, b"")
START = 0x3000000
SEGMENT = 1 << 20

needs_native = pytest.mark.skipif(
    native_scan is None, reason="the C extension was not built: nothing to compare"
)
IMPLEMENTATIONS = [
    pytest.param(native_scan, id="native", marks=needs_native),
    pytest.param(wal_scan_python.scan_wal, id="python"),
]


@pytest.fixture(params=IMPLEMENTATIONS, autouse=True)
def implementation(request, monkeypatch):
    monkeypatch.setattr(wal_scan, "scan_wal", request.param)


# These run both walks themselves, once.
runs_both = pytest.mark.parametrize(
    "implementation", [pytest.param(native_scan, id="both")], indirect=True
)


def scan(data, start=START):
    return wal_scan.scan_segment(data, start)


def test_finds_what_ends_recovery():
    wal = WalBuilder()
    first, _ = wal.add(RM_HEAP, 0, b"row")
    info, data = commit(1000)
    committed = wal.add(RM_XACT, info, data, xid=700)
    info, data = commit(900, database=True, subtransactions=3)
    aborted = wal.add(RM_XACT, 0x20 | info, data, xid=701)
    point = wal.add(RM_XLOG, 0x70, restore_point(950, "vor dem Ünfall".encode()))
    changed, _ = wal.add(RM_XLOG, 0x60, struct.pack("=6i2?2x", 100, 8, 10, 5, 64, 1, True, False))
    checkpoint = struct.pack("=QII48xq16x", first, 1, 1, 1_700_000_000)
    online, _ = wal.add(RM_XLOG, 0x10, checkpoint)
    recovered, end = wal.add(RM_XLOG, 0x90, struct.pack("=qIIi", 990, 2, 1, 1))
    index = scan(wal.segments()[0]).index

    assert (index.first_record_lsn, index.last_record_lsn) == (first, recovered)
    assert (index.end_lsn, index.stopped_at) == (end, "invalid")
    assert (index.commit_count, index.abort_count, index.record_count) == (1, 1, 7)
    assert index.commit_times.as_list() == [1000] * 4
    assert index.end_times.as_list() == [1000, 900, 900, 1000]
    assert (index.least_xid, index.greatest_xid) == (700, 701)
    assert index.restore_points == (RestorePoint("vor dem Ünfall", *point, 950),)
    assert index.parameter_changes == (ParameterChange(changed, (100, 8, 10, 5, 64, 1)),)
    assert [c.as_list() for c in index.checkpoints] == [
        [f"0/{online:X}", f"0/{first:X}", 1, 1, 1_700_000_000, False]
    ]
    assert index.checkpoints[0].began_at.isoformat() == "2023-11-14T22:13:20+00:00"
    assert [r.timeline for r in index.ends_of_recovery] == [2]
    assert wal_scan.read_transactions(wal.segments()[0], START)[0] == [
        Transaction(*committed, 700, 1000, True),
        Transaction(*aborted, 701, 900, False),
    ]
    assert WalIndex.from_bytes(index.to_bytes()) == index


@pytest.mark.parametrize(("version", "item_bytes"), [(13, 12), (15, 12), (17, 12), (18, 16)])
@pytest.mark.parametrize("operation", [0x30, 0x40])
def test_prepared_transactions_name_their_own_xid(version, item_bytes, operation):
    wal = WalBuilder(version=version)
    info, data = commit(
        5,
        database=True,
        subtransactions=2,
        relations=3,
        statistics=(2, item_bytes),
        messages=4,
        prepared_xid=1234,
    )
    start, end = wal.add_body(
        RM_XACT, info | operation, b"\xfd\x01\x00\xfc\x05\0\0\0\xff" + bytes([len(data)]) + data
    )
    transactions, _ = wal_scan.read_transactions(wal.segments()[0], START)
    assert transactions == [Transaction(start, end, 1234, 5, operation == 0x30)]


def test_a_switch_ends_the_segment():
    wal = WalBuilder()
    wal.add(RM_HEAP, 0, b"row")
    switch, end = wal.add_body(RM_XLOG, 0x40, b"")
    wal.fill_to(wal.position + 4096)
    index = scan(wal.segments()[0]).index
    assert (index.stopped_at, index.last_record_lsn, index.end_lsn) == ("switch", switch, end)


def test_records_cross_pages_and_segments():
    wal = WalBuilder()
    lsns = [wal.add(RM_HEAP, 0, b"x" * (i * 37 % 30_000))[0] for i in range(400)]
    segments = wal.segments()
    assert len(segments) > 2
    indexes = [scan(data, START + i * SEGMENT).index for i, data in enumerate(segments)]
    unfinished = [index.unfinished.lsn for index in indexes if index.unfinished]
    assert sum(index.record_count for index in indexes) + len(unfinished) == len(lsns)
    assert {index.stopped_at for index in indexes[:-1]} == {"end"}
    for before, after in pairwise(indexes):
        if before.unfinished:
            assert after.first_previous_lsn == before.unfinished.lsn


def crossing_indexes(wal):
    return [scan(data, START + i * SEGMENT).index for i, data in enumerate(wal.segments())]


@pytest.mark.parametrize("gap", [8, 16, 24, 32, 40])
@pytest.mark.parametrize("follows", [True, False])
def test_a_commit_that_crosses_the_end_is_never_missed(gap, follows):
    wal = WalBuilder()
    wal.fill_to(START + SEGMENT - gap)
    info, data = commit(77, database=True)
    expected = Transaction(*wal.add(RM_XACT, info, data, xid=9), 9, 77, True)
    if follows:
        wal.add(RM_HEAP, 0, b"row")
    indexes = [WalIndex.from_bytes(index.to_bytes()) for index in crossing_indexes(wal)]
    assert indexes[0].commit_count + indexes[1].commit_count == 0
    crossing = complete_crossing(indexes)
    assert (crossing.outcome, crossing.record) == (COMPLETE, expected)
    assert complete_crossing(indexes[:1]).outcome == OPEN

    first, second = wal.segments()
    ended, unfinished = wal_scan.read_transactions(first, START)
    assert ended == []
    ended, unfinished = wal_scan.read_transactions(second, START + SEGMENT, unfinished)
    assert (ended, unfinished) == ([expected], None)


@pytest.mark.parametrize("gap", [8, 16, 24, 64])
def test_a_restore_point_that_crosses_the_end(gap):
    wal = WalBuilder()
    wal.fill_to(START + SEGMENT - gap)
    place = wal.add(RM_XLOG, 0x70, restore_point(42, b"here"))
    wal.add(RM_HEAP, 0, b"row")
    crossing = complete_crossing(crossing_indexes(wal))
    assert (crossing.outcome, crossing.record) == (COMPLETE, RestorePoint("here", *place, 42))


def test_a_long_commit_that_crosses_is_complete_and_a_prepared_one_asks_for_the_segments():
    for prepared, outcome in ((0, COMPLETE), (55, UNREADABLE)):
        wal = WalBuilder()
        wal.fill_to(START + SEGMENT - 16)
        info, data = commit(77, subtransactions=500_000, prepared_xid=prepared)
        expected = Transaction(
            *wal.add(RM_XACT, info | (0x30 if prepared else 0), data, xid=0 if prepared else 9),
            prepared or 9,
            77,
            True,
        )
        wal.add(RM_HEAP, 0, b"row")
        crossing = complete_crossing(crossing_indexes(wal))
        assert crossing.outcome == outcome
        if outcome == COMPLETE:
            assert crossing.record == expected
        carried = None
        ended = []
        for i, data in enumerate(wal.segments()):
            some, carried = wal_scan.read_transactions(data, START + i * SEGMENT, carried)
            ended += some
        assert ended == [expected]


def test_a_crossing_record_of_no_interest():
    wal = WalBuilder()
    wal.fill_to(START + SEGMENT - 16)
    wal.add(RM_HEAP, 0, b"row" * 5000)
    indexes = crossing_indexes(wal)
    assert complete_crossing(indexes).outcome == NOTHING
    assert len(indexes[0].to_bytes()) < 500


def test_a_record_that_a_crash_cut_off_is_discarded():
    wal = WalBuilder()
    wal.fill_to(START + SEGMENT - 32)
    before = wal.previous
    info, data = commit(77)
    wal.add(RM_XACT, info, data, xid=9)
    del wal.image[SEGMENT:]
    wal.previous = before
    wal.page_header(0, flags=8)
    wal.add(RM_XLOG, 0xD0, bytes(16))
    wal.add(RM_XACT, info, data, xid=10)
    indexes = crossing_indexes(wal)
    assert complete_crossing(indexes).outcome == DISCARDED
    assert indexes[1].commit_count == 1
    _, unfinished = wal_scan.read_transactions(wal.segments()[0], START)
    ended, _ = wal_scan.read_transactions(wal.segments()[1], START + SEGMENT, unfinished)
    assert [t.xid for t in ended] == [10]


def test_a_page_that_continues_another_record_ends_the_walk():
    wal = WalBuilder()
    wal.add(RM_HEAP, 0, b"x" * 10_000)
    data = bytearray(wal.segments()[0])
    data[8192 + 16] ^= 8  # what the second page says remains
    index = scan(bytes(data)).index
    assert (index.end_lsn, index.stopped_at, index.record_count) == (START, "invalid", 0)


def test_neighbours_that_do_not_fit_are_not_joined():
    info, data = commit(77, subtransactions=5000)

    def crossing(bytes_before_the_end, mend=None):
        wal = WalBuilder()
        wal.fill_to(START + SEGMENT - bytes_before_the_end)
        wal.add(RM_XACT, info, data, xid=9)
        wal.add(RM_HEAP, 0, b"row")
        image = bytearray(wal.segments()[1])
        if mend:
            mend(image)
        return scan(wal.segments()[0]).index, scan(bytes(image), START + SEGMENT).index

    first, second = crossing(64)
    assert complete_crossing([first, second]).outcome == COMPLETE
    second.contrecord_bytes += 8
    assert complete_crossing([first, second]).outcome == UNREADABLE
    second.contrecord_bytes -= 8
    _, torn = crossing(
        64, lambda image: image.__setitem__(slice(8192, None), bytes(SEGMENT - 8192))
    )
    assert torn.end_lsn == START + SEGMENT
    assert complete_crossing([first, torn]).outcome == OPEN
    second.first_previous_lsn = Lsn(first.unfinished.lsn - 8)
    assert complete_crossing([first, second]).outcome == UNREADABLE
    assert complete_crossing([first, first]).outcome == OPEN


def test_recycled_bytes_behind_the_end_are_no_records():
    wal = WalBuilder()
    wal.add(RM_HEAP, 0, b"row")
    end = wal.position
    info, data = commit(77)
    wal.previous = end + 4096  # linked to nothing that is here
    wal.add(RM_XACT, info, data, xid=9)
    index = scan(wal.segments()[0]).index
    assert (index.end_lsn, index.stopped_at, index.commit_count) == (end, "invalid", 0)

    changed = bytearray(wal.segments()[0])
    changed[40 + 26] ^= 1  # the first record's data
    index = scan(bytes(changed)).index
    assert (index.end_lsn, index.stopped_at, index.record_count) == (START, "invalid", 0)


def test_pages_of_another_place_or_an_older_timeline_end_the_walk():
    for offset, value in ((8, 1), (4, 0), (0, 1), (2, 0x10)):
        wal = WalBuilder()
        wal.timeline = 3
        wal.fill_to(START + 8192)
        wal.add(RM_HEAP, 0, b"row")
        data = bytearray(wal.segments()[0])
        data[8192 + offset] = value
        assert scan(bytes(data)).index.end_lsn == START + 8192


def test_a_timeline_that_changes_inside_of_a_segment():
    wal = WalBuilder()
    wal.fill_to(START + 8192)
    wal.timeline = 2
    wal.add(RM_HEAP, 0, b"row")
    index = scan(wal.segments()[0]).index
    assert (index.timeline, index.last_timeline) == (1, 2)


@pytest.mark.parametrize(
    ("offset", "value", "says"),
    [
        (0, b"\0\0", "magic"),
        (2, b"\0\0", "flags"),
        (4, b"\0\0\0\0", "timeline"),
        (32, b"\1\0\0\0", "segments of"),
        (36, b"\1\0\0\0", "blocks of"),
        (8, b"\0\1", "begins no segment"),
    ],
)
def test_what_is_no_segment_is_refused(offset, value, says):
    wal = WalBuilder()
    wal.add(RM_HEAP, 0, b"row")
    data = bytearray(wal.segments()[0])
    data[offset : offset + len(value)] = value
    with pytest.raises(WalFormatError, match=says):
        wal_scan.read_segment_header(bytes(data))


def test_a_segment_of_another_size_or_place_is_refused():
    wal = WalBuilder()
    wal.add(RM_HEAP, 0, b"row")
    data = wal.segments()[0]
    header = wal_scan.read_segment_header(data[:40])
    assert (header.system_identifier, header.segment_bytes) == (wal.system_identifier, SEGMENT)
    assert (header.page_address, header.timeline, header.block_bytes) == (START, 1, 8192)
    with pytest.raises(WalFormatError, match="40 bytes"):
        wal_scan.read_segment_header(data[:39])
    with pytest.raises(WalFormatError, match="in place of"):
        scan(data[:-8192])
    with pytest.raises(WalFormatError, match="expected was"):
        scan(data, START + SEGMENT)


def test_an_index_of_another_version_or_damaged_is_refused():
    wal = WalBuilder()
    wal.add(RM_HEAP, 0, b"row")
    stored = scan(wal.segments()[0]).index.to_bytes()
    assert len(stored) < 400
    assert WalIndex.from_bytes(stored[:-1] + b',"later":1}').record_count == 1
    with pytest.raises(RepositoryError, match="version 2"):
        WalIndex.from_bytes(stored.replace(b'"v":1', b'"v":2'))
    for damaged in (b"", b"[]", b"{}", stored[:-1], stored.replace(b'"start":"', b'"start":"x')):
        with pytest.raises(CorruptObjectError):
            WalIndex.from_bytes(damaged)


def test_times_are_postgresqls():
    assert datetime_of(0).isoformat() == "2000-01-01T00:00:00+00:00"
    assert microseconds_of(datetime_of(848_695_070_784_635)) == 848_695_070_784_635
    assert datetime_of(2**63 - 1).year == 9999


_RECORD = st.tuples(
    st.sampled_from([RM_XLOG, RM_XACT, RM_HEAP]),
    st.sampled_from([0, 0x10, 0x20, 0x30, 0x40, 0x60, 0x70, 0x80, 0x90, 0xB0, 0xC0, 0xD0]),
    st.one_of(
        st.binary(max_size=120),
        st.builds(
            lambda time, xinfo, rest: struct.pack("=qI", time, xinfo) + rest,
            st.integers(-(2**63), 2**63 - 1),
            st.integers(0, 0x1FF),
            st.lists(st.integers(0, 9), max_size=40).map(
                lambda numbers: b"".join(struct.pack("=I", n) for n in numbers)
            ),
        ),
    ),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
_MUTATION = st.tuples(st.integers(0, 3 * 2048), st.binary(min_size=1, max_size=8))


@needs_native
@runs_both
@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(_RECORD, max_size=30),
    mutations=st.lists(_MUTATION, max_size=3),
    length=st.integers(0, 5 * 1024),
    limit=st.integers(0, 3),
    wants=st.booleans(),
    carried=st.tuples(
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=64),
    ),
)
def test_native_and_python_agree_on_anything(records, mutations, length, carried, limit, wants):
    wal = WalBuilder(page_bytes=1024)
    for manager, info, data, xid, is_raw in records:
        if is_raw:
            wal.add_body(manager, info, data, xid)
        else:
            wal.add(manager, info, data, xid)
    image = bytearray(wal.image[: max(length, 1024)])
    image += bytes(-len(image) % 1024)
    for offset, value in mutations:
        if offset < len(image):
            image[offset : offset + len(value)] = value
    for before in (NOTHING_CARRIED, carried):
        arguments = (bytes(image), START, 1024, wants, before, limit)
        assert native_scan(*arguments) == wal_scan_python.scan_wal(*arguments)


@needs_native
@runs_both
@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 120), size=st.integers(0, 3000), flip=st.integers(0, 30_000))
def test_native_and_python_agree_on_carried_records(cut, size, flip):
    wal = WalBuilder(page_bytes=1024)
    wal.fill_to(START + SEGMENT - cut * 8)
    info, data = commit(77, subtransactions=size, prepared_xid=8)
    wal.add(RM_XACT, 0x30 | info, data)
    wal.add(RM_HEAP, 0, b"row")
    first, second = (bytearray(data) for data in [*wal.segments(), bytes(SEGMENT)][:2])
    results = []
    for implementation in (native_scan, wal_scan_python.scan_wal):
        one = implementation(bytes(first), START, 1024, True, NOTHING_CARRIED, 0)
        for position in (None, flip):
            changed = bytearray(second)
            if position is not None:
                changed[position] ^= 1
            for carried in (NOTHING_CARRIED, one[4]):
                two = implementation(bytes(changed), START + SEGMENT, 1024, True, carried, 0)
                results.append((one, two))
    half = len(results) // 2
    assert results[:half] == results[half:]


def tablespace(oid, location):
    """Main data of CREATE TABLESPACE's record."""
    return struct.pack("=I", oid) + location + b"\0"


def test_a_new_tablespace_is_in_the_index():
    built = WalBuilder(START, SEGMENT)
    long_location = b"/" + b"x" * 1000
    first, _ = built.add(RM_TABLESPACE, 0x00, tablespace(16400, b"/disks/fast"))
    built.add(RM_TABLESPACE, 0x10, struct.pack("=I", 16400))
    second, _ = built.add(RM_TABLESPACE, 0x00, tablespace(16401, long_location))
    index = scan(built.segments()[0]).index
    assert index.tablespaces == (
        TablespaceCreation(first, 16400, "/disks/fast", is_whole=True),
        TablespaceCreation(second, 16401, long_location.decode(), is_whole=True),
    )
    assert not index.checkpoints
    assert WalIndex.from_bytes(index.to_bytes()).tablespaces == index.tablespaces


@pytest.mark.parametrize("before", [8, 32, 120, 400, 800])
@pytest.mark.parametrize("length", [20, 180, 1000])
def test_a_new_tablespace_may_cross_the_end_of_a_segment(before, length):
    built = WalBuilder(START, SEGMENT)
    location = b"/" + b"y" * length
    built.fill_to(START + SEGMENT - before)
    lsn, _ = built.add(RM_TABLESPACE, 0x00, tablespace(16400, location))
    built.add(RM_HEAP, 0, b"next")
    found = []
    indexes = [
        scan(data, START + number * SEGMENT).index for number, data in enumerate(built.segments())
    ]
    for index in indexes:
        found += index.tablespaces
    if len(indexes) > 1 and not found:
        crossing = complete_crossing(indexes[:2])
        assert crossing.outcome == COMPLETE
        found.append(crossing.record)
    assert [(made.lsn, made.oid) for made in found] == [(lsn, 16400)]
    assert location.decode().startswith(found[0].location)
    assert found[0].is_whole == (found[0].location == location.decode())
