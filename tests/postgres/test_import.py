"""WAL that archive_command has copied somewhere comes into the archive, and recovery uses it."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
import zstandard

from pgrecall.errors import WalFormatError
from pgrecall.further_errors import ImportRefusedError
from tests.support.backup_scene import BackupScene, started
from tests.support.postgresql import ServerFactory

REFUSED = ImportRefusedError.exit_status


@pytest.fixture
def scene(factory: ServerFactory, tmp_path: Path) -> Iterator[BackupScene]:
    """A server that archives by cp, and a backup that holds the WAL that it needs."""
    scene = BackupScene(tmp_path, factory(autovacuum="off"))
    archive = tmp_path / "archive"
    archive.mkdir()
    scene.server.configure(archive_command=f"cp %p {archive}/%f")
    scene.server.reload()
    yield scene


def archived(scene: BackupScene, count: int) -> list[Path]:
    """Some segments, with a row in each."""
    directory = scene.directory / "archive"
    for _ in range(count):
        scene.server.sql("INSERT INTO t SELECT max(n) + 1 FROM t")
        name = scene.server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
        scene.server.sql("SELECT pg_switch_wal()")
        scene.server.wait_until(
            lambda name=name: (directory / name).exists(), f"{name} is archived"
        )
    status = scene.server.pgdata / "pg_wal" / "archive_status"
    scene.server.wait_until(lambda: not list(status.glob("*.ready")), "all WAL is archived")
    return sorted(one for one in directory.iterdir() if len(one.name) == 24)


def imported(scene: BackupScene, path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(scene.run("import", str(path), "--json"))
    return result


def test_it_is_recovered_from(scene: BackupScene, factory: ServerFactory, tmp_path: Path) -> None:
    scene.server.sql("CREATE TABLE t AS SELECT 1 AS n")
    backup = scene.taken(with_wal=True)
    segments = archived(scene, 4)
    one, other, third = segments[-4:-1]
    one.with_name(one.name + ".gz").write_bytes(gzip.compress(one.read_bytes()))
    other.with_name(other.name + ".lz4").write_bytes(lz4.frame.compress(other.read_bytes()))
    packed = third.with_name(third.name + ".zst")
    packed.write_bytes(zstandard.compress(third.read_bytes()))
    for path in (one, other, third):
        path.unlink()
    (scene.directory / "archive" / "notes.txt").write_text("not WAL")
    plan = json.loads(scene.run("import", str(one.parent), "--dry-run", "--json"))["plan"]
    assert (plan["others"], plan["left_alone"]) == (1, ["notes.txt"])
    result = imported(scene, one.parent)
    assert result["created"] == result["plan"]["files"] > 4
    again = imported(scene, one.parent)
    assert (again["created"], again["already_stored"]) == (0, result["created"])
    target = scene.restored(backup, tmp_path / "copy")
    copy = started(factory, target)
    assert copy.value("SELECT max(n) FROM t") == 5


def test_an_archive_of_it(scene: BackupScene, tmp_path: Path) -> None:
    scene.server.sql("CREATE TABLE t AS SELECT 1 AS n")
    segments = archived(scene, 2)
    archive = tmp_path / "wal-archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(segments[0].parent, arcname="var/lib/postgresql/archive")
    assert imported(scene, archive)["created"] >= 2
    assert imported(scene, segments[-1])["already_stored"] == 1
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive.read_bytes()[:-5000])
    assert "cut off" in scene.run("import", str(cut), status=WalFormatError.exit_status)


def test_what_is_not_this_servers_is_refused_whole(scene: BackupScene, tmp_path: Path) -> None:
    """One file that is wrong, and none is stored."""
    scene.server.sql("CREATE TABLE t AS SELECT 1 AS n")
    good, other = archived(scene, 2)[-2:]
    directory = tmp_path / "mixed"
    directory.mkdir()
    shutil.copy(good, directory)
    bad = directory / other.name
    raw = other.read_bytes()
    # The system identifier stands behind the 24 bytes of a page's header.
    strange = raw[:24] + b"another!" + raw[32:]
    for content in (raw[: 1 << 20], good.read_bytes(), b"x" * (1 << 20), strange):
        bad.write_bytes(content)
        assert bad.name in scene.run("import", str(directory), status=REFUSED)
    assert not list(scene.repository.rglob(good.name))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no WAL" in scene.run("import", str(empty), status=2)
