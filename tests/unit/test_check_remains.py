"""What check says of what was left behind, and of servers that archive beside each other."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgrecall.check.branches import Branch, read_branches, side_by_side
from pgrecall.check.remains import remains
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory, TimelineSwitch
from pgrecall.model.wal_files import WalFile, history_name, segment_name
from pgrecall.repository import layout
from pgrecall.repository.identity import Generation
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import RepositorySettings
from pgrecall.store.local import LocalStore
from pgrecall.store.memory import MemoryStore
from pgrecall.store.remains import remove_abandoned_files

NOW = datetime.now(UTC)
SERVER = "shop 'ü'"
SIZE = 1 << 20
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BACKUP = "b-20261122T201637Z-7k3q"


class Repository:
    """A directory store whose files can be made old."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.settings = RepositorySettings(name="main", path=str(path))
        self.store = LocalStore(str(path))
        self.path = path

    def put(self, key: str, age: timedelta) -> None:
        self.store.put(key, [b"12345"])
        self.age(self.path / key, age)

    def age(self, path: Path, age: timedelta) -> None:
        at = (NOW - age).timestamp()
        os.utime(path, (at, at))

    def temporary(self, age: timedelta) -> Path:
        writer = self.store.writer(layout.pack_key(SERVER, BACKUP, 7))
        writer.write(b"torn")
        (found,) = self.path.rglob(".pack-0007.*.tmp")
        path = found.rename(found.with_name(f".pack.{os.getpid()}-{age.days}.tmp"))
        writer.discard()
        self.age(path, age)
        return path

    def findings(self) -> list[Finding]:
        return list(remains(self.store, self.settings, SERVER, NOW))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def test_a_backup_that_was_never_completed_is_named_after_a_day(repository: Repository) -> None:
    repository.put(layout.pack_key(SERVER, BACKUP, 0), 3 * DAY)
    repository.put(layout.pack_key(SERVER, BACKUP, 1), HOUR)  # it runs, or has ended just now
    assert repository.findings() == []
    repository.age(repository.path / layout.pack_key(SERVER, BACKUP, 1), 25 * HOUR)
    (finding,) = repository.findings()
    assert (finding.severity, finding.code) == ("warn", "backup-unfinished")
    assert "10 bytes in 2 objects" in finding.message
    assert str(repository.path / layout.backup_prefix(SERVER, BACKUP)) in finding.hint
    repository.put(layout.complete_key(SERVER, BACKUP), 25 * HOUR)
    assert repository.findings() == []


def test_temporary_files_are_named_and_removed_after_a_day(repository: Repository) -> None:
    new, old = repository.temporary(HOUR), repository.temporary(2 * DAY)
    (finding,) = repository.findings()
    assert finding.code == "temporary-files"
    assert old.name in finding.message and "4 bytes" in finding.message
    assert remove_abandoned_files(repository.settings) == 1
    assert (new.exists(), old.exists()) == (True, False)
    assert repository.findings() == []


def test_removing_them_is_no_reason_to_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = RepositorySettings(name="main", path=str(tmp_path / "gone"))
    assert remove_abandoned_files(gone) == 0
    assert "stay" in caplog.text
    assert remove_abandoned_files(RepositorySettings(name="main", store="s3")) == 0


def branch(
    timeline: int,
    *switches: tuple[int, int],
    born: timedelta,
    newest: tuple[int, timedelta],
) -> Branch:
    """``newest``: number of its newest segment, and how long ago that was stored."""
    number, age = newest
    history = TimelineHistory(
        timeline, tuple(TimelineSwitch(parent, Lsn(at)) for parent, at in switches)
    )
    name = segment_name(timeline, number * SIZE, SIZE)
    return Branch(history, NOW - born, name, Lsn(number * SIZE), NOW - age)


SWITCH = 5 * SIZE + 1000


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        # A promotion: timeline 1 ended where 2 began.
        ([((1,), 9 * DAY, (5, 3 * HOUR)), ((2, (1, SWITCH)), 2 * HOUR, (9, HOUR))], []),
        # Its last segments came late, but they are of before the switch.
        ([((1,), 9 * DAY, (5, HOUR)), ((2, (1, SWITCH)), 2 * HOUR, (9, HOUR))], []),
        # A recovery to an earlier moment: what lies behind was stored before.
        ([((1,), 9 * DAY, (8, 3 * HOUR)), ((2, (1, SWITCH)), 2 * HOUR, (9, HOUR))], []),
        # The server went on beside its promoted clone.
        ([((1,), 9 * DAY, (8, HOUR)), ((2, (1, SWITCH)), 2 * HOUR, (6, HOUR))], [(1, 2)]),
        # That was sorted out days ago.
        ([((1,), 9 * DAY, (8, 2 * DAY)), ((2, (1, SWITCH)), 3 * DAY, (6, HOUR))], []),
        # Two clones, promoted at different points.
        (
            [
                ((2, (1, SWITCH)), 5 * HOUR, (6, HOUR)),
                ((3, (1, SWITCH + SIZE)), 4 * HOUR, (7, HOUR)),
            ],
            [(2, 3)],
        ),
        # One after the other.
        (
            [
                ((2, (1, SWITCH)), 5 * HOUR, (6, 4 * HOUR)),
                ((3, (1, SWITCH + SIZE)), 3 * HOUR, (7, HOUR)),
            ],
            [],
        ),
        # A chain whose history files were stored in an odd order.
        (
            [
                ((2, (1, SWITCH)), HOUR, (6, HOUR / 2)),
                ((3, (1, SWITCH), (2, 7 * SIZE)), 2 * HOUR, (8, HOUR)),
            ],
            [],
        ),
    ],
)
def test_servers_that_archive_beside_each_other(
    branches: list[tuple[tuple[int, ...], timedelta, tuple[int, timedelta]]],
    expected: list[tuple[int, int]],
) -> None:
    made = [branch(*line, born=born, newest=newest) for line, born, newest in branches]  # type: ignore[arg-type]
    found = list(side_by_side(made, "main", NOW))
    assert [finding.code for finding in found] == ["timelines-side-by-side"] * len(expected)
    for finding, (one, two) in zip(found, expected, strict=True):
        assert f"timelines {one} and {two} both grow" in finding.message


def test_branches_are_read_from_the_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    names = [segment_name(1, 4 * SIZE, SIZE), segment_name(1, 6 * SIZE, SIZE)]
    names += [history_name(2), segment_name(2, 5 * SIZE, SIZE), segment_name(3, 9 * SIZE, SIZE)]
    for name in names:
        store.put(layout.wal_key(SERVER, 1, WalFile(name)), [b"x"])
    fields = {
        "system_identifier": "7",
        "major_version": 18,
        "segment_bytes": SIZE,
        "block_bytes": 8192,
        "first_seen_at": NOW.isoformat(),
    }
    archive = WalArchive(store, SERVER, Generation(1, fields))
    histories = {
        1: TimelineHistory(1),
        2: TimelineHistory(2, (TimelineSwitch(1, Lsn(SWITCH)),)),
        4: TimelineHistory(4),  # no segment of it is archived
    }
    monkeypatch.setattr(WalArchive, "histories", lambda _: histories)
    found = {one.history.timeline: one for one in read_branches(archive)}
    assert {timeline: one.newest for timeline, one in found.items()} == {1: names[1], 2: names[3]}
    assert found[1].newest_start == 6 * SIZE
    assert found[1].born_at < found[2].born_at <= found[2].newest_at
