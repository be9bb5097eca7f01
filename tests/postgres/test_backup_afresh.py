"""What little is needed of an expired backup's packs is stored afresh, so that they can go."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from pgrecall.backup.leftover import LARGE_BYTES
from pgrecall.model.manifest import Completion
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.retention_log import read_state
from pgrecall.retention.purge import PurgeRun, PurgeTask
from pgrecall.retention.run import Author
from pgrecall.system.clock import SystemClock
from tests.support.backup_scene import BackupScene, relation, started
from tests.support.postgresql import ServerFactory

# 12 MiB that do not compress; four rows on a page.
FILL = """
CREATE TABLE noise AS SELECT i AS id, 0 AS x,
 (SELECT string_agg(sha512((i || '/' || j)::bytea), ''::bytea) FROM generate_series(1, 30) j) AS b
 FROM generate_series(1, 6000) i
"""


@pytest.fixture(params=["local", "stream"])
def scene(request: pytest.FixtureRequest, factory: ServerFactory, tmp_path: Path) -> BackupScene:
    """By the summaries, which need not read what is to be stored afresh; or by reading all."""
    scene = BackupScene(tmp_path, factory(autovacuum="off", summarize_wal="on"))
    scene.archive()
    # Incremental for ever: a full one lets all older packs go.
    scene.write_config(str(scene.server.pgdata), full_every_days=0)
    text = scene.config.read_text().replace(
        "[repositories", f'source = "{request.param}"\n[repositories', 1
    )
    scene.config.write_text(text)
    scene.config.write_text(
        scene.config.read_text().replace(
            'store = "local"', f'store = "local"\npack_bytes = {LARGE_BYTES}'
        )
    )
    scene.server.sql(FILL)
    scene.server.sql("VACUUM FREEZE noise")
    return scene


def packs_of(scene: BackupScene, backup: Completion, owner: str) -> int:
    """To how many packs of ``owner`` a backup refers."""
    packs = Catalog(scene.store, scene.name).manifest(backup).packs()
    return sum(one.owner == owner for one in packs)


def take(scene: BackupScene, *, full: bool = False) -> Completion:
    scene.server.sql("CHECKPOINT")
    return scene.taken(full=full, with_wal=False, workers=1)


def test_packs_with_little_that_is_needed_are_let_go(
    scene: BackupScene, factory: ServerFactory, tmp_path: Path
) -> None:
    full = take(scene, full=True)
    # Of each 1000 rows sixty stay as they are: little of each pack of the table is needed.
    scene.server.sql("UPDATE noise SET x = 1 WHERE id % 1000 >= 60")
    second = take(scene)
    before = packs_of(scene, second, full.backup_id)
    assert before > 5
    # As long as the full one is kept nothing is won by it.
    third = take(scene)
    assert packs_of(scene, third, full.backup_id) == before
    assert third.totals.new_bytes < LARGE_BYTES
    scene.run("expire", full.backup_id, "--yes")
    assert full.backup_id in read_state(scene.store, scene.name).expired
    reasons = json.loads(scene.run("backup", "--dry-run", "--json"))["plan"]["reasons"]
    assert [one for one in reasons if "stores afresh up to" in one]
    fourth = take(scene)
    assert fourth.kind == "incremental"
    by = "summaries" if fourth.source == "local" else "digests"
    assert (fourth.change_source, third.change_source) == (by, by)
    left = packs_of(scene, fourth, full.backup_id)
    assert left <= before - 3  # the packs of the catalogs are needed as they are
    assert fourth.totals.new_bytes < before * LARGE_BYTES / 4
    assert not [one for one in (take(scene),) if one.totals.new_bytes > LARGE_BYTES]
    # Nothing is lost: it is what a full backup is, it verifies, and it starts.
    ours = scene.read_files(fourth)
    theirs = scene.read_files(take(scene, full=True))
    assert set(ours) == set(theirs)
    assert {path for path in ours if ours[path] != theirs[path]} <= {b"global/pg_control"}
    # With the older incrementals the packs go, and the newer one is whole without them.
    for one in (second, third):
        scene.run("expire", one.backup_id, "--yes")
    later = SystemClock().now() + timedelta(days=9)
    task = PurgeTask(server=scene.name, repository="one", grace=timedelta(days=3),
                     longest_pause=timedelta(days=45))  # fmt: skip
    purge = PurgeRun(scene.store, task, Author(run_id="r-test", now=later, store_now=later))
    purge.carry_out(purge.plan())
    kept = list(scene.store.list(layout.backup_prefix(scene.name, full.backup_id)))
    assert sum("/pack-" in info.key for info in kept) == left
    scene.run("verify", "all", "--full")
    copy = started(factory, scene.restored(fourth, tmp_path / "restored", "--immediate"))
    assert copy.value("SELECT sum(x) FROM noise") == scene.server.value("SELECT sum(x) FROM noise")
    assert relation(copy, "noise")
