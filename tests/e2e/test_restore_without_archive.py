"""A backup that holds its own WAL restores without any archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.backup_scene import BackupScene
from tests.support.postgresql import ServerFactory


@pytest.mark.parametrize("target", [(), ("--immediate",), ("--verify-wal",)], ids=str)
def test_a_backup_with_its_wal_needs_no_archive(
    pg_factory: ServerFactory, tmp_path: Path, target: tuple[str, ...]
) -> None:
    server = pg_factory(archive_mode="off")
    server.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    scene = BackupScene(tmp_path, server)
    backup = scene.taken(with_wal=True)
    copy = pg_factory.adopt(scene.restored(backup, tmp_path / "copy", *target))
    copy.start()
    copy.wait_until(lambda: not copy.value("SELECT pg_is_in_recovery()"), "recovery is over")
    assert copy.value("SELECT count(*) FROM kept") == 1000
