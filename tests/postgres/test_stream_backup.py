"""Backups that the server streams: what they hold, and that nothing tells them from local ones."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pgrecall.app.backing_up import BackupResult, run_backup
from pgrecall.app.requests import BackupRequest
from pgrecall.backup.units import PIECE_BYTES
from pgrecall.errors import CheckFailedError, NotOwnerError, PostgresRightsError
from pgrecall.model.manifest import Completion
from tests.support.backup_scene import BackupScene, Hooks, relation, started
from tests.support.postgresql import Installation, ServerFactory

CONTROL = b"global/pg_control"


def stream(
    scene: BackupScene,
    *,
    with_wal: bool = False,
    full: bool = True,
    progress: Hooks | None = None,
    **flags: object,
) -> BackupResult:
    request = BackupRequest(with_wal=with_wal, full=full, source="stream")
    return run_backup(scene.context(progress, **flags), request)


def streamed(scene: BackupScene, **options: Any) -> Completion:
    backup = stream(scene, **options).backup
    assert backup is not None
    assert backup.source == "stream"
    return backup


def test_a_stream_holds_what_a_local_backup_does(scene: BackupScene) -> None:
    """A file of more than one piece, an empty one, odd names, many small ones: all is equal."""
    strays = scene.server.pgdata / "strays"
    strays.mkdir()
    with (strays / "large").open("wb") as file:
        for place in (0, PIECE_BYTES - 10, PIECE_BYTES + 3_000_000):
            file.seek(place)
            file.write(b"content at a border")
    (strays / "empty").touch()
    (strays / os.fsdecode(b'n\xffme "odd"\n')).write_bytes(b"odd")
    (strays / ("l" * 70)).mkdir()
    for number in range(3000):
        (strays / ("l" * 70) / f"{number}").write_bytes(b"%d" % number)
    scene.server.sql("CHECKPOINT")
    scene.taken(with_wal=False)
    scene.server.sql("CHECKPOINT")
    local = scene.taken(with_wal=False)
    backup = streamed(scene)
    ours, theirs = scene.read_files(backup), scene.read_files(local)
    assert set(ours) == set(theirs)
    assert {path for path in ours if ours[path] != theirs[path]} <= {CONTROL}
    (root, entries), (other, others) = scene.manifest(backup), scene.manifest(local)
    assert list(entries) == list(others)
    assert (backup.worst, local.worst) == ("ok", "ok")
    assert backup.totals.pages_checked == local.totals.pages_checked
    assert backup.totals.raw_bytes == local.totals.raw_bytes
    assert root.server == other.server
    for path, entry in entries.items():
        assert (entry.kind, entry.mode) == (others[path].kind, others[path].mode), path
        assert (entry.size, len(entry.digests)) == (others[path].size, len(others[path].digests))
    again = streamed(scene, full=False)
    assert again.totals.new_bytes < 1 << 20
    assert scene.read_files(again)[b"strays/large"] == theirs[b"strays/large"]
    shutil.rmtree(strays)


def test_every_version_streams_and_restores(
    factory: ServerFactory, installation: Installation, tmp_path: Path
) -> None:
    """A full one with a tablespace, and what changed since; both restore, one with its own WAL."""
    server = factory(installation, name=f"streamed{installation.major}", autovacuum="off")
    scene = BackupScene(tmp_path, server)
    scene.archive()
    place = tmp_path / "space"
    place.mkdir()
    server.sql(f"CREATE TABLESPACE apart LOCATION '{place}'")
    server.sql("CREATE TABLE far (n int, t text) TABLESPACE apart")
    server.sql("INSERT INTO far SELECT n, repeat('f', 500) FROM generate_series(1, 20000) n")
    server.sql("CREATE UNLOGGED TABLE passing AS SELECT generate_series(1, 1000) AS n")
    first = streamed(scene)
    server.sql("UPDATE far SET n = -n WHERE n <= 10")
    server.sql("CHECKPOINT")
    second = streamed(scene, full=False, with_wal=True)
    assert (second.kind, second.base_id, second.change_source) == (
        "incremental", first.backup_id, "digests",
    )  # fmt: skip
    server.sql("CHECKPOINT")
    scene.taken(with_wal=False)
    local, third = scene.taken(with_wal=False), streamed(scene, full=False)
    ours, theirs = scene.read_files(third), scene.read_files(local)
    assert set(ours) == set(theirs)
    assert {path for path in ours if ours[path] != theirs[path]} <= {CONTROL}
    for number, (backup, negative) in enumerate(((first, 0), (second, 10))):
        target = tmp_path / f"copy{number}"
        mapped = f"{place}={tmp_path / f'space{number}'}"
        scene.restored(backup, target, "--immediate", "--tablespace-map", mapped)
        copy = started(factory, target, installation)
        assert copy.value("SELECT count(*) FROM far") == 20000
        assert copy.value("SELECT count(*) FROM far WHERE n < 0") == negative
        assert copy.value("SELECT count(*) FROM passing") == 0
        copy.stop()
    scene.assert_server_is_clean()
    server.stop()


def test_only_what_changed_is_stored(scene: BackupScene) -> None:
    """Each way to the data goes on from backups of the other."""
    server = scene.server
    server.sql(
        "CREATE TABLE big AS SELECT n, repeat('b', 100) AS t FROM generate_series(1, 200000) n"
    )
    local = scene.taken(with_wal=False)
    streamed(scene, full=False)
    server.sql("CHECKPOINT")
    quiet = streamed(scene, full=False)
    assert quiet.totals.new_bytes < 2 << 20
    assert local.backup_id in quiet.references
    server.sql("UPDATE big SET n = 0 WHERE n = 77")
    server.sql("DELETE FROM big WHERE n > 150000")
    server.sql("VACUUM big")
    server.sql("CHECKPOINT")
    changed = streamed(scene, full=False)
    after = scene.taken(with_wal=False, full=False)
    assert after.base_id == changed.backup_id
    full = scene.taken(with_wal=False)
    found = scene.read_files(full)
    for backup in (changed, after):
        files = scene.read_files(backup)
        assert {path for path in found if files.get(path) != found[path]} <= {CONTROL}
    assert after.totals.new_bytes < 1 << 20
    scene.run("verify", "--full")


def test_replication_is_the_only_right(scene: BackupScene) -> None:
    """A role with LOGIN and REPLICATION, and no grant at all; without it, a clear refusal."""
    server = scene.server
    server.sql("CREATE ROLE streamer LOGIN REPLICATION; CREATE ROLE nobody LOGIN")
    try:
        backup = streamed(as_role(scene, "streamer"))
        assert backup.totals.pages_checked > 1000
        scene.read_files(backup)
        with pytest.raises(PostgresRightsError, match="may not stream a backup") as caught:
            streamed(as_role(scene, "nobody"))
        assert "nobody" in caught.value.message
    finally:
        server.sql("DROP ROLE streamer; DROP ROLE nobody")


@pytest.mark.parametrize("role", ["postgres", "streamer"])
def test_a_restored_copy_is_refused(scene: BackupScene, role: str) -> None:
    """Asked before, or where the role may not ask, found in what has come (fact 2)."""
    server, before = scene.server, scene.ids()
    marker = server.pgdata / "pgrecall_copy.json"
    marker.write_text('{"restore_id": "r-20260101T000000Z-aaaa"}')
    kept = server.pgdata / "pgrecall_kept-r-1"
    kept.mkdir()
    (kept / "large").write_bytes(b"k" * 100_000)
    if role != "postgres":
        server.sql(f"CREATE ROLE {role} LOGIN REPLICATION")
    try:
        with pytest.raises(NotOwnerError, match="is the restored copy"):
            streamed(as_role(scene, role))
        assert scene.ids() == before
        marker.unlink()
        files = scene.read_files(streamed(as_role(scene, role)))
        assert not [path for path in files if path.startswith(b"pgrecall_")]
    finally:
        marker.unlink(missing_ok=True)
        (kept / "large").unlink()
        kept.rmdir()
        if role != "postgres":
            server.sql(f"DROP ROLE {role}")


def test_damaged_pages_are_named_as_by_a_local_backup(scene: BackupScene) -> None:
    server = scene.server
    server.sql("CREATE TABLE damaged AS SELECT n, repeat('d', 900) FROM generate_series(1, 100) n")
    path = relation(server, "damaged")
    server.stop()
    for block in (3, 5):
        with (server.pgdata / path).open("r+b") as file:
            file.seek(block * 8192 + 4321)
            file.write(b"~")
    server.start()
    local, other = scene.backup(), stream(scene)
    for result in (local, other):
        assert result.backup is not None
        (finding,) = [one for one in result.findings if one.code == "corrupt-pages"]
        assert (finding.subject, result.backup.worst) == (path, "fail")
        assert result.backup.totals.pages_failed == 2
        _, entries = scene.manifest(result.backup)
        assert entries[path.encode()].bad_blocks == (3, 5)
    # The server says so as well, in its own words.
    assert {one.code for one in other.findings} == {"corrupt-pages", "server-warning"}
    server.sql("DROP TABLE damaged")
    assert streamed(scene, full=False).worst == "ok"


def test_a_plan_and_a_dry_run_say_what_will_happen(scene: BackupScene) -> None:
    before = scene.ids()
    shown = scene.run("backup", "--source", "stream", "--dry-run", "--json")
    plan = json.loads(shown)["plan"]
    assert plan["source"] == "stream"
    assert any("nothing is read here" in reason for reason in plan["reasons"])
    config = scene.config.read_text()
    scene.config.write_text(config.replace('[servers."main"]', '[servers.main]\nsource = "stream"'))
    try:
        assert json.loads(scene.run("backup", "--dry-run", "--json"))["plan"]["source"] == "stream"
    finally:
        scene.config.write_text(config)
    assert scene.ids() == before


def as_role(scene: BackupScene, role: str) -> BackupScene:
    """The scene as seen by another role, from a host that has no data directory."""
    other = copy.copy(scene)
    other.config = scene.directory / f"{role}.toml"
    other.write_config("/nowhere")
    text = other.config.read_text()
    other.config.write_text(text.replace('user = "postgres"', f'user = "{role}"'))
    return other


def test_check_asks_for_what_a_stream_needs(scene: BackupScene) -> None:
    """No data directory on this host: that is no failure where the server sends it."""
    server = scene.server
    server.sql("CREATE ROLE streamer LOGIN REPLICATION; CREATE ROLE nobody LOGIN")
    try:
        for role, status in (("streamer", 0), ("nobody", CheckFailedError.exit_status)):
            other = as_role(scene, role)
            text = other.config.read_text()
            other.config.write_text(text.replace("data_directory", 'source = "stream"\n#'))
            process = other.start("check", "--no-switch", "--json")
            output, errors = process.communicate(timeout=60)
            assert process.returncode == status, (output, errors)
            severities = {one["code"]: one["severity"] for one in json.loads(output)["findings"]}
            assert severities.get("source", "fail") == ("fail" if status else "ok")
            assert ("postgres-rights" in severities) == bool(status)
            assert ("rights-replication" in severities) == bool(status)
            assert "data-directory" not in severities
    finally:
        server.sql("DROP ROLE streamer; DROP ROLE nobody")
