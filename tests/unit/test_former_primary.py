"""A primary whose timeline was left: what is refused, what is not, and what may go on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgrecall.errors import (
    FormerPrimaryError,
    StoreError,
    WalConflictError,
)
from pgrecall.model.forks import Fork, end_of_wal, first_passed, forks_of
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory, TimelineSwitch
from pgrecall.model.wal_files import SEGMENT, WalFile, history_name
from pgrecall.model.wal_index import STOPPED_AT_END, STOPPED_AT_INVALID, STOPPED_AT_SWITCH, WalIndex
from pgrecall.postgres.control import STATES, parse_control
from pgrecall.repository import layout
from pgrecall.repository.branches import (
    record_branch,
)
from pgrecall.store.local import LocalStore
from pgrecall.wal.push import ALREADY_STORED, CREATED
from tests.support.pusher_scene import PusherScene
from tests.support.wal_scene import NOW, Scene, build_segments
from tests.unit.test_control import build

MIB = 1 << 20
AT = Lsn(3 * MIB + 512 * 1024)
"""In the middle of the first segment that build_segments makes."""
PRODUCTION = STATES.index("in production")


def history(timeline: int, *switches: tuple[int, int]) -> TimelineHistory:
    return TimelineHistory(timeline, tuple(TimelineSwitch(*each) for each in switches))


def index(end: int, stopped_at: str) -> WalIndex:
    found = WalIndex(3 * MIB, MIB, 1)
    found.end_lsn, found.stopped_at = Lsn(end), stopped_at
    return found


# --- the decision ---------------------------------------------------------------


def test_a_fork_is_found_once_whoever_tells_of_it() -> None:
    histories = [
        history(1),
        history(2, (1, AT)),
        history(3, (1, AT), (2, AT + 100)),
        history(4, (1, AT - 8)),
        history(6, (5, 1)),
    ]
    assert forks_of(histories, 1) == [Fork(1, 4, Lsn(AT - 8)), Fork(1, 2, AT)]
    assert forks_of(histories, 2) == [Fork(2, 3, Lsn(AT + 100))]
    assert forks_of(histories, 3) == []
    # Timeline 2 left 1 also where only its child's history is archived.
    assert forks_of([histories[2]], 1) == [Fork(1, 2, AT)]


@pytest.mark.parametrize(
    ("end", "stopped_at", "is_passed"),
    [
        (AT, STOPPED_AT_SWITCH, False),  # the switchover: its last record ends at the fork
        (AT, STOPPED_AT_INVALID, False),
        (AT + 8, STOPPED_AT_INVALID, True),
        (AT + 8, STOPPED_AT_SWITCH, True),
        (AT - 8, STOPPED_AT_END, True),  # a record begins before the fork and goes on behind it
        (3 * MIB, STOPPED_AT_INVALID, False),
    ],
)
def test_only_wal_beyond_the_fork_counts(end: int, stopped_at: str, is_passed: bool) -> None:
    found = first_passed([Fork(1, 2, AT)], index(end, stopped_at), [])
    assert (found is not None) == is_passed


def test_a_fork_at_the_very_end_of_the_segment_is_not_passed() -> None:
    whole = index(4 * MIB - 8, STOPPED_AT_END)
    assert end_of_wal(whole) == 4 * MIB
    assert first_passed([Fork(1, 2, Lsn(4 * MIB))], whole, []) is None


def test_what_is_allowed_is_that_fork_and_no_other() -> None:
    forks = [Fork(1, 2, AT), Fork(1, 4, Lsn(AT + 8))]
    whole = index(4 * MIB, STOPPED_AT_END)
    assert first_passed(reversed(forks), whole, []) == forks[0]
    assert first_passed(forks, whole, [forks[0]]) == forks[1]
    assert first_passed(forks, whole, [Fork(1, 2, Lsn(AT + 8))]) == forks[0]
    assert first_passed(forks, whole, forks) is None


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("in production", 1),
        ("in crash recovery", 1),
        ("shutting down", 1),
        ("shut down", 1),
        ("in archive recovery", None),
        ("shut down in recovery", None),
    ],
)
def test_the_timeline_that_a_server_writes(state: str, expected: int | None) -> None:
    control = parse_control(build(at_16=STATES.index(state), at_48=1, at_144=0))
    assert control.primary_timeline == expected


def test_a_promotion_counts_before_its_first_checkpoint() -> None:
    assert parse_control(build(at_16=PRODUCTION, at_48=1, at_144=2)).primary_timeline == 2


# --- pushing ----------------------------------------------------------------------


def set_control(
    scene: Scene, pgdata: Path, timeline: int, state: str = "in production", recovered: int = 0
) -> None:
    content = build(
        at_0=7_000_000_000_000_000_001,
        at_16=STATES.index(state),
        at_48=timeline,
        at_144=recovered,
        at_228=scene.segment_bytes,
    )
    (pgdata / "global" / "pg_control").write_bytes(content)


def promote_another(scene: Scene, timeline: int = 2, left: str = f"1\t{AT}\tno target\n") -> None:
    """What a standby that was promoted archives: its history."""
    pgdata = scene.path / f"promoted-{timeline}"
    if not pgdata.exists():
        scene.make_pgdata(pgdata.name)
    set_control(scene, pgdata, timeline)
    scene.push(scene.write(history_name(timeline), left.encode(), pgdata))


@pytest.fixture
def scene(tmp_path: Path) -> PusherScene:
    scene = PusherScene(tmp_path)
    set_control(scene, scene.pgdata, 1)
    return scene


def pushed_by_command(scene: PusherScene) -> Callable[[Path], str]:
    return lambda path: scene.push(path).outcome


def pushed_by_agent(scene: PusherScene) -> Callable[[Path], str]:
    pusher = scene.pusher()
    return lambda path: pusher.push(str(path), str(path.parent.parent)).outcome


both_ways = pytest.mark.parametrize("way", [pushed_by_command, pushed_by_agent])
Way = Callable[[PusherScene], Callable[[Path], str]]


@both_ways
def test_a_former_primary_is_refused_and_nothing_is_stored(scene: PusherScene, way: Way) -> None:
    promote_another(scene)
    push = way(scene)
    before = sorted(info.key for info in scene.store().list(""))
    for name, content in build_segments(2).items():
        with pytest.raises(FormerPrimaryError) as caught:
            push(scene.write(name, content))
        for told in (name, "timeline 2 left timeline 1", str(AT), "Nothing was stored"):
            assert told in caught.value.message
        assert datetime.now(UTC).strftime("archived at %Y-") in caught.value.message
        assert "wal allow-branch 1" in caught.value.hint
    assert sorted(info.key for info in scene.store().list("")) == before


@both_ways
def test_what_is_stored_already_stays_success(scene: PusherScene, way: Way) -> None:
    first, second = build_segments(2).items()
    push = way(scene)
    assert push(scene.write(*first)) == CREATED
    promote_another(scene)
    assert way(scene)(scene.write(*first)) == ALREADY_STORED
    with pytest.raises(FormerPrimaryError):
        way(scene)(scene.write(*second))
    # Other content under the name is what it was: a conflict.
    with pytest.raises(WalConflictError):
        way(scene)(scene.write(first[0], build_segments(1, salt=1)[first[0]]))


@both_ways
@pytest.mark.parametrize(
    ("timeline", "state", "recovered"),
    [
        (2, "in production", 0),  # promoted later: what is left of the old timeline
        (1, "in production", 2),  # the same, before its first checkpoint
        (1, "in archive recovery", 1),  # a standby, or a copy: received
        (1, "shut down in recovery", 1),
    ],
)
def test_others_than_a_primary_of_that_timeline_are_not_judged(
    scene: PusherScene, way: Way, timeline: int, state: str, recovered: int
) -> None:
    promote_another(scene)
    set_control(scene, scene.pgdata, timeline, state, recovered)
    push = way(scene)
    for name, content in build_segments(2).items():
        assert push(scene.write(name, content)) == CREATED


@both_ways
def test_the_end_of_a_switchover_and_partial_files_are_not_refused(
    scene: PusherScene, way: Way
) -> None:
    promote_another(scene, left=f"1\t{Lsn(4 * MIB + 40)}\tno target\n")
    first, second = build_segments(2).items()
    push = way(scene)
    assert push(scene.write(*first)) == CREATED
    assert push(scene.write(f"{second[0]}.partial", second[1])) == CREATED
    with pytest.raises(FormerPrimaryError):
        push(scene.write(*second))


@both_ways
def test_the_operator_lets_one_branch_go_on_until_the_next_promotion(
    scene: PusherScene, way: Way
) -> None:
    promote_another(scene)
    first, second = build_segments(2).items()
    with pytest.raises(FormerPrimaryError):
        way(scene)(scene.write(*first))
    record_branch(scene.store(), "main", 1, Fork(1, 2, AT), ("", NOW))
    assert way(scene)(scene.write(*first)) == CREATED
    promote_another(scene, 3, f"1\t{AT}\n2\t{Lsn(AT + 8)}\n")  # of timeline 2: the same fork
    assert way(scene)(scene.write(*first)) == ALREADY_STORED
    promote_another(scene, 4, f"1\t{Lsn(4 * MIB + 8)}\n")
    with pytest.raises(FormerPrimaryError, match="timeline 4 left timeline 1"):
        way(scene)(scene.write(*second))


def test_the_agent_sees_a_promotion_when_it_proves_the_owner(
    scene: PusherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = build_segments(3).items()
    pusher = scene.pusher()
    pusher.push(str(scene.write(*first)), str(scene.pgdata))
    promote_another(scene)
    monkeypatch.setattr("pgrecall.wal.open_targets.PROOF_SECONDS", 0.0)
    with pytest.raises(FormerPrimaryError):
        pusher.push(str(scene.write(*second)), str(scene.pgdata))
    assert pusher.facts()["failure_code"] == "former-primary"
    record_branch(scene.store(), "main", 1, Fork(1, 2, AT), ("", NOW))
    pusher.push(str(scene.write(*second)), str(scene.pgdata))
    record_branch(scene.store(), "main", 1, Fork(1, 2, AT), ("", NOW), is_allowed=False)
    with pytest.raises(FormerPrimaryError):
        pusher.push(str(scene.write(*third)), str(scene.pgdata))


def test_no_required_repository_takes_what_another_refuses(tmp_path: Path) -> None:
    scene = PusherScene(tmp_path, roles=("required", "required", "best-effort"))
    set_control(scene, scene.pgdata, 1)
    promote_another(scene)
    # The new primary has not reached the first one yet.
    scene.object_path(history_name(2), "one").unlink()
    scene.object_path(history_name(2), "one").parent.rmdir()
    ((name, content),) = build_segments(1).items()
    for way in (pushed_by_command, pushed_by_agent):
        with pytest.raises(FormerPrimaryError):
            way(scene)(scene.write(name, content))
    for repository in ("one", "two", "three"):
        assert not scene.object_path(name, repository).exists()


def test_a_listing_that_fails_is_no_empty_one(
    scene: PusherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = LocalStore.children

    def failing(store: LocalStore, prefix: str) -> object:
        if prefix == layout.wal_prefix("main", 1):
            raise StoreError("no listing today")
        return children(store, prefix)

    monkeypatch.setattr(LocalStore, "children", failing)
    ((name, content),) = build_segments(1).items()
    for way in (pushed_by_command, pushed_by_agent):
        with pytest.raises(StoreError, match="no listing today"):
            way(scene)(scene.write(name, content))
    assert not scene.object_path(name).exists()


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prefixes that were listed, but those that were listed before there were forks."""
    listed: list[str] = []
    children = LocalStore.children

    def noted(store: LocalStore, prefix: str) -> object:
        if "/owners/" not in prefix and "/generations/" not in prefix:
            listed.append(prefix)
        return children(store, prefix)

    monkeypatch.setattr(LocalStore, "children", noted)
    return listed


def test_a_push_asks_one_listing_more_and_only_where_it_matters(
    scene: PusherScene, listings: list[str]
) -> None:
    first, second = build_segments(2).items()
    scene.push(scene.write(*first))
    assert listings == [layout.wal_prefix("main", 1)]
    listings.clear()
    scene.push(scene.write(f"{second[0]}.partial", second[1]))
    promote_another(scene)
    set_control(scene, scene.pgdata, 1, "in archive recovery", 1)
    scene.push(scene.write(*second))
    assert listings == []


def test_the_agent_asks_no_listing_for_each_segment(
    scene: PusherScene, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgrecall.wal.open_targets.PROOF_SECONDS", 3600.0)
    pusher = scene.pusher()
    for name, content in build_segments(5).items():
        pusher.push(str(scene.write(name, content)), str(scene.pgdata))
        assert WalFile(name).kind == SEGMENT
    assert listings == [layout.wal_prefix("main", 1)]
