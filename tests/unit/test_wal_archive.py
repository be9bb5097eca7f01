"""The archive's read model: paths along timelines, gaps, indexes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pgrecall.errors import CorruptObjectError, StoreError, WalFormatError, WalMissingError
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory, TimelineSwitch
from pgrecall.model.wal_files import WalFile
from pgrecall.repository import layout
from pgrecall.repository.identity import Generation
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.store.base import Buffer
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.memory import MemoryStore
from tests.support.wal_scene import NOW, SYSTEM, Scene, build_segments

MIB = 1 << 20
SIZE = 16 * MIB
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


def archive_of(*names: str, content: Buffer = b"x") -> WalArchive:
    """An archive in which these files are listed; their content is of no interest."""
    store = MemoryStore()
    for name in names:
        store.put(layout.wal_key("main", 1, WalFile(name)), [content])
    return WalArchive(store, "main", GENERATION)


def segment(timeline: int, log: int, part: int) -> str:
    return f"{timeline:08X}{log:08X}{part:08X}"


# Timeline 3 left 2 in the middle of a segment, which had left 1 at the beginning of one.
HISTORY = TimelineHistory(
    3,
    (TimelineSwitch(1, Lsn(5 * SIZE)), TimelineSwitch(2, Lsn(7 * SIZE + 100))),
)


def test_a_path_uses_the_childs_segment_at_the_switch() -> None:
    path = archive_of().path(HISTORY, 4 * SIZE + 17)
    assert [next(path) for _ in range(6)] == [
        segment(1, 0, 4),
        segment(2, 0, 5),
        segment(2, 0, 6),
        segment(3, 0, 7),
        segment(3, 0, 8),
        segment(3, 0, 9),
    ]


def test_a_path_goes_on_across_logs() -> None:
    path = archive_of().path(TimelineHistory(1), (1 << 32) - SIZE)
    assert [next(path) for _ in range(2)] == [segment(1, 0, 255), segment(1, 1, 0)]


def test_candidates_are_asked_for_as_postgresql_does() -> None:
    archive = archive_of()
    assert archive.candidates(HISTORY, 5 * SIZE - 1) == [segment(1, 0, 4)]
    assert archive.candidates(HISTORY, 5 * SIZE) == [segment(2, 0, 5), segment(1, 0, 5)]
    assert archive.candidates(HISTORY, 7 * SIZE) == [
        segment(3, 0, 7),
        segment(2, 0, 7),
        segment(1, 0, 7),
    ]


def test_gaps() -> None:
    names = [segment(1, 0, 3), segment(1, 0, 4), segment(2, 0, 5), segment(2, 0, 6)]
    names += [segment(3, 0, 7), segment(3, 0, 8)]
    whole = archive_of(*names)
    assert whole.first_gap(HISTORY, 3 * SIZE, 9 * SIZE) is None
    assert whole.first_gap(HISTORY, 3 * SIZE, 9 * SIZE + 1) == segment(3, 0, 9)
    assert whole.first_gap(HISTORY, 2 * SIZE, 9 * SIZE) == segment(1, 0, 2)
    assert whole.first_gap(HISTORY, 3 * SIZE, 3 * SIZE) is None
    for name in names:
        lacking = archive_of(*(other for other in names if other != name))
        assert lacking.first_gap(HISTORY, 3 * SIZE, 9 * SIZE) == name


def test_a_parents_segment_serves_only_before_the_switch() -> None:
    archive = archive_of(segment(2, 0, 6), segment(2, 0, 7), segment(3, 0, 8))
    assert archive.first_gap(HISTORY, 6 * SIZE, 7 * SIZE + 100) is None
    assert archive.first_gap(HISTORY, 6 * SIZE, 7 * SIZE + 101) == segment(3, 0, 7)
    assert archive.first_gap(HISTORY, 6 * SIZE, 9 * SIZE) == segment(3, 0, 7)


def test_partial_segments_and_backup_files_fill_no_gap() -> None:
    name = segment(1, 0, 3)
    archive = archive_of(f"{name}.partial", f"{name}.00000028.backup")
    assert archive.first_gap(TimelineHistory(1), 3 * SIZE, 4 * SIZE) == name
    assert list(archive.segments(1)) == []
    assert archive.newest(1) is None


def test_segments_between_bounds() -> None:
    names = [segment(1, log, part) for log in (0, 1, 2) for part in (0, 5, 255)]
    archive = archive_of(*names, segment(2, 1, 1), "00000002.history", f"{names[0]}.partial")
    assert [found.name for found in archive.segments(1)] == names
    assert [found.name for found in archive.segments(1, names[2], names[5])] == names[2:6]
    assert [found.name for found in archive.segments(1, segment(7, 1, 0), segment(7, 1, 5))] == [
        names[3],
        names[4],
    ]
    assert archive.timelines() == [1, 2]
    newest = {timeline: found.name for timeline, found in archive.newest_segments().items()}
    assert newest == {1: names[-1], 2: segment(2, 1, 1)}
    assert archive.has(names[0])
    assert not archive.has(segment(1, 9, 9))


def test_timelines_are_hexadecimal() -> None:
    archive = archive_of(segment(0x10, 0, 1), segment(9, 0, 1), segment(0xA, 0, 1))
    assert archive.timelines() == [9, 10, 16]
    stranger = archive_of()
    stranger.store.put("servers/main/wal/0001/notes/x", [b""])
    with pytest.raises(WalFormatError):
        stranger.timelines()


def test_histories(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.push_new("00000002.history", b"1\t0/3080000\tpromoted\n")
    scene.push_new("0000000A.history", b"1\t0/3080000\tpromoted\n2\t0/5000000\tx\n")
    ((name, content),) = build_segments(1, timeline=3).items()
    scene.push_new(name, content)
    histories = scene.archive().histories()
    assert sorted(histories) == [1, 2, 10]  # what timeline 3 comes from is not known
    assert histories[10].end_of(2) == Lsn(0x5000000)
    with pytest.raises(WalMissingError, match=r"00000003\.history"):
        scene.archive().history(3)


def test_reading_and_indexes(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    built = build_segments(5)
    for name, content in built.items():
        scene.push_new(name, content)
    archive = scene.archive()
    assert archive.read(next(iter(built))) == next(iter(built.values()))
    with pytest.raises(WalMissingError, match="not in"):
        archive.read("0000000100000000000000FF")
    with pytest.raises(WalMissingError):
        archive.index("0000000100000000000000FF")
    names = list(built) * 30
    found = list(archive.indexes(names))
    assert [name for name, _ in found] == names
    assert all(index.start_lsn == WalFile(name).start(MIB) for name, index in found)
    # Ends early without waiting for the rest, and leaves no thread behind.
    before = threading.active_count()
    iterator = archive.indexes(names)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    with pytest.raises(WalMissingError):
        list(archive.indexes([*built, "0000000100000000000000FF"]))
    damaged = archive_of(segment(1, 0, 3), content=b"no WAL object")
    with pytest.raises(CorruptObjectError):
        damaged.index(segment(1, 0, 3))


@pytest.mark.parametrize("method", ["head", "children", "list", "read"])
def test_an_outage_is_never_absence(tmp_path: Path, method: str) -> None:
    scene = Scene(tmp_path)
    for name, content in build_segments(2).items():
        scene.push_new(name, content)
    faulty = FaultyStore(scene.store(), [Fault("before", method=method, is_lasting=True)])
    archive = WalArchive(faulty, "main", scene.archive().generation)
    name = "000000010000000000000003"
    attempts = {
        "head": lambda: archive.has(name),
        "children": lambda: archive.newest(1),
        "list": lambda: archive.first_gap(TimelineHistory(1), 3 * MIB, 5 * MIB),
        "read": lambda: archive.index(name),
    }
    with pytest.raises(StoreError, match="injected"):
        attempts[method]()
