"""Backups that a standby streams, and a promotion in the middle of one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.errors import ArchiveTimeoutError, BackupError
from tests.postgres.test_stream_backup import streamed
from tests.support.backup_scene import BackupScene, Hooks, started
from tests.support.postgresql import PostgresServer, ServerFactory


@pytest.fixture
def scenes(factory: ServerFactory, tmp_path: Path) -> Iterator[tuple[BackupScene, BackupScene]]:
    """A primary that archives, and the same repository as configured beside its standby."""
    primary = factory(autovacuum="off", wal_keep_size="256MB")
    scene = BackupScene(tmp_path, primary)
    scene.archive()
    primary.sql(
        "CREATE TABLE t AS SELECT n, repeat('t', 900) AS t FROM generate_series(1, 40000) n"
    )
    directory = tmp_path / "standby"
    primary.client("pg_basebackup", "-D", str(directory), "-X", "stream", "-c", "fast")
    standby = factory.adopt(directory)
    (directory / "standby.signal").touch()
    standby.configure(primary_conninfo=f"host={primary.host} port={primary.port} user=postgres")
    standby.start()
    beside = copy.copy(scene)
    beside.server, beside.config = standby, tmp_path / "standby.toml"
    beside.write_config(str(directory))
    yield scene, beside
    standby.destroy()
    primary.destroy()


def replayed(standby: PostgresServer, primary: PostgresServer) -> None:
    end = str(primary.value("SELECT pg_current_wal_lsn()"))
    standby.wait_until(
        lambda: standby.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", end),
        "the standby has replayed everything",
    )


def test_a_standby_streams(
    scenes: tuple[BackupScene, BackupScene], factory: ServerFactory, tmp_path: Path
) -> None:
    """Complete when the primary has archived; later ones go on from it, from either server."""
    scene, beside = scenes
    primary, standby = scene.server, beside.server
    primary.sql("UPDATE t SET n = -n WHERE n <= 5")
    primary.sql("CHECKPOINT")
    replayed(standby, primary)
    hooks = Hooks({"wal": lambda: primary.sql("SELECT pg_switch_wal()")})
    first = streamed(beside, progress=hooks)
    root, _ = scene.manifest(first)
    assert b"BACKUP FROM: standby" in root.backup_label
    assert (first.worst, first.kind, first.has_wal) == ("ok", "full", False)
    primary.sql("UPDATE t SET n = -n WHERE n BETWEEN 6 AND 10")
    primary.sql("CHECKPOINT")
    replayed(standby, primary)
    standby.sql("CHECKPOINT")
    second = streamed(beside, full=False, with_wal=True)
    third = scene.taken(with_wal=False, full=False)
    assert (second.base_id, third.base_id) == (first.backup_id, second.backup_id)
    for backup, negative in ((first, 5), (second, 10), (third, 10)):
        target = tmp_path / f"copy-{backup.backup_id}"
        restored = started(factory, scene.restored(backup, target, "--immediate"))
        assert restored.value("SELECT count(*) FROM t") == 40000
        assert restored.value("SELECT count(*) FROM t WHERE n < 0") == negative
        restored.destroy()
    beside.assert_server_is_clean()
    with pytest.raises(ArchiveTimeoutError, match="the primary archives them") as caught:
        primary.sql("CREATE TABLE more AS SELECT 1")
        replayed(standby, primary)
        streamed(beside, archive_timeout_seconds=1)
    assert "pg_switch_wal" in caught.value.hint
    assert scene.ids()[-1] == third.backup_id


@pytest.mark.parametrize("point", ["backup.started", "backup.copy"])
def test_a_promotion_in_the_middle_ends_it(
    scenes: tuple[BackupScene, BackupScene], point: str
) -> None:
    scene, beside = scenes
    before = scene.ids()
    process = beside.start(
        "backup", "--source", "stream", "--workers", "1", "--yes", pause=point
    )  # fmt: skip
    pause = beside.wait_paused(point, process)
    standby = beside.server
    standby.sql("SELECT pg_promote()")
    standby.wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "promoted")
    pause.unlink()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == BackupError.exit_status, errors
    assert "promoted during online backup" in errors
    assert scene.ids() == before
    assert not list(scene.store.list("servers/main/backups/"))
    after = streamed(beside, with_wal=True)
    assert after.timeline == 2
    assert b"pg_wal/00000002.history" in scene.read_files(after)
    beside.assert_server_is_clean()
