"""What a copy is cut into, and where its bytes went: file table, units, runs."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.backup.digest_log import DigestIndex
from pgrecall.backup.entries import Copied, EntryWriter
from pgrecall.backup.run_log import RunIndex, RunLog
from pgrecall.backup.units import BATCH_BYTES, BATCH_FILES, PIECE_BYTES, cut_into_units
from pgrecall.model.file_table import DIRECTORY, FILE, FileTable
from pgrecall.repository.overlay import run_pages
from pgrecall.repository.packs import FRAME_BYTES


@given(
    st.lists(st.tuples(st.binary(max_size=50), st.booleans(), st.integers(0, 2**63)), max_size=50)
)
def test_a_file_table_gives_back_what_it_took(entries: list[tuple[bytes, bool, int]]) -> None:
    table = FileTable()
    for number, (path, is_file, size) in enumerate(entries):
        kind = FILE if is_file else DIRECTORY
        assert table.add(path, kind, size, (0o100640, number, 2**32 - 1, -number)) == number
    assert [table.path(n) for n in range(len(table))] == [path for path, _, _ in entries]
    assert list(table.sizes) == [size for _, _, size in entries]
    assert list(table.files()) == [n for n, (_, is_file, _) in enumerate(entries) if is_file]
    assert set(table.modes) <= {0o640}
    assert list(table.modified) == [-number for number in range(len(entries))]


sizes = st.one_of(
    st.integers(0, 5000),
    st.integers(FRAME_BYTES - 1, FRAME_BYTES + 1),
    st.integers(PIECE_BYTES - 1, PIECE_BYTES + 1),
    st.integers(0, 3 << 30),
)


@given(st.lists(sizes, max_size=60))
def test_units_cover_every_byte_once(found: list[int]) -> None:
    table = array("Q", found)
    covered: dict[int, list[tuple[int, int]]] = {}
    lengths = []
    for unit in cut_into_units(range(len(table)), table, FRAME_BYTES):
        if unit.is_batch:
            assert len(unit.files) <= BATCH_FILES
            assert unit.length == sum(table[index] for index in unit.files)
            assert unit.length < BATCH_BYTES + FRAME_BYTES
            for index in unit.files:
                assert table[index] <= FRAME_BYTES
                covered.setdefault(index, []).append((0, table[index]))
        else:
            assert 0 < unit.length <= PIECE_BYTES
            assert unit.offset % FRAME_BYTES == 0
            covered.setdefault(unit.files[0], []).append((unit.offset, unit.length))
            lengths.append(unit.length)
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(covered) == list(range(len(table)))
    for index, pieces in covered.items():
        end = 0
        for offset, length in sorted(pieces):
            assert offset == end
            end += length
        assert end == table[index]


def test_many_small_files_are_cut_into_batches() -> None:
    units = cut_into_units(range(BATCH_FILES * 2 + 1), array("Q", [0]) * 2000, FRAME_BYTES)
    assert [len(unit.files) for unit in units] == [BATCH_FILES, BATCH_FILES, 1]


PAGE = 10


@settings(deadline=None)
@given(st.data())
def test_runs_say_where_every_byte_went(data: st.DataObject) -> None:
    """Pages of a file in any pieces, from any worker, with or without gaps between."""
    pieces = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=12))
    logs = [RunLog(PAGE), RunLog(PAGE)]
    wanted: dict[int, tuple[int, int]] = {}
    streams: list[list[int]] = [[], []]
    page = 0
    for gap, count in pieces:
        page += gap
        worker = data.draw(st.integers(0, 1))
        frame, start = divmod(len(streams[worker]), 4)
        for number in range(count):
            # Frames of four pages; each of its slices is noted alone, as the worker does.
            frame, start = divmod(len(streams[worker]), 4)
            logs[worker].add(1, (page + number) * PAGE, PAGE, place=(worker, frame, start * PAGE))
            streams[worker].append(page + number)
            wanted[page + number] = (worker, len(streams[worker]) - 1)
        page += count
    runs = RunIndex(logs, 3).of(1)
    found = {}
    for run in runs:
        first = run.frame * 4 + run.frame_offset // PAGE
        for place, number in enumerate(run_pages(run, PAGE).tolist()):
            found[number] = (run.pack, first + place)
    assert found == wanted


def lengths(index: RunIndex, file: int) -> list[tuple[int, tuple[int, ...]]]:
    return [(run.length, run.spread) for run in index.of(file)]


def test_runs_grow_over_frames_that_follow_and_only_those() -> None:
    log = RunLog(PAGE)
    log.add(0, 0, 10, place=(0, 0, 0))
    log.add(0, 10, 10, place=(0, 1, 0))  # goes on
    log.add(0, 20, 10, place=(1, 0, 0))  # another pack
    log.add(0, 30, 10, place=(1, 2, 0))  # a frame lies between
    log.add(0, 50, 10, place=(1, 3, 0))  # a page is left out
    log.add(0, 60, 10, place=(1, 4, 7))  # begins inside a frame
    log.add(0, 5, 10, place=(1, 5, 0))  # not behind it
    log.add(0, 15 + (64 << 20), 10, place=(1, 6, 0))  # far from it
    log.add(1, 70, 10, place=(1, 7, 0))  # another file
    index = RunIndex([log], 2)
    assert lengths(index, 0) == [
        (20, ()), (10, ()), (10, ()), (20, (1, 1, 1)), (10, ()), (10, ()),
    ]  # fmt: skip
    assert lengths(index, 1) == [(10, ())]


def test_spreads_of_several_workers() -> None:
    logs = [RunLog(PAGE), RunLog(PAGE), RunLog(PAGE)]
    for number, log in enumerate(logs):
        log.add(0, 100 * number * PAGE, PAGE, place=(number, 0, 0))
        log.add(0, (100 * number + 2 + number) * PAGE, PAGE, place=(number, 0, PAGE))
    index = RunIndex(logs, 1)
    assert [run.spread for run in index.of(0)] == [(1, 1, 1), (1, 2, 1), (1, 3, 1)]


def test_entries_leave_out_what_vanished() -> None:
    table = FileTable()
    table.add(b"d", DIRECTORY, 0, (0o40700, 5, 6, 1))
    table.add(b"d/gone", FILE, 3, (0o100600, 5, 6, 2))
    table.add(b"d/\xff", FILE, 3, (0o100600, 5, 6, 3))
    copied = Copied(
        table, RunIndex([], 3), DigestIndex([], 3), vanished={1}, bad_blocks={2: [7, 3]}
    )
    writer = EntryWriter(copied, [], [], base=None, page_bytes=PAGE)
    entries = list(writer.entries(({5: 0}, {6: 1})))
    assert [entry.path_bytes() for entry in entries] == [b"d", b"d/\xff"]
    assert [entry.kind for entry in entries] == ["d", "f"]
    assert entries[1].bad_blocks == (3, 7)
    assert (entries[1].owner, entries[1].group, entries[1].size) == (0, 1, 0)
