"""The pusher: what it stores ahead, what it answers, and what it never does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pgrecall.errors import (
    IdentityError,
    NotOwnerError,
    RepositoryError,
    SettingsError,
    WalConflictError,
)
from pgrecall.model.wal_files import history_name
from pgrecall.postgres.ahead_place import AHEAD_DIRECTORY, take
from pgrecall.repository.identity import add_owner
from pgrecall.settings import AgentSettings, RepositorySettings
from pgrecall.store.memory import MemoryStore
from pgrecall.wal.push import ALREADY_STORED, CREATED, PushResult
from pgrecall.wal.pusher import Pusher
from pgrecall.wal.ready import FileIdentity
from pgrecall.wal.storing import Storing
from tests.support.pusher_scene import DEADLINE_SECONDS, PusherScene, at_work, wait_until
from tests.support.wal_scene import NOW, SYSTEM, build_segments

HISTORY_2 = b"1\t0/3080000\tno recovery target specified\n"


@pytest.fixture
def scene(tmp_path: Path) -> PusherScene:
    return PusherScene(tmp_path)


def test_what_is_ready_is_stored_ahead_and_answered_at_once(
    scene: PusherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = scene.make_ready(6)
    pusher = scene.pusher()
    with at_work(pusher):
        wait_until(lambda: pusher.facts()["pushed_total"] == 6, "all are pushed")
        for name, content in segments.items():
            assert scene.fetched(name) == content
        facts = pusher.facts()
        assert (facts["lag_segments"], facts["lag_bytes"], facts["failing"]) == (0, 0, False)
        monkeypatch.setattr(Storing, "store", None)
        for name in segments:
            result = pusher.push(f"pg_wal/{name}", str(scene.pgdata))
            assert (result.name, result.outcome) == (name, CREATED)


def test_what_a_killed_fetch_ahead_left_is_removed(scene: PusherScene) -> None:
    lock = take(str(scene.pgdata))
    assert lock is not None
    os.close(lock)
    place = scene.pgdata / AHEAD_DIRECTORY
    (place / "segments").mkdir()
    with at_work(scene.pusher()):
        wait_until(lambda: not place.exists(), "it is gone")


def test_a_file_that_was_written_anew_is_not_taken_for_the_one_that_was_pushed(
    scene: PusherScene,
) -> None:
    ((name, content),) = scene.make_ready(1).items()
    pusher = scene.pusher()
    path = scene.pgdata / "pg_wal" / name
    assert pusher.push(str(path), str(scene.pgdata)).outcome == CREATED
    os.utime(path, ns=(1, 1))
    assert pusher.push(str(path), str(scene.pgdata)).outcome == ALREADY_STORED
    ((_, other),) = build_segments(1, salt=1).items()
    path.write_bytes(other)
    with pytest.raises(WalConflictError):
        pusher.push(str(path), str(scene.pgdata))
    assert scene.fetched(name) == content


def test_history_files_go_first_and_segments_in_order(
    scene: PusherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = scene.make_ready(8)
    scene.write(history_name(2), HISTORY_2)
    (scene.status / f"{history_name(2)}.ready").touch()
    (scene.status / "nonsense.ready").touch()
    stored: list[str] = []
    pusher = scene.pusher(push_workers=4)
    finish = Pusher._finish

    def note(self: Pusher, job: object, *rest: object, **more: object) -> None:
        stored.append(job.name)  # type: ignore[attr-defined]
        finish(self, job, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Pusher, "_finish", note)
    with at_work(pusher):
        wait_until(lambda: pusher.facts()["pushed_total"] == 9, "all are pushed")
    assert stored == [history_name(2), *segments]


def test_a_conflict_stops_everything_behind_it(scene: PusherScene) -> None:
    """What a server that diverged wrote later must not come into the archive either."""
    segments = list(scene.make_ready(6))
    (_, _, third, *_) = segments
    other = build_segments(3, salt=1)[third]
    production = scene.make_pgdata("production")
    scene.push(scene.write(third, other, production))
    pusher = scene.pusher(push_workers=4)
    with at_work(pusher):
        wait_until(lambda: int(pusher.facts()["failures_total"] or 0) > 1, "it is tried again")
    assert [name for name in segments if scene.is_stored(name)] == segments[:3]
    facts = pusher.facts()
    assert (facts["failure_code"], facts["failure_file"]) == ("wal-conflict", third)
    assert facts["oldest_unarchived"] == third
    assert facts["lag_segments"] == 4
    with pytest.raises(WalConflictError):
        pusher.push(f"pg_wal/{third}", str(scene.pgdata))


def test_a_takeover_stops_pushes(scene: PusherScene, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = scene.make_ready(2)
    pusher = scene.pusher()
    pusher.push(f"pg_wal/{first}", str(scene.pgdata))
    add_owner(scene.store(), "main", restore_id="copy", timeline=2, now=NOW)
    monkeypatch.setattr("pgrecall.wal.open_targets.PROOF_SECONDS", 0.0)
    with pytest.raises(NotOwnerError):
        pusher.push(f"pg_wal/{second}", str(scene.pgdata))
    assert not scene.is_stored(second)


def test_a_copy_that_asks_is_judged_by_its_own_identity(scene: PusherScene) -> None:
    ((name, content),) = scene.make_ready(1).items()
    copy = scene.make_pgdata("copy")
    scene.mark_copy(copy, "restored")
    scene.write(name, content, copy)
    pusher = scene.pusher()
    with pytest.raises(NotOwnerError):
        pusher.push(f"pg_wal/{name}", str(copy))
    stranger = scene.make_pgdata("stranger", SYSTEM + 1)
    scene.write(name, build_segments(1, system=SYSTEM + 1)[name], stranger)
    with pytest.raises(IdentityError):
        pusher.push(f"pg_wal/{name}", str(stranger))
    assert not scene.is_stored(name)


def test_a_repository_that_was_made_anew_gets_everything_again(scene: PusherScene) -> None:
    first, second = scene.make_ready(2)
    pusher = scene.pusher()
    pusher.push(f"pg_wal/{first}", str(scene.pgdata))
    (scene.path / "one").rename(scene.path / "old")
    scene.make_repository("one")
    with pytest.raises(RepositoryError, match="another repository"):
        pusher.push(f"pg_wal/{first}", str(scene.pgdata))
    assert not scene.is_stored(first)
    assert pusher.push(f"pg_wal/{first}", str(scene.pgdata)).outcome == CREATED
    assert pusher.push(f"pg_wal/{second}", str(scene.pgdata)).outcome == CREATED
    assert scene.fetched(first) and scene.fetched(second)


def test_many_callers_at_once_store_each_file_once(scene: PusherScene) -> None:
    segments = scene.make_ready(4)
    pusher = scene.pusher()
    outcomes: list[str] = []

    def call(name: str) -> None:
        outcomes.append(pusher.push(f"pg_wal/{name}", str(scene.pgdata)).outcome)

    threads = [threading.Thread(target=call, args=(name,)) for name in segments for _ in range(4)]
    with at_work(pusher):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes == [CREATED] * 16
    assert pusher.facts()["pushed_total"] == 4


def test_without_a_required_repository_nothing_begins(tmp_path: Path) -> None:
    scene = PusherScene(tmp_path, roles=("best-effort",))
    scene.settings.agent = AgentSettings(directory=str(tmp_path / "agent"))
    with pytest.raises(SettingsError, match="required"):
        scene.pusher()


def test_on_object_stores_the_first_goes_alone(
    scene: PusherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There puts overlap; a server that diverged must not get anything in before it is noticed."""
    segments = scene.make_ready(6)
    memory = MemoryStore()
    for info in scene.store().list(""):
        memory.put(info.key, [scene.store().read(info.key)])
    memory.reads_whole = True
    repository = RepositorySettings(name="one", store="s3", bucket="b", retries=0)
    scene.settings.repositories["one"] = repository
    monkeypatch.setattr("pgrecall.wal.archives.open_store", lambda *given, **more: memory)
    first = next(iter(segments))
    other = scene.make_pgdata("other")
    scene.push(scene.write(first, build_segments(1, salt=1)[first], other))
    pusher = scene.pusher(push_workers=4)
    with at_work(pusher):
        wait_until(lambda: int(pusher.facts()["failures_total"] or 0) > 1, "it is tried again")
    assert [info.key[-24:] for info in memory.list("servers/main/wal/")] == [first]
    (key,) = [info.key for info in memory.list("servers/main/wal/")]
    memory.delete(key)
    with at_work(scene.pusher()):
        wait_until(lambda: len(list(memory.list("servers/main/wal/"))) == 6, "all are stored")


@pytest.mark.parametrize("signal", ["standby.signal", "recovery.signal"])
def test_a_server_that_recovers_pushes_nothing_that_is_ready(
    scene: PusherScene, signal: str
) -> None:
    (name,) = scene.make_ready(1)
    (scene.pgdata / signal).touch()
    pusher = scene.pusher()
    with at_work(pusher):
        wait_until(lambda: pusher.facts()["lag_segments"] == 1, "it was seen")
        # archive_mode = always: PostgreSQL asks, and it is pushed.
        assert pusher.facts()["pushed_total"] == 0
        assert pusher.push(f"pg_wal/{name}", str(scene.pgdata)).outcome == CREATED


@pytest.mark.parametrize("is_archived", [True, False])
def test_what_postgresql_archived_and_recycled_meanwhile_is_no_failure(
    scene: PusherScene, monkeypatch: pytest.MonkeyPatch, is_archived: bool
) -> None:
    (name,) = scene.make_ready(1)
    pusher = scene.pusher()
    store = pusher._storing.store
    begun = threading.Event()

    def gone(path: str, identity: FileIdentity, turn: Callable[[], None]) -> PushResult:
        """The file goes between the look and the work; PostgreSQL's marker goes if it is done."""
        if not begun.is_set():
            if is_archived:
                (scene.status / f"{name}.ready").unlink()
            Path(path).unlink()
            try:
                return store(path, identity, turn)
            finally:
                begun.set()
        return store(path, identity, turn)

    monkeypatch.setattr(pusher._storing, "store", gone)
    with at_work(pusher):
        assert begun.wait(DEADLINE_SECONDS)
        wait_until(lambda: not pusher._working, "the job is over")
    assert (pusher.facts()["failures_total"] == 0) == is_archived
