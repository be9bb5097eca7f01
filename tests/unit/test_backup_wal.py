"""The WAL that a backup needs: which segments, and the wait for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.backup.wal import add_wal_files, await_segments, needed_segments
from pgrecall.errors import (
    ArchiveTimeoutError,
    StoreError,
    WalMissingError,
)
from pgrecall.model.file_table import FILE, FileTable
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.actions import ArchiverFacts

SEGMENT = 1 << 24


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
