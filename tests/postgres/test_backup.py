"""Backups of real servers: what they hold, what they leave out, what they notice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backup_scene import BackupScene, tree
from tests.support.postgresql import Installation, ServerFactory, Templates, run_program


@pytest.fixture(scope="module")
def factory(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerFactory]:
    factory = ServerFactory(pg_templates, installations[18], tmp_path_factory.mktemp("servers"))
    try:
        yield factory
    finally:
        factory.destroy()


@pytest.fixture(scope="module")
def scene(factory: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> BackupScene:
    """A server with a table, and room for backups of it; it archives."""
    server = factory(autovacuum="off", allow_in_place_tablespaces="on")
    scene = BackupScene(tmp_path_factory.mktemp("scene"), server)
    scene.archive()
    server.sql("CREATE TABLE kept AS SELECT n, repeat('x', n) AS t FROM generate_series(1, 500) n")
    return scene


def test_a_backup_holds_what_pg_basebackup_takes(scene: BackupScene, tmp_path: Path) -> None:
    server = scene.server
    server.sql("CHECKPOINT")
    backup = scene.taken(with_wal=False)
    server.client("pg_basebackup", "-D", str(tmp_path / "theirs"), "-X", "none", "-c", "fast")
    ours = tree(scene.contents(backup, tmp_path / "ours"))
    theirs = tree(tmp_path / "theirs")
    for made_by_tool in ("backup_label", "backup_manifest", "tablespace_map"):
        theirs.pop(made_by_tool, None)
    assert set(ours) == set(theirs)
    differing = {path for path in ours if ours[path] != theirs[path]}
    assert differing <= {"global/pg_control"}
