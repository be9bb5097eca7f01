"""The parts of a backup that need no server: units, runs, selection, walk, pages, WAL, plan."""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.backup import page_check
from pgrecall.backup.external import external_files
from pgrecall.backup.pack_sink import PackFactory, PackSink
from pgrecall.backup.page_check import PageInspector
from pgrecall.backup.plan import BackupWishes, plan_backup
from pgrecall.backup.run_log import RunIndex, RunLog, file_entries
from pgrecall.backup.scan import scan_data_directory
from pgrecall.backup.selection import (
    is_excluded_file,
    is_relation_directory,
    is_temporary_relation,
    is_unlogged_content,
    relation_segment_number,
    unlogged_nodes,
)
from pgrecall.backup.units import BATCH_BYTES, BATCH_FILES, PIECE_BYTES, cut_into_units
from pgrecall.backup.wal import add_wal_files, await_segments, needed_segments
from pgrecall.backup.worker import CopySource, CopyWorker
from pgrecall.codec.crc import crc32c
from pgrecall.codec.pages import page_checksum
from pgrecall.errors import (
    ArchiveTimeoutError,
    DataDirectoryError,
    IdentityError,
    PostgresRightsError,
    StoreError,
    UnsupportedServerError,
    WalMissingError,
)
from pgrecall.model.file_table import DIRECTORY, FILE, FileTable
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.actions import ArchiverFacts
from pgrecall.postgres.control import ControlData
from pgrecall.postgres.facts import ServerFacts, ServerRights
from pgrecall.repository import layout
from pgrecall.repository.packs import FRAME_BYTES, PackHeader, PackReader
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.memory import MemoryStore

PAGE = 8192
SEGMENT = 1 << 24

# --- file table, units ---------------------------------------------------------------------


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


# --- where bytes went ---------------------------------------------------------------------


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
            vanished={1},
            bad_blocks={2: [7, 3]},
            owners=({5: 0}, {6: 1}),
        )
    )
    assert [entry.path_bytes() for entry in entries] == [b"d", b"d/\xff"]
    assert [entry.kind for entry in entries] == ["d", "f"]
    assert entries[1].bad_blocks == (3, 7)
    assert (entries[1].owner, entries[1].group, entries[1].size) == (0, 1, 0)


# --- selection ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(b"postmaster.pid", b"postmaster.opts", b"backup_label", b"tablespace_map"),
        *(b"backup_manifest", b"postgresql.auto.conf.tmp", b"current_logfiles.tmp"),
        *(b"recovery.signal", b"standby.signal", b"pgrecall_copy.json"),
    ],
)
def test_files_of_the_process_are_left_out_at_the_top(name: bytes) -> None:
    assert is_excluded_file(b"", name)
    assert not is_excluded_file(b"somewhere", name)
    assert not is_excluded_file(b"", name + b".old")


def test_temporary_files_and_caches_are_left_out_anywhere() -> None:
    for directory in (b"", b"base", b"base/5", b"pg_tblspc/1/PG_18_1/5"):
        for name in (b"pg_internal.init", b"pg_internal.init.123", b"pgsql_tmp", b"pgsql_tmp1.0"):
            assert is_excluded_file(directory, name)
    for name in (b"PG_VERSION", b"postgresql.auto.conf", b"pg_filenode.map", b"1259"):
        assert not is_excluded_file(b"", name)


def test_relation_files() -> None:
    for directory in (b"global", b"base/1", b"pg_tblspc/16385/PG_18_202506291/5"):
        assert is_relation_directory(directory)
        assert relation_segment_number(directory, b"16384") == 0
        assert relation_segment_number(directory, b"16384_vm.2") == 2
        assert relation_segment_number(directory, b"16384.131") == 131
        for name in (b"pg_filenode.map", b"16384.x", b"16384_foo", b"t1_16384", b"16384\n"):
            assert relation_segment_number(directory, name) is None
    for directory in (
        b"",
        b"base",
        b"base/x",
        b"pg_xact",
        b"pg_tblspc/1",
        b"base/1\n",
        b"base/1/2",
    ):
        assert not is_relation_directory(directory)
        assert relation_segment_number(directory, b"16384") is None


def test_unlogged_and_temporary_relations() -> None:
    names = [b"10", b"10_init", b"10_fsm", b"10.1", b"11", b"11_vm", b"t3_12", b"12_init.1"]
    unlogged = unlogged_nodes(names)
    assert unlogged == {b"10", b"12"}
    left_out = [name for name in names if is_unlogged_content(name, unlogged)]
    assert left_out == [b"10", b"10_fsm", b"10.1"]
    assert [name for name in names if is_temporary_relation(name)] == [b"t3_12"]
    for name in (b"t3_12_fsm", b"t3_12.4", b"t10_12_vm.1"):
        assert is_temporary_relation(name)
    for name in (b"t_12", b"t3_", b"t3_12x", b"3_12"):
        assert not is_temporary_relation(name)


# --- the walk --------------------------------------------------------------------------------


def scanned(root: Path) -> tuple[dict[bytes, str], set[tuple[str, str]]]:
    scan = scan_data_directory(str(root), lambda name: name == b"PG_18_1", has_summaries=True)
    table = scan.table
    found = {table.path(n): chr(kind) for n, kind in enumerate(table.kinds)}
    assert len(found) == len(table)
    assert list(found) == sorted(found, key=lambda path: path.split(b"/"))
    return found, {(finding.subject, finding.code) for finding in scan.findings}


def test_directories_that_the_server_fills_itself_are_empty(tmp_path: Path) -> None:
    emptied = ("pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots",
               "pg_stat_tmp", "pg_subtrans")  # fmt: skip
    for name in (*emptied, "pg_wal", "pg_wal/archive_status", "base", "base/pgsql_tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    found, findings = scanned(tmp_path)
    assert findings == set()
    assert found == {
        **{name.encode(): "d" for name in emptied},
        b"base": "d",
        b"base/file": "f",
        b"pg_wal": "d",
        b"pg_wal/archive_status": "d",
        b"pg_wal/summaries": "d",
    }


def test_links_that_lead_around(tmp_path: Path) -> None:
    root, outside = tmp_path / "pgdata", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "file").write_text("x")
    (outside / "to_itself").symlink_to(outside)
    (outside / "to_above_pgdata").symlink_to(tmp_path)
    (root / "out").symlink_to(outside)
    (root / "pg_stat_tmp").symlink_to(outside)
    found, findings = scanned(root)
    assert found[b"out/file"] == "f"
    assert found[b"pg_stat_tmp"] == "d"
    assert not any(path.startswith(b"pg_stat_tmp/") for path in found)
    assert ("out/to_itself", "link-loop") in findings
    assert len(found) < 20


def test_a_tablespace_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pg_tblspc").mkdir()
    (tmp_path / "pg_tblspc" / "16385").symlink_to(tmp_path / "missing")
    with pytest.raises(DataDirectoryError, match="pg_tblspc/16385 leads nowhere"):
        scanned(tmp_path)
    with pytest.raises(DataDirectoryError, match="there is no directory"):
        scanned(tmp_path / "missing")


# --- the copy --------------------------------------------------------------------------------


class Copy:
    """One worker over a directory of files, into packs in memory."""

    def __init__(
        self, root: Path, sizes: dict[str, int], inspector: PageInspector | None = None
    ) -> None:
        self.table = FileTable()
        for path, size in sizes.items():
            self.table.add(path.encode(), FILE, size, (0o600, 0, 0, 0))
        self.store = MemoryStore(pack_bytes=1 << 20)
        header = PackHeader(repository_id="r", server="main", backup_id="b-1", number=0)
        self.factory = PackFactory(self.store, header, codec="zstd", level=1, committers=1)
        self.source = CopySource(
            os.fsencode(root), self.table, inspector, page_bytes=PAGE, relation_blocks=131072
        )
        self.worker = CopyWorker(self.source, PackSink(self.factory))

    def run(self) -> dict[str, bytes]:
        try:
            for unit in cut_into_units(self.table.files(), self.table.sizes, FRAME_BYTES):
                self.worker.copy(unit)
            self.worker.finish()
            self.factory.finish()
        finally:
            self.worker.close()
            self.factory.close()
        index = RunIndex([self.worker.result.runs], len(self.table))
        found = {}
        for file in self.table.files():
            if file in self.worker.result.vanished:
                continue
            runs, size, crc = index.of(file)
            content = bytearray(size)
            for run in runs:
                key = layout.pack_key("main", "b-1", run.pack)
                reader = PackReader(key, self.store.reader(key))
                at, frame, start = run.file_offset, run.frame, run.frame_offset
                while at < run.file_offset + run.length:
                    piece = reader.raw(frame)[start : start + run.file_offset + run.length - at]
                    content[at : at + len(piece)] = piece
                    at, frame, start = at + len(piece), frame + 1, 0
            assert crc == crc32c(bytes(content))
            found[self.table.path(file).decode()] = bytes(content)
        return found


def test_files_are_copied_as_they_are_now_not_as_they_were(tmp_path: Path) -> None:
    """Sizes of the walk beside what is there when the worker comes."""
    frame = FRAME_BYTES
    cases = {
        "same": (5000, 5000), "empty": (0, 0), "was_empty": (0, 700), "cut": (5000, 3),
        "emptied": (5000, 0), "grown": (10, 40_000), "frame": (frame, frame),
        "to_frame": (10, frame), "over_frame": (10, frame + 5), "far_over": (10, 3 * frame + 1),
        "big": (2 * frame + 9, 2 * frame + 9), "big_cut": (3 * frame, frame + 1),
        "big_grown": (2 * frame, 3 * frame), "big_emptied": (2 * frame, 0), "last": (77, 77),
    }  # fmt: skip
    expected = {}
    for number, (name, (walked, now)) in enumerate(cases.items()):
        content = bytes([65 + number]) * now
        (tmp_path / name).write_bytes(content)
        # A big file is copied up to the size of the walk; what came later is in the WAL.
        expected[name] = content[:walked] if walked > frame else content
    assert Copy(tmp_path, {name: size for name, (size, _) in cases.items()} | {"no": 9}).run() == (
        expected
    )


def test_short_reads_are_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(3 * FRAME_BYTES + 11)
    (tmp_path / "big").write_bytes(content)
    (tmp_path / "small").write_bytes(content[:9999])
    real = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return real(descriptor, [buffers[0][:4321]], offset)

    monkeypatch.setattr(os, "preadv", short)
    found = Copy(tmp_path, {"big": len(content), "small": 9999}).run()
    assert found == {"big": content, "small": content[:9999]}


def test_a_disk_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").write_bytes(b"x")

    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(DataDirectoryError, match="/base cannot be read: Input/output error"):
        Copy(tmp_path, {"base": 1}).run()


def test_block_numbers_go_on_across_relation_files(tmp_path: Path) -> None:
    """The second file of a relation, beyond its first frame, in a piece of its own."""
    directory = tmp_path / "base" / "5"
    directory.mkdir(parents=True)
    blocks = PIECE_BYTES // PAGE + 200
    page = bytearray(os.urandom(PAGE))
    page[8:10] = bytes(2)
    path = directory / "16384.1"
    with path.open("wb") as file:
        file.truncate(blocks * PAGE)
        for block in (0, 130, blocks - 1):
            page[8:10] = page_checksum(page, 131072 + block).to_bytes(2, "little")
            os.pwrite(file.fileno(), page, block * PAGE)
    inspector = PageInspector(PAGE, Lsn(2**63), lambda: Lsn(0), rereads=0)
    copy = Copy(tmp_path, {"base/5/16384.1": blocks * PAGE}, inspector)
    copy.run()
    assert copy.worker.result.bad == {}
    assert copy.worker.result.pages_checked == blocks
    path.rename(directory / "16384")
    wrong = Copy(tmp_path, {"base/5/16384": blocks * PAGE}, inspector)
    wrong.run()
    assert [bad.block for bad in wrong.worker.result.bad[0]] == [0, 130, blocks - 1]


def test_a_partial_page_is_noted(tmp_path: Path) -> None:
    (tmp_path / "base" / "5").mkdir(parents=True)
    (tmp_path / "base" / "5" / "1").write_bytes(bytes(PAGE + 100))
    copy = Copy(tmp_path, {"base/5/1": PAGE})
    assert copy.run() == {"base/5/1": bytes(PAGE + 100)}
    assert copy.worker.result.odd_sizes == {0}


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("method", ["writer", "commit"])
def test_a_commit_that_fails_is_raised(tmp_path: Path, method: str, kind: str) -> None:
    (tmp_path / "file").write_bytes(os.urandom(5 * FRAME_BYTES))
    copy = Copy(tmp_path, {"file": 5 * FRAME_BYTES})
    fault = Fault(kind, method=method, at=2)  # type: ignore[arg-type]
    copy.factory.store = FaultyStore(copy.store, [fault])
    with pytest.raises(StoreError, match="a fault was injected"):
        copy.run()


def test_an_acknowledged_pack_whose_answer_was_lost(tmp_path: Path) -> None:
    """Ours is ours, when the store says that the key is taken; another's is refused."""
    (tmp_path / "file").write_bytes(b"content")
    first = Copy(tmp_path, {"file": 7})
    first.run()
    again = Copy(tmp_path, {"file": 7})
    again.factory.store = again.store = first.store
    assert again.run() == {"file": b"content"}
    (tmp_path / "file").write_bytes(b"another")
    other = Copy(tmp_path, {"file": 7})
    other.factory.store = other.store = first.store
    with pytest.raises(Exception, match="pack 0 exists already"):
        other.run()


# --- pages ---------------------------------------------------------------------------------


def good_page(block: int, lsn: int = 0) -> bytes:
    page = bytearray(os.urandom(PAGE))
    page[0:8] = (lsn >> 32).to_bytes(4, "little") + (lsn & 0xFFFFFFFF).to_bytes(4, "little")
    page[8:10] = page_checksum(page, block).to_bytes(2, "little")
    return bytes(page)


def bad_page(block: int, lsn: int = 0) -> bytes:
    page = bytearray(good_page(block, lsn))
    page[5000] ^= 1
    return bytes(page)


def inspect(path: Path, read: bytes, *, rereads: int = 3) -> tuple[list[str], bytes]:
    inspector = PageInspector(PAGE, Lsn(1000), lambda: Lsn(2000), rereads=rereads)
    buffer = bytearray(read)
    with path.open("rb") as file:
        found = inspector.inspect(memoryview(buffer), 7, file.fileno(), 0)
    return [f"{bad.block}: {bad.reason}" for bad in found], bytes(buffer)


def test_torn_pages_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "relation"
    good, torn = good_page(7) + good_page(8), bad_page(7) + bad_page(8)
    path.write_bytes(good)
    assert inspect(path, torn) == ([], good)
    # Still torn at the first look: one pause for both, then both are whole.
    path.write_bytes(torn)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        path.write_bytes(good)

    monkeypatch.setattr(page_check.time, "sleep", pause)
    assert inspect(path, torn) == ([], good)
    assert len(pauses) == 1


def test_pages_that_stay_bad(tmp_path: Path) -> None:
    path = tmp_path / "relation"
    never_used = bytes(5000) + b"\1" + bytes(PAGE - 5001)
    pages = [
        bad_page(7, 999), bad_page(8, 1000), bad_page(9, 2000), bad_page(10, 2001), never_used,
    ]  # fmt: skip
    path.write_bytes(b"".join(pages))
    found, _ = inspect(path, b"".join(pages), rereads=1)
    assert found == [
        "7: its checksum does not match its content",
        "10: its LSN 0/7D1 lies beyond the server's insert position 0/7D0",
        "11: it is marked as never used, and is not empty",
    ]


def test_pages_that_were_cut_off_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "relation"
    path.write_bytes(good_page(7) + b"half")
    assert inspect(path, bad_page(7) + bad_page(8))[0] == []


# --- WAL ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (SEGMENT + 40, SEGMENT + 100, [1]),
        (SEGMENT + 40, 2 * SEGMENT, [1]),
        (SEGMENT + 40, 2 * SEGMENT + 1, [1, 2]),
        (SEGMENT, 2 * SEGMENT, [1]),
        (SEGMENT, SEGMENT, [1]),
        (2 * SEGMENT - 1, 2 * SEGMENT, [1]),
        (255 * SEGMENT, 258 * SEGMENT, [255, 256, 257]),
    ],
)
def test_needed_segments(start: int, stop: int, expected: list[int]) -> None:
    names = needed_segments(3, Lsn(start), Lsn(stop), SEGMENT)
    assert names == [f"00000003{n // 256:08X}{n % 256:08X}" for n in expected]


def test_needed_segments_of_another_size() -> None:
    names = needed_segments(1, Lsn(0xFFF00000), Lsn(0x100100000), 1 << 20)
    assert names == ["000000010000000000000FFF", "000000010000000100000000"]


def facts_of_archiver(**changes: object) -> ArchiverFacts:
    fields: dict[str, object] = {
        "archived_count": 5, "last_archived_file": "000000010000000000000001",
        "last_archived_at": None, "failed_count": 0, "last_failed_file": "",
        "last_failed_at": None,
    }  # fmt: skip
    return ArchiverFacts(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "cause"),
    [
        ({}, "archived nothing meanwhile"),
        ({"failed_count": 1, "last_failed_file": "F"}, "archive_command fails, last for F"),
        ({"archived_count": 6}, "archives elsewhere"),
        ({"last_archived_file": "000000010000000000000002"}, "archives elsewhere"),
    ],
)
def test_a_segment_that_does_not_come(now: dict[str, object], cause: str) -> None:
    answers = iter([facts_of_archiver(), facts_of_archiver(**now)])
    with pytest.raises(ArchiveTimeoutError, match=cause) as caught:
        await_segments(
            ["000000010000000000000002", "000000010000000000000003"],
            lambda name: False,
            timeout_seconds=0.05,
            watch=lambda: None,
            archiver=lambda: next(answers),
        )
    assert "2 segments" in caught.value.message
    assert caught.value.retryable


def test_segments_are_waited_for_in_order() -> None:
    asked: list[str] = []

    def has(name: str) -> bool:
        asked.append(name)
        return asked.count(name) == 2

    await_segments(
        ["a", "b"], has, timeout_seconds=5, watch=lambda: None, archiver=facts_of_archiver
    )
    assert asked == ["a", "a", "b", "b"]


def test_the_time_runs_anew_with_each_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy archive is no broken one: 0.9 seconds for each of five, with one second allowed."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += 0.3

    monkeypatch.setattr("pgrecall.backup.wal.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("pgrecall.backup.wal.time.sleep", sleep)
    asked: list[str] = []

    def has(name: str) -> bool:
        asked.append(name)
        return asked.count(name) == 4

    await_segments(
        list("abcde"), has, timeout_seconds=1, watch=lambda: None, archiver=facts_of_archiver
    )
    assert clock[0] == pytest.approx(4.5)


def test_a_lost_session_ends_the_wait() -> None:
    def lost() -> None:
        raise StoreError("lost")

    with pytest.raises(StoreError, match="lost"):
        await_segments(
            ["a"], lambda name: False, timeout_seconds=60, watch=lost, archiver=facts_of_archiver
        )


def test_wal_for_the_backup_itself(tmp_path: Path) -> None:
    (tmp_path / "pg_wal").mkdir()
    (tmp_path / "pg_wal" / "00000002.history").write_text("1\t0/3000000\tno reason\n")
    (tmp_path / "pg_wal" / "000000020000000000000003").write_bytes(bytes(100))
    table = FileTable()
    table.add(b"x", FILE, 1, (0, 0, 0, 0))
    indexes = add_wal_files(table, str(tmp_path), 2, ["000000020000000000000003"])
    assert [table.path(index) for index in indexes] == [
        b"pg_wal/00000002.history",
        b"pg_wal/000000020000000000000003",
    ]
    assert [table.sizes[index] for index in indexes] == [22, 100]
    with pytest.raises(WalMissingError, match="000000020000000000000004 is gone"):
        add_wal_files(table, str(tmp_path), 2, ["000000020000000000000004"])


# --- plan and external files ---------------------------------------------------------------


def server(**changes: object) -> ServerFacts:
    fields: dict[str, object] = {
        "version_num": 180006, "version": "18.6", "data_directory": "/pgdata",
        "config_file": "/etc/p/postgresql.conf", "hba_file": "/etc/p/pg_hba.conf",
        "ident_file": "", "system_identifier": 77, "timeline": 1, "is_in_recovery": False,
        "wal_level": "replica", "archive_mode": "on", "archive_command": "x",
        "archive_library": "", "segment_bytes": SEGMENT, "block_bytes": PAGE,
        "relation_segment_blocks": 131072, "has_checksums": True, "tablespaces": (),
        "shared_preload_libraries": (), "collation_versions": {}, "settings": {"port": "5432"},
        "pending_restart": (), "configuration_files": (),
    }  # fmt: skip
    return ServerFacts(**{**fields, **changes})  # type: ignore[arg-type]


def rights(**changes: object) -> ServerRights:
    fields: dict[str, object] = {
        "role": "r", "is_superuser": False, "can_backup": True, "can_switch_wal": False,
        "can_create_restore_point": False, "can_read_all_settings": False,
        "can_replicate": False,
    }  # fmt: skip
    return ServerRights(**{**fields, **changes})  # type: ignore[arg-type]


class Control:
    """What the plan asks of pg_control."""

    def __init__(self, *, system_identifier: int = 77, is_stopped: bool = False) -> None:
        self.system_identifier = system_identifier
        self.is_stopped = is_stopped


def wishes(**changes: object) -> BackupWishes:
    fields: dict[str, object] = {
        "server": "main", "repository": "one", "data_directory": "/pgdata", "checkpoint": "fast",
        "compression": "zstd", "level": 1, "workers": 2, "with_wal": False,
    }  # fmt: skip
    return BackupWishes(**{**fields, **changes})  # type: ignore[arg-type]


def planned(
    facts: ServerFacts, *, control: Control | None = None, role: ServerRights | None = None,
    with_wal: bool = False,
) -> object:  # fmt: skip
    made: ControlData = control or Control()  # type: ignore[assignment]
    return plan_backup(wishes(with_wal=with_wal), facts, role or rights(), made)


def test_a_plan_says_what_will_be_done() -> None:
    plan = plan_backup(wishes(), server(), rights(), Control())  # type: ignore[arg-type]
    assert (plan.kind, plan.source, plan.checks_pages, plan.findings) == ("full", "local", True, ())
    assert len(plan.reasons) == 2
    unchecked = plan_backup(
        wishes(), server(has_checksums=False), rights(), Control()  # type: ignore[arg-type]
    )  # fmt: skip
    assert [finding.code for finding in unchecked.findings] == ["page-checksums-off"]
    assert not unchecked.checks_pages


def test_a_plan_refuses_with_what_to_do() -> None:
    for facts, error, why in (
        (server(version_num=120022), UnsupportedServerError, "older than 13"),
        (server(is_in_recovery=True), UnsupportedServerError, "in recovery"),
        (server(wal_level="minimal"), UnsupportedServerError, "wal_level=minimal"),
        (server(archive_mode="off"), UnsupportedServerError, "archive_mode=off"),
        (server(system_identifier=78), IdentityError, "the server at port 5432 is 78"),
    ):
        with pytest.raises(error, match=why) as caught:
            planned(facts)
        assert caught.value.hint
    with pytest.raises(UnsupportedServerError, match="wal_level=minimal"):
        planned(server(wal_level="minimal"), with_wal=True, role=rights(can_replicate=True))
    with pytest.raises(PostgresRightsError, match="may not start a backup"):
        planned(server(), role=rights(can_backup=False))
    with pytest.raises(PostgresRightsError, match="may not reserve WAL"):
        planned(server(), with_wal=True)
    with pytest.raises(DataDirectoryError, match="is a copy"):
        planned(server(), control=Control(is_stopped=True))
    planned(server(archive_mode="off"), with_wal=True, role=rights(can_replicate=True))


def test_configuration_outside_of_pgdata(tmp_path: Path) -> None:
    pgdata, etc = tmp_path / "pgdata", tmp_path / "etc"
    pgdata.mkdir()
    etc.mkdir()
    (etc / "postgresql.conf").write_text("port = 1\n")
    (etc / "extra.conf").write_bytes(b"x" * ((4 << 20) + 1))
    (pgdata / "pg_hba.conf").symlink_to(etc / "postgresql.conf")
    (tmp_path / "link").symlink_to(pgdata)
    facts = server(
        data_directory=str(tmp_path / "link"),
        config_file=str(etc / "postgresql.conf"),
        hba_file=str(tmp_path / "link" / "pg_hba.conf"),
        ident_file=str(etc / "missing.conf"),
        configuration_files=(str(etc / "postgresql.conf"), str(etc / "extra.conf")),
    )
    files, findings = external_files(facts, str(pgdata))
    assert [(file.role, file.path, file.content) for file in files] == [
        ("config", str(etc / "postgresql.conf"), b"port = 1\n")
    ]
    assert {(finding.subject, finding.code) for finding in findings} == {
        (str(etc / "missing.conf"), "configuration-left-out"),
        (str(etc / "extra.conf"), "configuration-left-out"),
    }
