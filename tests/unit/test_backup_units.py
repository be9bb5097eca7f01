"""What a copy is cut into, and where its bytes went: file table, units, runs."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.backup.digest_log import DigestIndex
from pgrecall.backup.run_log import RunIndex, RunLog, file_entries
from pgrecall.backup.units import BATCH_BYTES, BATCH_FILES, PIECE_BYTES, cut_into_units
from pgrecall.codec.crc import crc32c
from pgrecall.model.file_table import DIRECTORY, FILE, FileTable
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


@settings(deadline=None)
@given(st.data())
def test_crcs_of_runs_make_the_crc_of_the_file(data: st.DataObject) -> None:
    """Pieces in any order, from any worker; what no run covers is zeros."""
    pieces = data.draw(st.lists(st.binary(min_size=1, max_size=40), max_size=12))
    holes = data.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))
    logs = [RunLog(), RunLog()]
    whole = bytearray()
    noted = []
    for place, (piece, is_hole) in enumerate(zip(pieces, holes, strict=True)):
        if is_hole:
            whole += bytes(len(piece))
        else:
            noted.append((place, len(whole), piece))
            whole += piece
    end = max((offset + len(piece) for _, offset, piece in noted), default=0)
    for place, offset, piece in data.draw(st.permutations(noted)):
        log = logs[data.draw(st.integers(0, 1))]
        log.add(1, offset, len(piece), crc32c(piece), place=(0, place, 0))
    runs, size, crc = RunIndex(logs, 3).of(1)
    assert size == end
    assert crc == crc32c(bytes(whole[:end]))
    covered = bytearray(end)
    for run in runs:
        covered[run.file_offset : run.file_offset + run.length] = b"\1" * run.length
    for _, offset, piece in noted:
        assert covered[offset : offset + len(piece)] == b"\1" * len(piece)
    assert sum(covered) == sum(len(piece) for _, _, piece in noted)


def test_runs_grow_over_frames_that_follow_and_only_those() -> None:
    log = RunLog()
    log.add(0, 0, 10, 1, place=(0, 0, 0))
    log.add(0, 10, 10, 2, place=(0, 1, 0))  # goes on
    log.add(0, 20, 10, 3, place=(1, 0, 0))  # another pack
    log.add(0, 30, 10, 4, place=(1, 2, 0))  # a frame lies between
    log.add(0, 50, 10, 5, place=(1, 3, 0))  # bytes lie between
    log.add(0, 60, 10, 6, place=(1, 4, 7))  # begins inside a frame
    log.add(1, 70, 10, 7, place=(1, 5, 0))  # another file
    index = RunIndex([log], 2)
    assert [run.length for run in index.of(0)[0]] == [20, 10, 10, 10, 10]
    assert [run.length for run in index.of(1)[0]] == [10]


def test_a_file_that_is_all_hole_at_its_beginning() -> None:
    log = RunLog()
    log.add(0, 5 << 30, 4, crc32c(b"tail"), place=(0, 0, 0))
    runs, size, crc = RunIndex([log], 1).of(0)
    expected = 0
    zeros = bytes(64 << 20)
    for _ in range(80):
        expected = crc32c(zeros, expected)
    assert (len(runs), size, crc) == (1, (5 << 30) + 4, crc32c(b"tail", expected))


def test_entries_leave_out_what_vanished() -> None:
    table = FileTable()
    table.add(b"d", DIRECTORY, 0, (0o40700, 5, 6, 1))
    table.add(b"d/gone", FILE, 3, (0o100600, 5, 6, 2))
    table.add(b"d/\xff", FILE, 3, (0o100600, 5, 6, 3))
    entries = list(
        file_entries(
            table,
            RunIndex([], 3),
            DigestIndex([], 3),
            vanished={1},
            bad_blocks={2: [7, 3]},
            owners=({5: 0}, {6: 1}),
        )
    )
    assert [entry.path_bytes() for entry in entries] == [b"d", b"d/\xff"]
    assert [entry.kind for entry in entries] == ["d", "f"]
    assert entries[1].bad_blocks == (3, 7)
    assert (entries[1].owner, entries[1].group, entries[1].size) == (0, 1, 0)
