"""Streamed backups that are killed, cut off or given a server that goes: nothing stays behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.app.backing_up import run_backup
from pgrecall.app.requests import BackupRequest
from pgrecall.errors import (
    BackupError,
    InterruptedRunError,
    PostgresUnreachableError,
    StoreError,
)
from pgrecall.repository.catalog import Catalog
from pgrecall.store.faulty import Fault, Kind
from tests.fault.test_backup_faults import faulty
from tests.support.backup_scene import (
    BackupScene,
    Hooks,
    open_descriptors,
    our_threads,
    shared_scene,
)
from tests.support.postgresql import Installation, Templates

POINTS = (
    "backup.started",
    "backup.copy",
    "pack.commit",
    "backup.copied",
    "backup.stopped",
    "backup.packs-stored",
    "backup.manifest-stored",
    "backup.completed",
)
WORDS = ("backup", "--source", "stream", "--with-wal", "--full", "--workers", "1", "--yes")


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(pg_templates, installations[18], tmp_path_factory, autovacuum="off") as scene:
        scene.server.sql(
            "CREATE TABLE kept AS SELECT repeat('k', 900) FROM generate_series(1, 40000)"
        )
        yield scene


def unfinished(scene: BackupScene) -> int:
    return len(list(Catalog(scene.store, scene.name).unfinished()))


def streamed(scene: BackupScene, progress: Hooks | None = None) -> str:
    request = BackupRequest(with_wal=True, full=True, source="stream")
    backup = run_backup(scene.context(progress), request).backup
    assert backup is not None
    return backup.backup_id


@pytest.mark.parametrize("point", POINTS)
def test_killed(scene: BackupScene, point: str) -> None:
    """The server ends backup and slot with the session; the list is as before."""
    before = scene.ids()
    process = scene.start(*WORDS, kill=point)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    scene.assert_server_is_clean()
    after = scene.ids()
    assert len(after) == len(before) + (point == "backup.completed")
    assert after[: len(before)] == before
    for leftover in list(scene.store.leftovers()):
        scene.store.remove_leftover(leftover)


@pytest.mark.parametrize("how", ["walsender", "watch", "server", "signal"])
def test_cut_off_in_the_middle(scene: BackupScene, how: str) -> None:
    """A session that is ended, a server that stops, a signal: the run fails and leaves nothing."""
    before, left = scene.ids(), unfinished(scene)
    process = scene.start(*WORDS, pause="backup.copy")
    pause = scene.wait_paused("backup.copy", process)
    expected: int = PostgresUnreachableError.exit_status
    if how == "server":
        scene.server.stop("immediate")
    elif how == "signal":
        process.send_signal(signal.SIGTERM)
        expected = InterruptedRunError.exit_status
    else:
        kind = "=" if how == "walsender" else "<>"
        ended = scene.server.value(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            f" WHERE application_name LIKE 'pgrecall%' AND backend_type {kind} 'walsender'"
        )
        assert ended == 1
    pause.unlink()
    _, errors = process.communicate(timeout=60)
    if how == "server":
        scene.server.start()
    assert process.returncode == expected, errors
    assert scene.ids() == before
    assert unfinished(scene) == left
    assert scene.temporary_files() == []
    scene.assert_server_is_clean()


@pytest.mark.parametrize("kind", ["before", "torn"])
def test_a_store_that_fails(
    scene: BackupScene, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """Whatever cannot be stored, there is no backup, and the server holds nothing."""
    quiet = faulty(scene, monkeypatch, [], in_memory=True)
    streamed(scene)
    puts = [key for method, key in quiet.calls if method == "put"]
    stored = [number for number, key in enumerate(puts, 1) if "/backups/" in key]
    assert len(stored) > 3
    for method, number in (("commit", 1), ("put", stored[0]), ("put", stored[-1])):
        fault = Fault(kind, at=number, method=method)
        store = faulty(scene, monkeypatch, [fault], in_memory=True)
        with pytest.raises(StoreError):
            streamed(scene)
        assert Catalog(store._inner, scene.name).survey()[0] == [], (method, number)
        assert our_threads() == []
    scene.assert_server_is_clean()


def test_what_fails_here_leaves_no_thread_and_no_descriptor(scene: BackupScene) -> None:
    def fail() -> None:
        raise BackupError("ended by the test")

    good = streamed(scene)
    before, left = open_descriptors(), unfinished(scene)
    for phase in ("start", "copy", "manifest"):
        with pytest.raises(BackupError, match="ended by the test"):
            streamed(scene, Hooks({phase: fail}))
        assert our_threads() == []
    with pytest.raises(BackupError, match="ended by the test"):
        streamed(scene, Hooks(advance=lambda done_bytes: fail()))
    assert our_threads() == []
    assert open_descriptors() <= before
    assert unfinished(scene) == left
    assert scene.temporary_files() == []
    scene.assert_server_is_clean()
    kept = Path(str(scene.server.value("SELECT pg_relation_filepath('kept')")))
    files = scene.read_files(scene.completion(good))
    assert files[str(kept).encode()] == (scene.server.pgdata / kept).read_bytes()
