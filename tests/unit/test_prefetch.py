"""Fetching ahead: what is handed out, what never is, and what stays on the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.errors import AgentSilentError, DestinationError, IdentityError, StoreError
from pgrecall.model.wal_files import history_name, segment_name
from pgrecall.settings import AgentSettings, RestoreSettings
from pgrecall.wal import prefetch
from pgrecall.wal.delivery import write_verified
from pgrecall.wal.fetch import FetchResult
from pgrecall.wal.prefetch import Fetcher
from tests.support.pusher_scene import wait_until
from tests.support.wal_scene import SYSTEM, Scene, build_segments

HISTORY_2 = b"1\t0/3080000\tno recovery target specified\n"


class FetchScene(Scene):
    """A scene whose archive holds segments, and a fetcher."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.settings.agent = AgentSettings(directory=str(path / "agent"), prefetch_segments=4)
        self.cache = path / "agent" / "main" / "prefetch"
        self.fetcher = Fetcher(self.settings, self.server, {})
        self.target = self.pgdata / "pg_wal" / "RECOVERYXLOG"

    def store_segments(self, count: int) -> dict[str, bytes]:
        segments = build_segments(count)
        for name, content in segments.items():
            self.push_new(name, content)
            (self.pgdata / "pg_wal" / name).unlink()
        return segments

    def ask(self, name: str, pgdata: Path | None = None) -> FetchResult | None:
        return self.fetcher.fetch(name, "pg_wal/RECOVERYXLOG", str(pgdata or self.pgdata))

    def cached(self) -> list[str]:
        return sorted(path.name for path in self.cache.rglob("*") if path.is_file())

    def served(self) -> tuple[object, object]:
        facts = self.fetcher.facts()
        return facts["fetched_prefetched_total"], facts["fetched_direct_total"]

    def settle(self) -> None:
        wait_until(lambda: self.fetcher.facts()["prefetch_under_way"] == 0, "all is fetched")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[FetchScene]:
    scene = FetchScene(tmp_path)
    yield scene
    scene.fetcher.close()


def test_a_recovery_is_served_from_what_was_fetched_ahead(scene: FetchScene) -> None:
    segments = scene.store_segments(10)
    for name, content in segments.items():
        assert scene.ask(name) is not None
        assert scene.target.read_bytes() == content
        scene.settle()
        assert len(scene.cached()) <= 4
    assert scene.served() == (9, 1)
    assert scene.cached() == []
    following = segment_name(1, (3 + 10) << 20, 1 << 20)
    assert scene.ask(following) is None


def test_what_follows_a_segment_that_somebody_else_delivered(scene: FetchScene) -> None:
    first, second, third, *_ = scene.store_segments(8)
    scene.fetcher.begin(history_name(2), "one", str(scene.pgdata))
    scene.fetcher.begin(first, "one", str(scene.pgdata / "pg_wal"))  # no data directory
    assert scene.cached() == []
    scene.fetcher.begin(first, "one", str(scene.pgdata))
    scene.settle()
    assert len(scene.cached()) == 4
    assert scene.ask(third) is not None  # the one before was delivered by somebody else, too
    assert scene.served() == (1, 0)
    scene.settle()
    assert second not in scene.cached()


def test_a_delivered_file_is_shared_with_nobody(scene: FetchScene) -> None:
    """PostgreSQL recycles what it is given, and writes into it."""
    first, second = scene.store_segments(2)
    scene.ask(first)
    scene.settle()
    scene.ask(second)
    assert scene.target.stat().st_nlink == 1
    assert scene.cached() == []


def test_absence_is_never_remembered(scene: FetchScene) -> None:
    segments = build_segments(3)
    first, second, third = segments
    scene.push_new(first, segments[first])
    assert scene.ask(first) is not None
    scene.settle()
    assert scene.ask(second) is None
    scene.push_new(second, segments[second])
    assert scene.ask(second) is not None
    assert scene.target.read_bytes() == segments[second]
    scene.settle()
    scene.push_new(third, segments[third])
    assert scene.ask(third) is not None


def test_what_was_absent_is_fetched_ahead_when_it_has_come(scene: FetchScene) -> None:
    segments = build_segments(3)
    first, second, third = segments
    for name in (first, second):
        scene.push_new(name, segments[name])
    assert scene.ask(first) is not None
    scene.settle()
    scene.push_new(third, segments[third])
    assert scene.ask(second) is not None
    scene.settle()
    assert scene.ask(third) is not None
    assert scene.target.read_bytes() == segments[third]
    assert scene.served() == (2, 1)


@pytest.mark.parametrize("what", ["history", "timeline", "backwards"])
def test_another_question_drops_what_lies_ahead(scene: FetchScene, what: str) -> None:
    segments = list(scene.store_segments(6))
    scene.push_new(history_name(2), HISTORY_2)
    scene.ask(segments[1])
    scene.settle()
    assert scene.cached() == segments[2:6]
    asked = {
        "history": history_name(2),
        "timeline": "00000002" + segments[2][8:],
        "backwards": segments[0],
    }[what]
    scene.ask(asked)
    scene.settle()
    expected = segments[1:5] if what == "backwards" else []
    wait_until(lambda: scene.cached() == expected, "the rest is removed")


def test_the_caller_is_asked_who_he_is_each_time(scene: FetchScene) -> None:
    segments = list(scene.store_segments(4))
    scene.ask(segments[0])
    scene.settle()
    stranger = scene.make_pgdata("stranger", SYSTEM + 1)
    with pytest.raises(IdentityError):
        scene.ask(segments[1], stranger)
    assert not (stranger / "pg_wal" / "RECOVERYXLOG").exists()
    assert scene.ask(segments[1]) is not None
    assert scene.served() == (1, 1)


def test_what_is_still_being_written_is_waited_for(
    scene: FetchScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = scene.store_segments(3)
    first, second, _ = segments
    may_go, is_there = threading.Event(), threading.Event()

    def slowly(*arguments: object) -> int | None:
        size = write_verified(*arguments)  # type: ignore[arg-type]
        is_there.set()
        assert may_go.wait(30)
        return size

    monkeypatch.setattr(prefetch, "write_verified", slowly)
    scene.ask(first)
    assert is_there.wait(30)
    asking = threading.Thread(target=scene.ask, args=(second,))
    scene.target.unlink()
    asking.start()
    asking.join(0.2)
    assert asking.is_alive() and not scene.target.exists()
    may_go.set()
    asking.join(30)
    assert scene.target.read_bytes() == segments[second]
    assert scene.served() == (1, 1)


def test_what_failed_ahead_is_fetched_when_asked_for(
    scene: FetchScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = scene.store_segments(3)

    def fail(*arguments: object) -> int | None:
        raise StoreError("the store is away")

    monkeypatch.setattr(prefetch, "write_verified", fail)
    for name in (first, second, third):
        assert scene.ask(name) is not None
        scene.settle()
    assert scene.served() == (0, 3)


def test_a_damaged_segment_is_an_error_when_asked_for_and_never_handed_out(
    scene: FetchScene,
) -> None:
    first, second, _ = scene.store_segments(3)
    path = scene.object_path(second)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(damaged)
    scene.ask(first)
    scene.settle()
    scene.target.unlink()
    with pytest.raises(Exception, match="damaged"):
        scene.ask(second)
    assert not scene.target.exists()
    assert second not in scene.cached()


def test_leftovers_of_a_killed_agent_are_neither_used_nor_kept(scene: FetchScene) -> None:
    segments = scene.store_segments(3)
    first, second, _ = segments
    scene.ask(first)
    scene.settle()
    (place,) = {path.parent for path in scene.cache.rglob("0*") if path.is_file()}
    (place / second).write_bytes(b"half")
    (place / "leftover").write_bytes(b"of an earlier agent")
    after = Fetcher(scene.settings, scene.server, {})
    try:
        for name in (first, second):
            assert after.fetch(name, "pg_wal/RECOVERYXLOG", str(scene.pgdata)) is not None
            assert scene.target.read_bytes() == segments[name]
            assert "leftover" not in scene.cached()
    finally:
        after.close()
    assert scene.cached() == []


def test_a_destination_that_cannot_be_written_is_said(scene: FetchScene) -> None:
    first, second, _ = scene.store_segments(3)
    scene.ask(first)
    scene.settle()
    with pytest.raises(DestinationError):
        scene.fetcher.fetch(second, str(scene.pgdata / "absent" / "file"), str(scene.pgdata))
    assert second not in scene.cached()


def test_another_file_system_gets_a_copy(
    scene: FetchScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = scene.store_segments(2)
    first, second = segments
    rename = os.rename

    def refuse(source: str, target: str) -> None:
        if "prefetch" in source and "prefetch" not in target:
            raise OSError(18, "Invalid cross-device link")
        rename(source, target)

    scene.ask(first)
    scene.settle()
    monkeypatch.setattr(os, "rename", refuse)
    scene.ask(second)
    assert scene.target.read_bytes() == segments[second]
    assert scene.served() == (1, 1)
    assert scene.cached() == []


def test_zero_segments_ahead_is_no_prefetching(scene: FetchScene) -> None:
    segments = scene.store_segments(2)
    scene.settings.agent = scene.settings.agent.replace(prefetch_segments=0)
    scene.fetcher = Fetcher(scene.settings, scene.server, {})
    for name in segments:
        assert scene.ask(name) is not None
    assert scene.served() == (0, 2)
    assert not scene.cache.exists()


def test_who_is_to_keep_trying_does_so_himself(scene: FetchScene) -> None:
    (first,) = scene.store_segments(1)
    (scene.path / "one").rename(scene.path / "away")
    with pytest.raises(StoreError):
        scene.ask(first)
    scene.settings.restore = RestoreSettings(on_fetch_error="retry")
    with pytest.raises(AgentSilentError):
        scene.ask(first)
    (scene.pgdata / "standby.signal").touch()
    with pytest.raises(StoreError):
        scene.ask(first)


def test_the_last_room_on_the_disk_is_left_to_postgresql(
    scene: FetchScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = list(scene.store_segments(6))
    size = scene.segment_bytes
    for free, ahead in ((8 * size, 0), (10 * size + 1, 2), (100 * size, 4)):
        monkeypatch.setattr(prefetch, "free_bytes", lambda _, free=free: free)
        assert scene.ask(segments[0]) is not None
        scene.settle()
        assert scene.cached() == segments[1 : 1 + ahead]
