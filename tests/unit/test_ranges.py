"""Runs of segments along a path, and which backups they serve: pure values."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.model.lsn import Lsn
from pgrecall.model.ranges import Numbers, PathRuns, Placed, place_backups, runs_along
from pgrecall.model.timelines import TimelineHistory, TimelineSwitch
from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.replay import replay_path
from tests.unit.test_wal_archive import archive_of

SIZE = 16 << 20
ONE = TimelineHistory(1)
# Timeline 2 left 1 in the middle of segment 5.
TWO = TimelineHistory(2, (TimelineSwitch(1, Lsn(5 * SIZE + 100)),))
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def names(timeline: int, *numbers: int) -> list[str]:
    return [segment_name(timeline, number * SIZE, SIZE) for number in numbers]


def numbers(*found: int) -> Numbers:
    return np.array(found, np.uint64)


def shape(path: PathRuns) -> list[tuple[int, int]]:
    """Start and end of each run, in segments (rounded down) and bytes."""
    return [(run.start // SIZE, int(run.end)) for run in path.runs]


def backup(number: int, start: int, stop: int, timeline: int = 1, *, own: bool = False) -> Placed:
    at = NOW + timedelta(minutes=number)
    return Placed(f"b{number}", timeline, start, stop, at, at, own)


def ids(path: PathRuns) -> list[list[str]]:
    return [[one.backup_id for one in run.backups] for run in path.runs]


def test_gaps_part_runs() -> None:
    path = runs_along(ONE, SIZE, {1: numbers(2, 3, 5, 6, 9)}, {})
    assert shape(path) == [(2, 4 * SIZE), (5, 7 * SIZE), (9, 10 * SIZE)]
    assert [run.missing for run in path.runs] == names(1, 4, 7, 10)


def test_the_child_serves_the_segment_of_the_switch() -> None:
    present = {1: numbers(3, 4, 5, 6, 7, 8, 9), 2: numbers(5, 6, 7)}
    path = runs_along(TWO, SIZE, present, {})
    assert shape(path) == [(3, 8 * SIZE)]
    assert list(path.runs[0].names) == [*names(1, 3, 4), *names(2, 5, 6, 7)]


def test_a_parents_segment_ends_at_the_switch() -> None:
    path = runs_along(TWO, SIZE, {1: numbers(4, 5, 6), 2: numbers(6)}, {})
    assert shape(path) == [(4, 5 * SIZE + 100), (6, 7 * SIZE)]
    assert path.runs[0].missing == names(2, 5)[0]


def test_wal_that_ends_inside_a_segment_is_a_gap_when_more_follows() -> None:
    inside = {names(1, 3)[0]: Lsn(3 * SIZE + 8192)}
    path = runs_along(ONE, SIZE, {1: numbers(2, 3, 4)}, inside)
    assert shape(path) == [(2, 3 * SIZE + 8192), (4, 5 * SIZE)]
    assert [run.damaged for run in path.runs] == [*names(1, 3), ""]
    last = runs_along(ONE, SIZE, {1: numbers(2, 3)}, inside)
    assert shape(last) == [(2, 3 * SIZE + 8192)]
    assert last.runs[0].damaged == ""
    at_its_end = {names(1, 3)[0]: Lsn(4 * SIZE)}
    path = runs_along(ONE, SIZE, {1: numbers(2, 3, 4)}, at_its_end)
    assert shape(path) == [(2, 4 * SIZE), (4, 5 * SIZE)]


def test_backups_go_to_the_run_that_makes_them_consistent() -> None:
    path = runs_along(ONE, SIZE, {1: numbers(2, 3, 5, 6)}, {})
    place_backups(
        path,
        [
            backup(1, 2 * SIZE + 40, 3 * SIZE + 9),
            backup(2, 3 * SIZE + 40, 4 * SIZE),  # it ends with the last byte of the run
            backup(3, 3 * SIZE + 40, 4 * SIZE + 1),
            backup(4, 3 * SIZE + 40, 4 * SIZE + 1, own=True),  # bridges the gap by itself
            backup(5, 4 * SIZE + 40, 4 * SIZE + 99, own=True),
            backup(6, 6 * SIZE + 40, 6 * SIZE + 99),
            backup(7, 9 * SIZE + 40, 9 * SIZE + 99, own=True),
            backup(8, 9 * SIZE + 40, 9 * SIZE + 99),
            backup(9, 5 * SIZE, 5 * SIZE + 99, timeline=2),
        ],
    )
    assert ids(path) == [["b1", "b2"], ["b4", "b5", "b6"]]
    assert [one.backup_id for one in path.alone] == ["b7"]
    assert [(one.backup_id, missing) for one, missing in path.useless] == [
        ("b3", names(1, 4)[0]),
        ("b8", names(1, 9)[0]),
    ]


def test_backups_behind_the_switch_belong_to_another_path() -> None:
    path = runs_along(TWO, SIZE, {1: numbers(4, 5, 6), 2: numbers(5, 6)}, {})
    place_backups(path, [backup(1, 6 * SIZE, 6 * SIZE + 9), backup(2, 4 * SIZE, 5 * SIZE + 100)])
    assert ids(path) == [["b2"]]


def test_ten_thousand_backups_and_a_terabyte_take_no_walk_each() -> None:
    count = 65_536
    path = runs_along(ONE, SIZE, {1: numbers(*range(1, count))}, {})
    backups = [
        backup(number, (6 * number + 1) * SIZE, (6 * number + 2) * SIZE) for number in range(10_000)
    ]
    began = time.process_time()
    place_backups(path, backups)
    # Once through the list; a walk for each would take hours.
    assert time.process_time() - began < 20
    assert len(path.runs[0].backups) == 10_000


@settings(max_examples=200, deadline=None)
@given(
    st.sets(st.integers(1, 9)),
    st.sets(st.integers(3, 9)),
    st.integers(1, 9),
    st.booleans(),
)
def test_runs_end_where_restore_says(
    parent: set[int], child: set[int], start: int, is_second: bool
) -> None:
    """The end of a run is where a path that begins in it ends."""
    history = TWO if is_second else ONE
    behind_switch = sorted(child - {3, 4})
    present = {1: numbers(*sorted(parent)), 2: numbers(*behind_switch)}
    archive: WalArchive = archive_of(*names(1, *sorted(parent)), *names(2, *behind_switch))
    path = runs_along(history, SIZE, present, {})
    replayed = replay_path(archive, history, Lsn(start * SIZE + 17))
    run = next((one for one in path.runs if one.start <= start * SIZE < one.end), None)
    if run is None:
        assert replayed.names == []
        return
    behind = [name for name in run.names if WalFile(name).start(SIZE) >= start * SIZE]
    assert (replayed.names, replayed.end) == (behind, run.end)
    assert replayed.missing == run.missing
    if replayed.has_gap:
        assert run is not path.runs[-1]


@pytest.mark.parametrize("beyond", [9, 12])
def test_a_parent_that_went_on_for_longer_does_not_shorten_the_path(beyond: int) -> None:
    """After a restore to the past: the old timeline holds WAL far behind the new one's end."""
    present = [*names(1, *range(2, beyond)), *names(2, 5, 6)]
    path = replay_path(archive_of(*present), TWO, Lsn(3 * SIZE))
    assert path.names == [*names(1, 3, 4), *names(2, 5, 6)]
    assert path.end == 7 * SIZE
    assert path.missing == names(2, 7)[0]
    assert not path.has_gap
