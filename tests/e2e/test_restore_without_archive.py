"""A backup that holds its own WAL restores without any archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.errors import DestinationError
from tests.support.backup_scene import BackupScene, Hooks
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


def test_a_tablespace_made_during_the_backup_is_not_shared(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    """Replayed from the backup's own WAL, it would be production's directory (fact 20)."""
    server = pg_factory(archive_mode="off")
    place = tmp_path / "space"
    place.mkdir()
    scene = BackupScene(tmp_path, server)
    hooks = Hooks({"copy": lambda: server.sql(f"CREATE TABLESPACE apart LOCATION '{place}'")})
    backup = scene.taken(progress=hooks, with_wal=True)
    server.sql("CREATE TABLE kept TABLESPACE apart AS SELECT generate_series(1, 1000) AS n")
    copy = tmp_path / "copy"
    words = ("restore", "--backup", backup.backup_id, "--target-dir", str(copy), "--yes")
    said = scene.run(*words, status=DestinationError.exit_status)
    assert f"creates a tablespace in {place}" in said
    assert list(copy.iterdir()) == []
    assert server.value("SELECT count(*) FROM kept") == 1000
