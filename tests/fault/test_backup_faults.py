"""Backups that are killed, ended, cut off, or given a store that fails: what is left afterwards."""

from __future__ import annotations

import re
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgrecall
from pgrecall.app import opened
from pgrecall.errors import (
    BackupError,
    InterruptedRunError,
    PgrecallError,
    PostgresUnreachableError,
    StoreError,
    StoreFullError,
)
from pgrecall.model.manifest import Completion
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.store.base import Store
from pgrecall.store.faulty import Fault, FaultyStore, Kind
from pgrecall.store.memory import MemoryStore
from tests.support.backup_scene import (
    BackupScene,
    Hooks,
    open_descriptors,
    our_threads,
    shared_scene,
)
from tests.support.postgresql import Installation, ServerFactory, Templates

MAIN = (
    "backup.started",
    "backup.scanned",
    "backup.copied",
    "backup.stopped",
    "backup.packs-stored",
    "backup.wal-archived",
    "backup.manifest",
    "backup.manifest-stored",
    "backup.completed",
)
WORKERS = ("backup.copy", "pack.commit")
LEAVE_OBJECTS = (
    "backup.packs-stored",
    "backup.wal-archived",
    "backup.manifest",
    "backup.manifest-stored",
)


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(pg_templates, installations[18], tmp_path_factory, autovacuum="off") as scene:
        scene.server.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        yield scene


def assert_next_backup_works(scene: BackupScene) -> None:
    backup = scene.taken()
    assert backup.backup_id in scene.ids()
    files = scene.read_files(backup)
    assert len(files) == backup.totals.files
    kept = scene.server.value("SELECT pg_relation_filepath('kept')")
    assert files[kept.encode()] == (scene.server.pgdata / kept).read_bytes()


def test_the_points_are_all_there() -> None:
    source = Path(pgrecall.__file__).parent
    found = {
        point
        for path in (*source.glob("backup/*.py"), source / "repository" / "pack_sink.py")
        for point in re.findall(r'reached\("([^"]+)"\)', path.read_text())
    }
    assert found == {*MAIN, *WORKERS}


@pytest.mark.parametrize("point", [*MAIN, *WORKERS, "backup.copy:2"])
def test_killed(scene: BackupScene, point: str) -> None:
    """The server aborts the backup by itself, the list is as before, the next one works."""
    before = scene.ids()
    process = scene.start("backup", "--yes", kill=point)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    scene.assert_server_is_clean()
    after = scene.ids()
    assert after[: len(before)] == before
    assert len(after) == len(before) + (point == "backup.completed")
    left = unfinished(scene)
    assert len(left) <= 1
    assert left or point not in LEAVE_OBJECTS
    for backup_id in after[len(before) :]:
        scene.read_files(scene.completion(backup_id))
    assert_next_backup_works(scene)
    tidy(scene)


def tidy(scene: BackupScene) -> None:
    """Remove what a kill has left, for the tests that are to leave nothing."""
    for leftover in list(scene.store.leftovers()):
        scene.store.remove_leftover(leftover)
    for backup_id in unfinished(scene):
        for info in list(scene.store.list(layout.backup_prefix(scene.name, backup_id))):
            scene.store.delete(info.key)


def test_restored_after_kills(
    scene: BackupScene, pg_factory: ServerFactory, tmp_path: Path
) -> None:
    """What killed runs have left harms neither the next backup nor the server made from it."""
    for point in ("pack.commit", "backup.manifest-stored", "backup.completed"):
        process = scene.start("backup", "--yes", kill=point)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    backups = [scene.completion(scene.ids()[-1]), scene.taken()]
    tidy(scene)
    for number, backup in enumerate(backups):
        copy = pg_factory.adopt(scene.restored(backup, tmp_path / f"copy{number}", "--immediate"))
        copy.start()
        assert copy.value("SELECT count(*) FROM kept") == 1000
        copy.stop()
    tidy(scene)


@pytest.mark.parametrize(
    "point", ["backup.started", "backup.copy", "pack.commit", "backup.stopped"]
)
def test_ended_by_a_signal(scene: BackupScene, point: str) -> None:
    before = scene.ids()
    process = scene.start("backup", "--with-wal", "--yes", pause=point)
    pause = scene.wait_paused(point, process)
    process.send_signal(signal.SIGTERM)
    if point in WORKERS:
        # The thread that waits there is none that a signal ends.
        with pytest.raises(TimeoutError):
            wait_for_exit(process.poll, 0.3)
        pause.unlink()
    _, errors = process.communicate(timeout=20)
    pause.unlink(missing_ok=True)
    assert process.returncode == InterruptedRunError.exit_status, errors
    assert "ended by SIGTERM" in errors
    assert scene.ids() == before
    assert unfinished(scene) == ()
    assert scene.temporary_files() == []
    scene.assert_server_is_clean()


def test_a_signal_while_the_last_pack_is_committed(scene: BackupScene) -> None:
    """The run's own thread waits for that then, and goes on to wait after the signal."""
    scene.taken()
    before = scene.ids()
    process = scene.start("backup", "--yes", pause="pack.commit")
    pause = scene.wait_paused("pack.commit", process)
    with pytest.raises(TimeoutError):
        wait_for_exit(process.poll, 0.5)  # until nothing is left to do but that commit
    process.send_signal(signal.SIGTERM)
    with pytest.raises(TimeoutError):
        wait_for_exit(process.poll, 0.5)
    pause.unlink()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == InterruptedRunError.exit_status, errors
    assert scene.ids() == before
    assert unfinished(scene) == ()
    assert scene.temporary_files() == []


def unfinished(scene: BackupScene) -> tuple[str, ...]:
    """Ids of directories that hold objects and no completion record."""
    catalog = Catalog(scene.store, scene.name)
    return tuple(one.backup_id for one in catalog.unfinished())


def wait_for_exit(poll: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while callable(poll) and poll() is None:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def test_ended_while_the_server_makes_its_checkpoint(scene: BackupScene) -> None:
    """A spread checkpoint takes minutes; the answer to a signal must not."""
    server = scene.server
    server.sql("CREATE TABLE dirty AS SELECT repeat('d', 3000) FROM generate_series(1, 3000)")
    process = scene.start("backup", "--checkpoint", "spread", "--yes")
    server.wait_until(
        lambda: server.sql(
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_backup_start%'"
            " AND state = 'active' AND pid <> pg_backend_pid()"
        ),
        "the checkpoint is waited for",
    )
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == InterruptedRunError.exit_status, errors
    server.sql("CHECKPOINT; DROP TABLE dirty")
    scene.assert_server_is_clean()


@pytest.mark.parametrize("point", ["backup.scanned", "backup.copy", "backup.stopped"])
def test_the_session_is_lost(scene: BackupScene, point: str) -> None:
    before = scene.ids()
    process = scene.start("backup", "--yes", pause=point)
    pause = scene.wait_paused(point, process)
    ended = scene.server.value(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name = 'pgrecall backup'"
    )
    assert ended == 1
    pause.unlink()
    _, errors = process.communicate(timeout=30)
    if point == "backup.stopped":
        # The backup was over by then; whether the loss is noticed depends on the archive's pace.
        assert process.returncode in {0, PostgresUnreachableError.exit_status}, errors
    else:
        assert process.returncode == PostgresUnreachableError.exit_status, errors
        assert scene.ids() == before
        assert "was lost" in errors
    assert scene.temporary_files() == []
    scene.assert_server_is_clean()


def test_the_server_goes_down(scene: BackupScene) -> None:
    before = scene.ids()
    process = scene.start("backup", "--yes", pause="backup.copy")
    pause = scene.wait_paused("backup.copy", process)
    scene.server.stop("immediate")
    pause.unlink()
    _, errors = process.communicate(timeout=30)
    scene.server.start()
    assert process.returncode == PostgresUnreachableError.exit_status, errors
    assert scene.ids() == before
    assert scene.temporary_files() == []
    assert_next_backup_works(scene)


def test_a_run_that_fails_leaves_no_thread_and_no_descriptor(scene: BackupScene) -> None:
    def fail() -> None:
        raise BackupError("ended by the test")

    scene.taken()
    before = open_descriptors()
    for phase in ("start", "scan", "copy", "stop", "manifest"):
        with pytest.raises(BackupError, match="ended by the test"):
            scene.backup(progress=Hooks({phase: fail}))
        assert our_threads() == []
    with pytest.raises(BackupError, match="ended by the test"):
        scene.backup(progress=Hooks(advance=lambda done_bytes: fail()))
    assert our_threads() == []
    assert open_descriptors() <= before
    assert unfinished(scene) == ()
    assert scene.temporary_files() == []
    scene.assert_server_is_clean()


# --- the store --------------------------------------------------------------------------


def faulty(
    scene: BackupScene, monkeypatch: pytest.MonkeyPatch, plan: list[Fault], *, in_memory: bool
) -> FaultyStore:
    """Let the application open a store that fails; its content is that of the repository."""
    inner: Store = scene.store
    if in_memory:
        memory = MemoryStore(pack_bytes=1 << 20)
        for info in scene.store.list(""):
            if "/backups/" not in info.key and "/wal/" not in info.key:
                memory.put(info.key, [scene.store.read(info.key)])
        inner = memory
    store = FaultyStore(inner, plan)
    monkeypatch.setattr(opened, "open_store", lambda settings, environment: store)
    return store


def take(scene: BackupScene) -> Completion | None:
    try:
        return scene.taken(workers=1)
    except PgrecallError:
        return None


@pytest.mark.parametrize(
    ("kind", "in_memory"),
    [
        *((kind, True) for kind in ("before", "after", "torn", "lie")),
        *(
            pytest.param(kind, False, marks=pytest.mark.slow)
            for kind in ("before", "after", "torn", "lie")
        ),
    ],
)
def test_each_call_fails_in_turn(
    scene: BackupScene, monkeypatch: pytest.MonkeyPatch, kind: Kind, in_memory: bool
) -> None:
    """A backup that is reported exists and is whole; one that is not leaves nothing that lists."""
    quiet = faulty(scene, monkeypatch, [], in_memory=in_memory)
    reference = take(scene)
    assert reference is not None
    calls = len(quiet.calls)
    assert calls > 12
    chosen = []
    for number, (method, _) in enumerate(quiet.calls, 1):
        is_change = method in {"put", "commit", "write"}
        if kind == "lie" and not is_change:
            continue  # a lie about a question is the fault "corrupt", which digests answer
        if method != "write" or number % 11 == 0:  # frames are many and alike
            chosen.append(number)
    for number in chosen:
        fault = Fault(kind, at=number)
        store = faulty(scene, monkeypatch, [fault], in_memory=in_memory)
        inner = store._inner
        before = Catalog(inner, scene.name).survey()[0]
        backup = take(scene)
        where = (kind, number, store.calls[number - 1 : number])
        complete, findings = Catalog(inner, scene.name).survey()
        new = [found for found in complete if found not in before]
        if backup is not None:
            assert new == [backup], where
            assert findings == [], where
        for found in new:
            # Also one whose completion was stored, and the answer lost.
            assert len(scene.read_files(found, inner)) == found.totals.files, where
            if backup is None:
                # Behind the call that failed nothing but the lease is given back.
                last = [call for call in store.calls if "/leases/" not in call[1]][-1]
                assert (kind, last) in {
                    ("after", ("put", key_of(scene, found))),
                    ("after", ("read", key_of(scene, found))),
                    ("before", ("read", key_of(scene, found))),
                    ("torn", ("read", key_of(scene, found))),
                }, where
        assert our_threads() == [], where
        if not in_memory:
            assert scene.temporary_files() == [], where
            for info in list(inner.list("servers/main/backups/")):
                if reference.backup_id not in info.key:
                    inner.delete(info.key)
    scene.assert_server_is_clean()


def key_of(scene: BackupScene, backup: Completion) -> str:
    return f"servers/{scene.name}/backups/{backup.backup_id}/complete.json"


@pytest.mark.parametrize("method", ["writer", "write", "commit", "put"])
def test_a_store_that_goes_away(
    scene: BackupScene, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    fault = Fault("before", method=method, is_lasting=True, error=lambda: StoreError("an outage"))
    faulty(scene, monkeypatch, [fault], in_memory=False)
    before = scene.ids()
    with pytest.raises(StoreError, match="an outage"):
        scene.backup()
    assert fault.reached.is_set()
    assert scene.ids() == before
    assert unfinished(scene) == ()
    assert scene.temporary_files() == []
    scene.assert_server_is_clean()


def test_a_full_store(scene: BackupScene) -> None:
    """Files may grow to 1 MiB: what a full disk says, said by the kernel."""
    before = scene.ids()
    limit = (1 << 20, 1 << 20)
    errors = scene.run(
        "backup",
        "--full",
        "--yes",
        status=StoreFullError.exit_status,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert "/pack-000" in errors  # of whichever worker was first
    assert scene.ids() == before
    assert scene.temporary_files() == []
    scene.assert_server_is_clean()
    assert_next_backup_works(scene)
