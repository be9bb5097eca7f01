"""A backup that goes on from an interrupted one, over a store that fails or is full meanwhile."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from pgrecall.app import opened
from pgrecall.backup import leftover, run
from pgrecall.backup.leftover import LARGE_BYTES
from pgrecall.errors import BackupError, StoreError, StoreFullError
from pgrecall.model.manifest import Completion
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.store.base import Store
from pgrecall.store.faulty import Fault, FaultyStore, Kind
from tests.support.backup_scene import BackupScene, Hooks, our_threads, shared_scene
from tests.support.postgresql import Installation, Templates

# 12 MiB that do not compress.
FILL = """
CREATE TABLE noise AS SELECT i AS id,
 (SELECT string_agg(sha512((i || '/' || j)::bytea), ''::bytea) FROM generate_series(1, 30) j) AS b
 FROM generate_series(1, 6000) i
"""


@pytest.fixture(scope="module")
def broken_off(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    """A server whose only backup was broken off when everything was copied."""
    with shared_scene(pg_templates, installations[18], tmp_path_factory, autovacuum="off") as scene:
        scene.config.write_text(
            scene.config.read_text().replace(
                'store = "local"', f'store = "local"\npack_bytes = {LARGE_BYTES}'
            )
        )
        scene.server.sql(FILL)
        scene.server.sql("VACUUM FREEZE noise")  # sets all hint bits
        with pytest.MonkeyPatch.context() as patch:
            keep_few(patch)
            break_off(scene)
        yield scene


@pytest.fixture
def scene(broken_off: BackupScene, monkeypatch: pytest.MonkeyPatch) -> Iterator[BackupScene]:
    """Without what the tests before have added to it."""
    keep_few(monkeypatch)
    before = backup_objects(broken_off)
    yield broken_off
    for key in backup_objects(broken_off) - before:
        broken_off.store.delete(key)
    assert backup_objects(broken_off) == before


def keep_few(patch: pytest.MonkeyPatch) -> None:
    """Three large packs are enough to be kept, and to be gone on from."""
    patch.setattr(run, "KEPT_PACKS", 3)
    patch.setattr(leftover, "RESUMED_PACKS", 3)


def backup_objects(scene: BackupScene) -> set[str]:
    return {info.key for info in scene.store.list(layout.backups_prefix(scene.name))}


def break_off(scene: BackupScene) -> None:
    def fail() -> None:
        raise BackupError("the network is away")

    with pytest.raises(BackupError, match="network"):
        take(scene, Hooks({"stop": fail}))


def take(scene: BackupScene, progress: Hooks | None = None) -> Completion:
    return scene.taken(workers=1, with_wal=False, progress=progress)


def unfinished(scene: BackupScene) -> list[str]:
    catalog = Catalog(scene.store, scene.name)
    complete = {one.backup_id for one in catalog.complete()}
    return [one for one in catalog.ids() if one not in complete]


def faulty(scene: BackupScene, patch: pytest.MonkeyPatch, *plan: Fault) -> FaultyStore:
    store = FaultyStore(scene.store, plan)
    patch.setattr(opened, "open_store", lambda settings, environment: store)
    return store


def assert_whole(scene: BackupScene, backup: Completion, store: Store | None = None) -> None:
    files = scene.read_files(backup, store)
    assert len(files) == backup.totals.files
    noise = scene.server.value("SELECT pg_relation_filepath('noise')")
    assert files[noise.encode()] == (scene.server.pgdata / noise).read_bytes()


def read_calls(scene: BackupScene, store: FaultyStore) -> dict[str, list[int]]:
    """The numbers of the calls that touched what was left, by method."""
    (left,) = unfinished(scene)
    found: dict[str, list[int]] = {}
    for number, (method, key) in enumerate(store.calls, 1):
        if f"/{left}/" in key and "/pack-" in key:
            found.setdefault(method, []).append(number)
    return found


@pytest.mark.parametrize("kind", ["before", "after", "corrupt"])
def test_a_read_of_what_was_left_fails(
    scene: BackupScene, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """Then it is stored anew: the backup does not depend on it."""
    (left,) = unfinished(scene)
    quiet = faulty(scene, monkeypatch)
    backup = take(scene)
    assert backup.references == (left,)
    calls = read_calls(scene, quiet)
    assert set(calls) >= {"reader", "reader.read"}
    forget(scene, backup)
    reads = calls["reader.read"]
    chosen = {reads[0], reads[len(reads) // 2], reads[-1]}
    if kind != "corrupt":
        chosen |= {calls["reader"][0], calls["reader"][-1]}
    for number in sorted(chosen):
        fault = Fault(kind, at=number)
        faulty(scene, monkeypatch, fault)
        backup = take(scene)
        assert fault.reached.is_set()
        assert_whole(scene, backup)
        assert our_threads() == []
        forget(scene, backup)
    scene.assert_server_is_clean()


def forget(scene: BackupScene, backup: Completion) -> None:
    for info in list(scene.store.list(layout.backup_prefix(scene.name, backup.backup_id))):
        scene.store.delete(info.key)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_outage_while_it_is_read(
    scene: BackupScene, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Wherever it begins: the run fails, what was left stays, and the next run goes on from it."""
    (left,) = unfinished(scene)
    quiet = faulty(scene, monkeypatch)
    forget(scene, take(scene))
    reads = sorted(number for numbers in read_calls(scene, quiet).values() for number in numbers)
    at = reads[round(share * (len(reads) - 1))]
    before = backup_objects(scene)
    fault = Fault("before", at=at, is_lasting=True, error=lambda: StoreError("an outage"))
    faulty(scene, monkeypatch, fault)
    with pytest.raises(StoreError, match="an outage"):
        take(scene)
    assert our_threads() == []
    scene.assert_server_is_clean()
    monkeypatch.undo()
    keep_few(monkeypatch)
    assert backup_objects(scene) >= before
    backup = take(scene)
    assert left in backup.references
    assert_whole(scene, backup)


def test_a_full_disk(scene: BackupScene) -> None:
    """Files may grow to 1 MiB: what a full disk says, said by the kernel. What was left stays."""
    (left,) = unfinished(scene)
    before = backup_objects(scene)
    scene.server.sql("CREATE TABLE more AS SELECT id, b FROM noise WHERE id <= 2000; CHECKPOINT")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(StoreFullError, match="/pack-000"):
            take(scene)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert backup_objects(scene) == before
    assert scene.temporary_files() == []
    scene.assert_server_is_clean()
    backup = take(scene)
    assert backup.references == (left,)
    assert_whole(scene, backup)
    scene.run("verify", "all", "--full")
    scene.server.sql("DROP TABLE more")


def test_what_several_interrupted_runs_have_stored_is_all_gone_on_from(
    scene: BackupScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run that breaks off has stored the rest only: the first one's packs count on."""
    (first,) = unfinished(scene)
    scene.server.sql("CREATE TABLE more AS SELECT id, b FROM noise; CHECKPOINT")
    break_off(scene)
    second = unfinished(scene)[-1]
    assert second != first
    backup = take(scene)
    assert set(backup.references) == {first, second}
    assert backup.totals.new_bytes < 4 * LARGE_BYTES
    assert_whole(scene, backup)
    scene.run("verify", "all", "--full")
    scene.server.sql("DROP TABLE more")
