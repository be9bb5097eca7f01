"""Best-effort repositories: what they miss is noted, paid later, and delays nobody."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pgrecall.errors import StoreError
from pgrecall.store.base import Store
from pgrecall.store.opening import open_store
from pgrecall.wal import debts as debts_module
from pgrecall.wal.debts import Debts
from pgrecall.wal.pusher import Pusher
from tests.support.pusher_scene import PusherScene, at_work, wait_until


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PusherScene:
    monkeypatch.setattr(debts_module, "_LONGEST_PAUSE_SECONDS", 0.5)
    return PusherScene(tmp_path, roles=("required", "best-effort"))


def away(scene: PusherScene) -> None:
    (scene.path / "two").rename(scene.path / "away")


def back(scene: PusherScene) -> None:
    (scene.path / "away").rename(scene.path / "two")


def owed(scene: PusherScene) -> list[str]:
    return sorted(path.name for path in (scene.state / "owed").rglob("*") if path.is_file())


def test_what_was_missed_is_paid_when_postgresql_has_recycled_it(scene: PusherScene) -> None:
    segments = scene.make_ready(5)
    first, *rest = segments
    pusher = scene.pusher()
    pusher.push(f"pg_wal/{first}", str(scene.pgdata))
    assert scene.is_stored(first, "two")
    away(scene)
    with at_work(pusher):
        wait_until(lambda: pusher.facts()["pushed_total"] == 5, "the required one has all")
        results = [pusher.push(f"pg_wal/{name}", str(scene.pgdata)) for name in rest]
        assert all("two" in result.warnings[0] for result in results)
        assert owed(scene) == rest
        facts = pusher.facts()
        assert (facts["owed_files"], facts["owed_repositories"]) == (4, "two")
        assert "does not exist" in str(facts["owed_cause"])
        for name in segments:
            (scene.status / f"{name}.ready").unlink()
            (scene.pgdata / "pg_wal" / name).unlink()
        back(scene)
        wait_until(lambda: pusher.facts()["owed_files"] == 0, "the debts are paid")
    assert owed(scene) == []
    assert pusher.facts()["owed_paid_total"] == 4
    (scene.path / "one").rename(scene.path / "gone")
    scene.settings.repositories.pop("one")
    for name, content in segments.items():
        assert scene.fetched(name) == content
        index = scene.archive("two").index(name)
        assert index.start_lsn == scene.archive("two").index(name).start_lsn


def test_debts_outlive_the_agent(scene: PusherScene) -> None:
    segments = list(scene.make_ready(2))
    away(scene)
    pusher = scene.pusher()
    for name in segments:
        pusher.push(f"pg_wal/{name}", str(scene.pgdata))
    back(scene)
    later = Pusher(scene.settings, scene.server, {}, pgdata=str(scene.pgdata))
    assert later.facts()["owed_files"] == 2
    with at_work(later):
        wait_until(lambda: later.facts()["owed_files"] == 0, "the debts are paid")
    assert all(scene.is_stored(name, "two") for name in segments)


def test_a_repository_that_hangs_is_asked_once(
    scene: PusherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = list(scene.make_ready(4))
    calls = []
    opened = scene.settings.repositories["two"].path

    class Hanging:
        def __init__(self, inner: Store) -> None:
            self._inner = inner
            self.name = inner.name
            self.reads_whole = inner.reads_whole

        def __getattr__(self, name: str) -> object:
            calls.append(name)
            raise StoreError(f"{self.name} does not answer")

    real = open_store
    monkeypatch.setattr(
        "pgrecall.wal.archives.open_store",
        lambda settings, *rest, **more: (
            Hanging(real(settings, *rest, **more))
            if settings.path == opened
            else real(settings, *rest, **more)
        ),
    )
    pusher = scene.pusher()
    for name in segments:
        result = pusher.push(f"pg_wal/{name}", str(scene.pgdata))
        assert "does not answer" in result.warnings[0]
    assert len(calls) <= 2
    assert owed(scene) == segments


def test_a_debt_that_cannot_be_noted_keeps_nobody_from_archiving(
    scene: PusherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debts_module, "_LOOK_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(debts_module, "_FIRST_PAUSE_SECONDS", 3.0)
    monkeypatch.setattr(debts_module, "_LONGEST_PAUSE_SECONDS", 3.0)
    (name,) = scene.make_ready(1)
    pusher = scene.pusher()
    away(scene)
    in_the_way = scene.path / "agent"
    in_the_way.write_text("in the way of the directory")
    result = pusher.push(f"pg_wal/{name}", str(scene.pgdata))
    assert "not noted durably" in result.warnings[0]
    assert scene.is_stored(name)
    assert (pusher.facts()["owed_files"], pusher.facts()["owed_unnoted"]) == (1, 1)
    with at_work(pusher):
        in_the_way.unlink()
        wait_until(lambda: owed(scene) == [name], "the debt is noted after all")
        back(scene)
        wait_until(lambda: pusher.facts()["owed_files"] == 0, "the debt is paid")
    assert owed(scene) == []
    assert scene.is_stored(name, "two")


def test_what_is_nowhere_any_more_is_owed_no_longer(scene: PusherScene) -> None:
    (name,) = scene.make_ready(1)
    away(scene)
    pusher = scene.pusher()
    pusher.push(f"pg_wal/{name}", str(scene.pgdata))
    back(scene)
    scene.object_path(name).unlink()
    debts = Debts(scene.settings, scene.server, {}, str(scene.pgdata))
    stop = threading.Event()
    thread = threading.Thread(target=debts.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: debts.facts()["owed_files"] == 0, "the debt is given up")
    finally:
        stop.set()
        thread.join()
    assert not scene.is_stored(name, "two")


def test_what_is_pushed_without_the_agent_is_owed_to_it(scene: PusherScene) -> None:
    first, second = scene.make_ready(2)
    away(scene)
    alone = scene.push(scene.pgdata / "pg_wal" / first)
    assert "paid" not in alone.warnings[0]  # no agent has ever run here
    scene.state.mkdir(parents=True)
    assert "paid later" in scene.push(scene.pgdata / "pg_wal" / second).warnings[0]
    assert owed(scene) == [second]
    back(scene)
    pusher = scene.pusher()
    with at_work(pusher):
        wait_until(lambda: scene.is_stored(second, "two"), "the debt is paid")


def test_a_running_agent_learns_of_debts_that_others_noted(
    scene: PusherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debts_module, "_LOOK_AGAIN_SECONDS", 0.1)
    (name,) = scene.make_ready(1)
    debts = Debts(scene.settings, scene.server, {}, str(scene.pgdata))
    scene.state.mkdir(parents=True)
    away(scene)
    scene.push(scene.pgdata / "pg_wal" / name)
    back(scene)
    stop = threading.Event()
    thread = threading.Thread(target=debts.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: scene.is_stored(name, "two"), "the debt is paid")
    finally:
        stop.set()
        thread.join()
