"""A backup goes on from what an interrupted one has stored, and believes none of it unseen."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from pgrecall.app.backing_up import run_backup
from pgrecall.app.requests import BackupRequest
from pgrecall.backup.leftover import KEPT_PACKS, LARGE_BYTES, RESUMED_PACKS
from pgrecall.errors import BackupError
from pgrecall.model.manifest import Completion
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from tests.support.backup_scene import BackupScene, Hooks, started
from tests.support.postgresql import ServerFactory

MEBIBYTE = 1 << 20
# 24 MiB that do not compress: more large packs than it takes to go on from them.
FILL = """
CREATE TABLE noise AS SELECT i AS id,
 (SELECT string_agg(sha512((i || '/' || j)::bytea), ''::bytea) FROM generate_series(1, 30) j) AS b
 FROM generate_series(1, 12000) i
"""


@pytest.fixture
def scene(factory: ServerFactory, tmp_path: Path) -> BackupScene:
    scene = BackupScene(tmp_path, factory(autovacuum="off"))
    scene.archive()
    scene.config.write_text(
        scene.config.read_text().replace(
            'store = "local"', f'store = "local"\npack_bytes = {LARGE_BYTES}'
        )
    )
    scene.server.sql(FILL)
    scene.server.sql("VACUUM noise")  # which sets the hint bits
    return scene


def packs_of(scene: BackupScene, backup_id: str) -> list[Path]:
    prefix = layout.pack_prefix("main", backup_id)
    return [scene.repository / info.key for info in scene.store.list(prefix)]


def unfinished(scene: BackupScene) -> str:
    """The id of the one backup that was begun and is not complete."""
    (found,) = set(Catalog(scene.store, "main").ids()) - set(scene.ids())
    return found


def fail() -> None:
    raise BackupError("the network is away")


def broken_off(scene: BackupScene, *, full: bool = True) -> str:
    """A backup that fails when everything was copied; its id."""
    with pytest.raises(BackupError, match="network"):
        scene.taken(full=full, with_wal=False, progress=Hooks({"stop": fail}))
    return unfinished(scene)


def assert_whole(scene: BackupScene, backup: Completion) -> None:
    """What it says is what the server has: everything that a full backup now would hold."""
    ours = scene.read_files(backup)
    later = scene.read_files(scene.taken(with_wal=False, full=True))
    assert set(ours) == set(later)
    assert {path for path in ours if ours[path] != later[path]} <= {b"global/pg_control"}


def test_a_backup_goes_on_from_a_killed_one(
    scene: BackupScene, factory: ServerFactory, tmp_path: Path
) -> None:
    process = scene.start("backup", "--yes", kill="backup.copied")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    left = unfinished(scene)
    stored = packs_of(scene, left)
    assert len(stored) >= RESUMED_PACKS
    scene.server.sql("UPDATE noise SET id = id + 1 WHERE id <= 1000")
    scene.server.sql("CHECKPOINT")
    planned = json.loads(scene.run("backup", "--dry-run", "--json"))["plan"]["reasons"]
    assert [one for one in planned if left in one and f"{len(stored)} packs" in one]
    hooks = Hooks()
    backup = scene.taken(with_wal=False, progress=hooks)
    # Everything is read before the server holds a backup open.
    assert hooks.seen.index("unfinished") < hooks.seen.index("start")
    assert backup.kind == "full"
    assert backup.references == (left,)
    assert backup.totals.new_bytes < backup.totals.raw_bytes / 2
    # It is nobody's garbage now, and everything that reads backups can read it.
    assert Catalog(scene.store, "main").unfinished() == []
    scene.run("verify", "all", "--full")
    target = scene.restored(backup, tmp_path / "restored", "--immediate")
    started(factory, target)
    assert_whole(scene, backup)


def test_a_backup_goes_on_from_one_that_failed(scene: BackupScene) -> None:
    """What a run that fails leaves is kept; an incremental one refers to it as well."""
    base = scene.taken(with_wal=False)
    scene.server.sql("UPDATE noise SET id = id + 1")
    scene.server.sql("CHECKPOINT")
    left = broken_off(scene, full=False)
    backup = scene.taken(with_wal=False, full=False)
    assert backup.kind == "incremental"
    assert backup.references == (base.backup_id, left)
    assert backup.totals.new_bytes < 8 * MEBIBYTE
    assert_whole(scene, backup)
    # What is older than a complete backup is not gone on from any more.
    assert left not in scene.taken(with_wal=False).references


def test_a_local_backup_goes_on_from_a_stream_that_broke_off(scene: BackupScene) -> None:
    request = BackupRequest(with_wal=True, full=True, source="stream")
    with pytest.raises(BackupError, match="network"):
        run_backup(scene.context(Hooks({"manifest": fail})), request)
    left = unfinished(scene)
    backup = scene.taken(with_wal=False)
    assert backup.references == (left,)
    assert backup.totals.new_bytes < backup.totals.raw_bytes / 2
    assert_whole(scene, backup)


def test_what_was_damaged_is_stored_anew(scene: BackupScene) -> None:
    left = broken_off(scene)
    first, second, *others = sorted(packs_of(scene, left), key=lambda path: -path.stat().st_size)
    content = bytearray(first.read_bytes())
    content[len(content) // 3] ^= 1  # in a frame
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-1])  # its footer is lost
    backup = scene.taken(with_wal=False)
    assert backup.references == (left,)
    used = {
        pack.number for pack in Catalog(scene.store, "main").manifest(backup).packs() if pack.owner
    }
    assert used
    assert used <= {int(path.name.rpartition("-")[2]) for path in others} | {
        int(first.name.rpartition("-")[2])
    }
    assert_whole(scene, backup)
    scene.run("verify", "all", "--full")


def test_few_packs_are_not_kept(scene: BackupScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgrecall.backup.run.KEPT_PACKS", 10_000)
    with pytest.raises(BackupError, match="network"):
        scene.taken(with_wal=False, progress=Hooks({"stop": fail}))
    assert Catalog(scene.store, "main").ids() == []
    assert KEPT_PACKS < RESUMED_PACKS


def test_packs_of_a_small_server_are_not_kept(factory: ServerFactory, tmp_path: Path) -> None:
    """However many workers have filled one each."""
    scene = BackupScene(tmp_path, factory(autovacuum="off"))
    scene.archive()
    scene.write_config(str(scene.server.pgdata), workers=8)
    hooks = Hooks({"stop": lambda: None, "manifest": fail})
    with pytest.raises(BackupError, match="network"):
        scene.taken(with_wal=False, progress=hooks)
    assert Catalog(scene.store, "main").ids() == []
