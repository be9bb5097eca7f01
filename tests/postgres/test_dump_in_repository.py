"""Dumps beside backups: verified, copied, healed, held, expired and purged as these are."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pgrecall.further_errors import DumpNotFoundError
from pgrecall.repository import layout
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.repository.identity import create_repository
from pgrecall.retention.purge import PurgeRun, PurgeTask
from pgrecall.retention.run import Author
from pgrecall.store.local import LocalStore
from pgrecall.system.clock import SystemClock
from tests.support.backup_scene import BackupScene, shared_scene
from tests.support.postgresql import Installation, Templates

POINTS = (
    "dump.snapshots",
    "pack.commit",
    "dump.database",
    "dump.dumped",
    "dump.packs-stored",
    "dump.manifest-stored",
    "dump.completed",
)


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(pg_templates, installations[18], tmp_path_factory, autovacuum="off") as scene:
        scene.server.sql("CREATE DATABASE shop")
        scene.server.sql(
            "CREATE TABLE t AS SELECT i, md5(i::text) AS h FROM generate_series(1, 60000) i",
            database="shop",
        )
        second = scene.directory / "second"
        scene.config.write_text(
            scene.config.read_text()
            + '\n[repositories.two]\nstore = "local"\nrole = "best-effort"\n'
            + f"path = {json.dumps(str(second))}\n"
            + "[retention]\nlease_seconds = 60\ngrace_seconds = 61\n[policies.few]\nkeep_last = 1\n"
        )
        LocalStore(str(second)).create_root()
        create_repository(LocalStore(str(second)), SystemClock().now())
        yield scene


def made(scene: BackupScene, *words: str) -> dict[str, Any]:
    """The JSON of a command of the main repository."""
    result: dict[str, Any] = json.loads(scene.run(*words, "--repository", "one", "--yes", "--json"))
    return result


def dump(scene: BackupScene) -> str:
    return str(made(scene, "dump", "shop")["dump"]["backup_id"])


def verified(scene: BackupScene, *words: str) -> dict[str, Any]:
    process = scene.start("verify", *words, "--repository", "one", "--json")
    output, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 43), (output, errors)
    result: dict[str, Any] = json.loads(output)
    return result


def objects(scene: BackupScene, dump_id: str) -> list[Path]:
    prefix = layout.backup_prefix(scene.name, dump_id)
    return [scene.repository / info.key for info in scene.store.list(prefix)]


def test_a_flipped_byte_is_found_in_every_object(scene: BackupScene) -> None:
    dump_id = dump(scene)
    whole = verified(scene, dump_id, "--full")
    assert whole["result"] == "ok"
    assert [one["backup_id"] for one in whole["backups"]] == [dump_id]
    assert whole["wal"] == []
    found = objects(scene, dump_id)
    assert len(found) >= 5
    for path in found:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :])
        try:
            assert verified(scene, "all")["result"] == "fail", path
        finally:
            path.write_bytes(content)
    assert verified(scene, "all")["result"] == "ok"
    pack = max((one for one in found if "pack-" in one.name), key=lambda one: one.stat().st_size)
    content = pack.read_bytes()
    pack.write_bytes(content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :])
    try:
        output = scene.run(
            "load", dump_id, "--into", "never", "--create", "--yes", "--repository", "one",
            status=11,
        )  # fmt: skip
        assert "does not match its digest" in output
        assert scene.server.sql("SELECT 1 FROM pg_database WHERE datname = 'never'") == []
    finally:
        pack.write_bytes(content)


@pytest.mark.parametrize("point", POINTS)
def test_killed(scene: BackupScene, point: str) -> None:
    before = DumpCatalog(scene.store, scene.name).survey()[0]
    process = scene.start("dump", "shop", "--yes", "--repository", "one", kill=point)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    after = DumpCatalog(scene.store, scene.name).survey()[0]
    assert len(after) == len(before) + (point == "dump.completed")
    scene.server.wait_until(
        lambda: scene.server.value(
            "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'pgrecall%'"
        ),
        "nothing of it is left on the server",
    )
    assert verified(scene, "all")["result"] == "ok"


def test_ended_by_a_signal_it_leaves_nothing(scene: BackupScene) -> None:
    before = DumpCatalog(scene.store, scene.name).ids()
    process = scene.start("dump", "shop", "--yes", "--repository", "one", pause="dump.database")
    pause = scene.wait_paused("dump.database", process)
    process.send_signal(signal.SIGTERM)
    pause.unlink()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 62, errors
    assert DumpCatalog(scene.store, scene.name).ids() == before


def test_expire_undo_hold_and_purge(scene: BackupScene) -> None:
    old, new = dump(scene), dump(scene)
    text = scene.config.read_text()
    scene.config.write_text(text.replace("[retention]\n", '[retention]\npolicy = "few"\n'))
    try:
        planned = made(scene, "expire", "--dry-run")["plan"]["items"]
        fates = {one["item_id"]: (one["kind"], one["fate"]) for one in planned}
        assert fates[old] == ("dump", "goes")
        assert fates[new] == ("dump", "stays")
        scene.run("expire", "--yes", "--repository", "one")
        listed = [one["backup_id"] for one in made_list(scene)]
        assert old not in listed
        assert new in listed
        scene.run(
            "load", old, "--into", "x", "--create", "--yes", "--repository", "one",
            status=DumpNotFoundError.exit_status,
        )  # fmt: skip
        scene.run("expire", "--undo", old, "--yes", "--repository", "one")
        assert old in [one["backup_id"] for one in made_list(scene)]
        scene.run("hold", "add", old, "--reason", "a case", "--repository", "one")
        planned = made(scene, "expire", "--dry-run")["plan"]["items"]
        assert {one["item_id"]: one["fate"] for one in planned}[old] == "stays"
        scene.run("hold", "release", old, "--repository", "one")
        scene.run("expire", "--yes", "--repository", "one")
        later = SystemClock().now() + timedelta(days=1)
        task = PurgeTask(
            server=scene.name, repository="one", grace=timedelta(hours=1),
            longest_pause=timedelta(days=45),
        )  # fmt: skip
        purge = PurgeRun(scene.store, task, Author("r-20261122T201637Z-7k3q", later, later))
        purge.carry_out(purge.plan())
        assert objects(scene, old) == []
        assert objects(scene, new) != []
    finally:
        scene.config.write_text(text)


def test_copied_and_healed(scene: BackupScene) -> None:
    dump_id = dump(scene)
    scene.run("copy", dump_id, "--from", "one", "--to", "two", "--yes")
    there = DumpCatalog(LocalStore(str(scene.directory / "second")), scene.name)
    assert [one.backup_id for one in there.survey()[0]] == [dump_id]
    again = json.loads(scene.run("copy", dump_id, "--from", "one", "--to", "two", "--json"))
    assert again["plan"]["complete"] == 1
    for path in objects(scene, dump_id):
        if path.name == "complete.json":
            continue
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :])
        scene.run("repair", dump_id, "--repository", "one", "--yes")
        assert path.read_bytes() == content
    scene.run("load", dump_id, "--into", "copied", "--create", "--yes", "--repository", "two")
    assert scene.server.value("SELECT count(*) FROM t", database="copied") == 60000
    scene.server.sql("DROP DATABASE copied")


def made_list(scene: BackupScene) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(
        scene.run("dumps", "list", "--repository", "one", "--json")
    )["dumps"]
    return listed
