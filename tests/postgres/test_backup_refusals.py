"""What a backup refuses to begin with, and what the server is left with then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pgrecall.errors import (
    ArchiveTimeoutError,
    DataDirectoryError,
    IdentityError,
    PostgresRightsError,
    UnsupportedServerError,
)
from tests.support.backup_scene import BackupScene
from tests.support.postgresql import ServerFactory


def test_a_file_that_may_not_be_read(scene: BackupScene) -> None:
    secret = scene.server.pgdata / "base" / "secret"
    secret.write_text("x")
    secret.chmod(0)
    before = scene.ids()
    try:
        errors = scene.run("backup", "--yes", status=PostgresRightsError.exit_status)
    finally:
        secret.unlink()
    assert f"{secret} may not be read" in errors
    assert "HINT: " in errors
    assert scene.ids() == before
    assert scene.temporary_files() == []
    scene.assert_server_is_clean()


def test_a_directory_that_may_not_be_read(scene: BackupScene) -> None:
    secret = scene.server.pgdata / "base" / "secret"
    secret.mkdir(0)
    try:
        with pytest.raises(PostgresRightsError, match="base/secret may not be read"):
            scene.backup()
    finally:
        secret.rmdir()
    scene.assert_server_is_clean()


def test_an_archive_that_does_not_work(scene: BackupScene, tmp_path: Path) -> None:
    """The cause is told apart, nothing is listed, the server holds nothing."""
    server = scene.server
    before = scene.ids()
    scene.write_config(str(server.pgdata), archive_timeout_seconds=1)
    try:
        for command, cause in (("false", "archive_command fails"), ("true", "archives elsewhere")):
            server.configure(archive_command=command)
            server.reload()
            with pytest.raises(ArchiveTimeoutError, match=cause) as caught:
                scene.backup(with_wal=False)
            assert caught.value.hint
            assert scene.ids() == before
            scene.assert_server_is_clean()
    finally:
        scene.write_config(str(server.pgdata))
        scene.archive()
    assert scene.taken(with_wal=False).has_wal is False


def test_another_servers_directory_is_refused(scene: BackupScene, factory: ServerFactory) -> None:
    other = factory(start=False, segment_mib=1)  # made by an initdb of its own
    scene.write_config(str(other.pgdata))
    try:
        with pytest.raises(IdentityError, match="holds the system"):
            scene.backup()
    finally:
        scene.write_config(str(scene.server.pgdata))
    scene.assert_server_is_clean()


def test_a_copy_of_the_directory_is_refused(
    scene: BackupScene, factory: ServerFactory, tmp_path: Path
) -> None:
    """It has the right system identifier; stopped, running, or copied from a running server."""
    server = scene.server
    server.sql("CHECKPOINT")
    snapshot = tmp_path / "snapshot"
    server.client("pg_basebackup", "-D", str(tmp_path / "clone"), "-X", "stream", "-c", "fast")
    clone = factory.adopt(tmp_path / "clone")
    clone.configure(archive_mode="off")
    clone.start()
    clone.sql("CHECKPOINT")
    shutil.copytree(server.pgdata, snapshot, ignore=shutil.ignore_patterns("pg_wal", "*.pid"))
    before = scene.ids()

    def refused(directory: Path, why: str) -> None:
        scene.write_config(str(directory))
        with pytest.raises(DataDirectoryError, match=why):
            scene.backup()

    try:
        refused(clone.pgdata, "is a copy, not the directory that the server works in")
        refused(snapshot, "is a copy, not the directory that the server works in")
        clone.stop()
        refused(clone.pgdata, "is a copy of the server's data directory")
    finally:
        scene.write_config(str(server.pgdata))
    assert scene.ids() == before
    scene.assert_server_is_clean()


def test_a_standby_is_refused(scene: BackupScene, factory: ServerFactory, tmp_path: Path) -> None:
    scene.server.client("pg_basebackup", "-D", str(tmp_path / "standby"), "-R", "-c", "fast")
    standby = factory.adopt(tmp_path / "standby")
    standby.start()
    own = BackupScene(tmp_path, standby)
    with pytest.raises(UnsupportedServerError, match="is in recovery"):
        own.backup()
    standby.stop()
