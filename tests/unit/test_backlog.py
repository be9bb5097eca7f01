"""What is said about a backlog: how much, how old, how fast, how long there is room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgrecall.errors import IdentityError, StoreError
from pgrecall.model.wal_files import segment_name
from pgrecall.wal import backlog as backlog_module
from pgrecall.wal.backlog import Backlog

MIB = 1 << 20


class Clock:
    """Stands in for the module time in backlog.py."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_000_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backlog_module, "time", clock)
    return clock


@pytest.fixture
def backlog(tmp_path: Path) -> Backlog:
    (tmp_path / "pg_wal" / "archive_status").mkdir(parents=True)
    return Backlog(str(tmp_path))


def names(first: int, count: int, timeline: int = 1) -> list[str]:
    return [segment_name(timeline, number * MIB, MIB) for number in range(first, first + count)]


def test_before_the_first_look_nothing_is_known(backlog: Backlog, clock: Clock) -> None:
    facts = backlog.facts()
    assert (facts["lag_segments"], facts["lag_bytes"], facts["lag_seconds"]) == (None, None, None)
    backlog.look([], [], MIB)
    facts = backlog.facts()
    assert (facts["lag_segments"], facts["lag_bytes"], facts["lag_seconds"]) == (0, 0, 0.0)
    assert facts["oldest_unarchived"] is None


def test_what_waits_is_counted_and_its_age_told(
    backlog: Backlog, clock: Clock, tmp_path: Path
) -> None:
    waiting = names(3, 4)
    ready = tmp_path / "pg_wal" / "archive_status" / f"{waiting[0]}.ready"
    ready.touch()
    os.utime(ready, (clock.time() - 90, clock.time() - 90))
    backlog.look(["00000002.history", *waiting], waiting, MIB)
    facts = backlog.facts()
    assert (facts["lag_segments"], facts["lag_bytes"]) == (4, 4 * MIB)
    assert (facts["oldest_unarchived"], facts["lag_seconds"]) == (waiting[0], 90.0)
    backlog.stored(waiting[0], MIB)
    facts = backlog.facts()
    assert (facts["lag_segments"], facts["oldest_unarchived"]) == (3, waiting[1])
    assert (facts["pushed_total"], facts["pushed_bytes_total"]) == (1, MIB)


def test_the_age_grows_although_the_clock_was_set_back(
    backlog: Backlog, clock: Clock, tmp_path: Path
) -> None:
    """An alarm on the lag must not sleep for the hour by which the clock went back."""
    waiting = names(3, 2)
    for name in waiting:
        ready = tmp_path / "pg_wal" / "archive_status" / f"{name}.ready"
        ready.touch()
        os.utime(ready, (clock.time() + 3600, clock.time() + 3600))
    backlog.look(waiting, waiting, MIB)
    assert backlog.facts()["lag_seconds"] == 0.0
    clock.now += 120
    backlog.look(waiting, waiting, MIB)
    assert backlog.facts()["lag_seconds"] == 120.0


def test_room_is_estimated_from_the_growth_of_the_last_minute(
    backlog: Backlog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog_module, "_free_bytes", lambda directory: 600 * MIB)
    backlog.look([], names(3, 1), MIB)
    assert backlog.facts()["pg_wal_full_in_seconds"] is None
    for second in range(1, 31):
        clock.now += 1
        backlog.look([], names(3, 1 + 2 * second), MIB)
    facts = backlog.facts()
    assert facts["wal_bytes_per_second"] == 2 * MIB
    assert facts["pg_wal_full_in_seconds"] == 300.0
    # PostgreSQL was answered: what was ready is gone, so pg_wal does not fill.
    for _ in range(61):
        clock.now += 1
        backlog.look([], [], MIB)
    assert backlog.facts()["pg_wal_full_in_seconds"] is None


def test_a_failure_is_told_until_it_is_over(backlog: Backlog, clock: Clock) -> None:
    backlog.failed("x", StoreError("away"))
    clock.now += 10
    backlog.failed("y", StoreError("still away"))
    facts = backlog.facts()
    assert (facts["failing"], facts["failures_total"], facts["failure_file"]) == (True, 2, "y")
    assert facts["failure_message"] == "still away"
    assert backlog.store_failure(1.0) is not None
    clock.now += 2
    assert backlog.store_failure(1.0) is None
    backlog.failed("y", IdentityError("not ours"))
    assert backlog.store_failure(1.0) is None
    backlog.stored("y", 1)
    facts = backlog.facts()
    assert (facts["failing"], facts["failing_since"], facts["failures_total"]) == (False, None, 3)
