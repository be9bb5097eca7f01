"""The picture of the ranges: a bar per timeline, gaps and backups where they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgrecall.app.recoverable_result import (
    BackupMark,
    ReachableRange,
    RecoverableResult,
    TimelinePath,
    WalGap,
)
from pgrecall.cli.range_picture import FINE, PLAIN, draw, show_recoverable, signs_for

BEGIN = datetime(2026, 11, 22, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return BEGIN + timedelta(minutes=minutes)


def reachable(begin: float, end: float, *backups: float, is_open: bool = False) -> ReachableRange:
    return ReachableRange(
        timeline=1,
        is_open=is_open,
        from_at=at(begin),
        to_at=at(end),
        from_lsn="0/1000000",
        to_lsn="0/2000000",
        end_lsn="0/2000000",
        newest_commit_at=at(end),
        consistent_at=at(begin),
        segments=(),
        backups=tuple(
            BackupMark(backup_id=f"b{minute}", stopped_at=at(minute), stop_lsn="0/1000000")
            for minute in backups
        ),
    )


def path(*ranges: ReachableRange, gaps: tuple[WalGap, ...] = (), timeline: int = 1) -> TimelinePath:
    return TimelinePath(
        timeline=timeline, path=str(timeline), is_default=True, ranges=ranges, gaps=gaps
    )


def gap(begin: float, end: float) -> WalGap:
    return WalGap(
        timeline=1,
        from_lsn="0/3000000",
        to_lsn="0/4000000",
        gap_bytes=1 << 24,
        segments=1,
        first_missing="000000010000000000000003",
        last_missing="000000010000000000000003",
        cause="missing",
        explanation="the segments are not in the archive",
        after_at=at(begin),
        before_at=at(end),
    )


def test_a_gap_in_the_middle() -> None:
    shown = path(reachable(0, 40, 0, 20), reachable(60, 100, 60, is_open=True), gaps=(gap(41, 59),))
    bar, marks, *rest = draw([shown], 66, PLAIN)
    assert bar.startswith("timeline 1   * ")
    drawn = bar[15:]
    assert drawn.endswith(">")
    assert drawn.rstrip(">").count(".") >= 8
    assert set(drawn) == {"=", ".", ">"}
    assert drawn.index(".") == pytest.approx(20, abs=1)
    assert [position for position, sign in enumerate(marks[15:]) if sign == "^"] == [0, 10, 30]
    assert "2026-11-22 00:00:00 UTC" in rest[0]
    assert "2026-11-22 01:40:00 UTC" in rest[0]


def test_a_gap_shorter_than_a_column_is_seen() -> None:
    shown = path(
        reachable(0, 500, 0), reachable(500.02, 1000, 500.02), gaps=(gap(500.001, 500.01),)
    )
    assert "." in draw([shown], 80, PLAIN)[0][15:]


def test_nothing_to_draw() -> None:
    assert draw([], 80, PLAIN) == []
    assert draw([path(reachable(1, 1, 1))], 80, PLAIN) == []


def test_plain_signs_where_fine_ones_cannot_be_written() -> None:
    assert signs_for("utf-8") is FINE
    assert signs_for("UTF-8") is FINE
    for encoding in ("ascii", "latin-1", "no-such-encoding", None):
        assert signs_for(encoding) is PLAIN


@pytest.mark.parametrize("columns", [10, 40, 80, 500])
def test_lines_keep_to_the_terminal(columns: int) -> None:
    shown = path(reachable(0, 100, 0, is_open=True))
    for line in draw([shown], columns, FINE):
        assert len(line) <= max(columns, 70)


def test_ten_thousand_backups_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    minutes = [number / 10 for number in range(10_000)]
    result = RecoverableResult(
        server="main",
        repository="one",
        looked_at=at(1001),
        newest_at=at(1000),
        newest_lsn="0/2000000",
        newest_timeline=1,
        generations=(),
    )
    bar, marks, *_ = draw([path(reachable(0, 1000, *minutes))], 80, PLAIN)
    assert len(bar) == len(marks) == 79
    show_recoverable(result)
    assert "newest moment  2026-11-22 16:40:00 UTC" in capsys.readouterr().out
