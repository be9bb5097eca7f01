"""Dropping WAL rather than fill the disk: only when told to, only then, and never in silence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pgrecall.errors import StoreAbsentError, StoreError, WalConflictError
from pgrecall.model.wal_files import WalFile, history_name
from pgrecall.repository.gaps import DROPPED, read_gaps
from pgrecall.wal.push import CREATED
from pgrecall.wal.push import DROPPED as IS_DROPPED
from tests.support.pusher_scene import PusherScene, at_work, wait_until
from tests.support.wal_scene import build_segments

MIB = 1 << 20
HISTORY_2 = b"1\t0/3080000\tno recovery target specified\n"


@pytest.fixture
def scene(tmp_path: Path) -> PusherScene:
    return PusherScene(tmp_path)


def away(scene: PusherScene) -> None:
    (scene.path / "one").rename(scene.path / "away")


def back(scene: PusherScene) -> None:
    (scene.path / "away").rename(scene.path / "one")


def test_without_the_setting_nothing_is_dropped(scene: PusherScene) -> None:
    first, *_ = scene.make_ready(5)
    away(scene)
    pusher = scene.pusher()
    for _ in range(2):
        with pytest.raises(StoreAbsentError):
            pusher.push(f"pg_wal/{first}", str(scene.pgdata))


def test_above_the_bound_the_oldest_go_and_the_gap_is_recorded(scene: PusherScene) -> None:
    segments = list(scene.make_ready(6))
    away(scene)
    pusher = scene.pusher(drop_wal_above_bytes=4 * MIB)
    for name in segments[:2]:
        result = pusher.push(f"pg_wal/{name}", str(scene.pgdata))
        assert (result.outcome, result.name) == (IS_DROPPED, name)
        assert "DROPPED" in result.warnings[0] and "does not exist" in result.warnings[0]
        note = json.loads((scene.state / "gaps" / f"{name}.json").read_text())
        assert note["timeline"] == 1
        (scene.status / f"{name}.ready").rename(scene.status / f"{name}.done")
    with pytest.raises(StoreError):  # 4 MiB wait now, not more
        pusher.push(f"pg_wal/{segments[2]}", str(scene.pgdata))
    facts = pusher.facts()
    assert (facts["dropped_total"], facts["dropped_unrecorded"]) == (2, 2)
    back(scene)
    with at_work(pusher):
        wait_until(lambda: pusher.facts()["dropped_unrecorded"] == 0, "the gaps are recorded")
        wait_until(lambda: pusher.facts()["lag_segments"] == 0, "the rest is archived")
    gaps = read_gaps(scene.store(), "main", 1)
    starts = [WalFile(name).start(MIB) for name in segments[:2]]
    assert [(gap.timeline, gap.start, gap.cause) for gap in gaps] == [
        (1, start, DROPPED) for start in starts
    ]
    assert "does not exist" in gaps[0].detail
    assert os.listdir(scene.state / "gaps") == []
    assert [scene.is_stored(name) for name in segments] == [False, False, True, True, True, True]


def test_notes_of_an_agent_that_was_killed_are_recorded_by_the_next(scene: PusherScene) -> None:
    segments = list(scene.make_ready(3))
    away(scene)
    scene.pusher(drop_wal_above_bytes=1).push(f"pg_wal/{segments[0]}", str(scene.pgdata))
    (scene.status / f"{segments[0]}.ready").unlink()
    back(scene)
    later = scene.pusher(drop_wal_above_bytes=0)
    with at_work(later):
        wait_until(lambda: read_gaps(scene.store(), "main", 1), "the gap is recorded")
    assert not scene.is_stored(segments[0])


def test_a_refusal_is_no_emergency(scene: PusherScene) -> None:
    first, *_ = segments = list(scene.make_ready(3))
    other = scene.make_pgdata("other")
    scene.push(scene.write(first, build_segments(1, salt=1)[first], other))
    pusher = scene.pusher(drop_wal_above_bytes=1)
    with pytest.raises(WalConflictError):
        pusher.push(f"pg_wal/{first}", str(scene.pgdata))
    assert pusher.push(f"pg_wal/{segments[1]}", str(scene.pgdata)).outcome == CREATED


def test_history_files_are_never_dropped(scene: PusherScene) -> None:
    scene.make_ready(3)
    name = history_name(2)
    scene.write(name, HISTORY_2)
    away(scene)
    pusher = scene.pusher(drop_wal_above_bytes=1)
    for _ in range(2):
        with pytest.raises(StoreAbsentError):
            pusher.push(f"pg_wal/{name}", str(scene.pgdata))


def test_a_gap_that_cannot_be_noted_is_not_made(scene: PusherScene) -> None:
    first, *_ = scene.make_ready(3)
    away(scene)
    (scene.path / "agent").write_text("in the way of the directory")
    pusher = scene.pusher(drop_wal_above_bytes=1)
    with pytest.raises(StoreError, match="state"):
        pusher.push(f"pg_wal/{first}", str(scene.pgdata))
