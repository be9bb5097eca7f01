"""Expire, purge, undo and holds on a real server's repository, and what is restored meanwhile."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pgrecall.errors import (
    BackupNotFoundError,
    ConfirmationError,
    RetentionError,
)
from pgrecall.model.manifest import Completion
from pgrecall.repository import layout
from pgrecall.repository.journal import Journal
from tests.support.backup_scene import BackupScene, started
from tests.support.postgresql import Installation, ServerFactory, Templates

POLICY = '\n[retention]\npolicy = "own"\n[policies.own]\nkeep_last = 2\n'
GRACE_SECONDS = 3 * 86_400.0


class Kept:
    """Four backups with a marked row before each, and WAL behind all of them."""

    def __init__(self, scene: BackupScene) -> None:
        self.scene = scene
        scene.archive()
        with scene.config.open("a", encoding="utf-8") as file:
            file.write(POLICY)
        scene.server.sql("CREATE TABLE marks (n int)")
        self.backups: list[Completion] = []
        for number in range(1, 5):
            self.another(number)

    def another(self, number: int) -> None:
        server = self.scene.server
        server.sql(f"INSERT INTO marks VALUES ({number})")
        self.backups.append(self.scene.taken(with_wal=False, full=number == 1))
        server.sql("SELECT pg_switch_wal()")

    @property
    def ids(self) -> list[str]:
        return [backup.backup_id for backup in self.backups]

    def json(self, *words: str, status: int = 0) -> dict[str, Any]:
        document = json.loads(self.scene.run(*words, "--json", status=status))
        assert isinstance(document, dict)
        return document

    def age(self) -> None:
        """Let the grace be over: the store's clock is that of the file system."""
        prefix = self.scene.repository / layout.retention_prefix(self.scene.name)
        for path in prefix.glob("*.json"):
            at = path.stat().st_mtime - GRACE_SECONDS - 60
            os.utime(path, (at, at))

    def objects(self) -> list[str]:
        """All that is stored besides WAL, which the server goes on to archive."""
        paths = self.scene.repository.rglob("*")
        return sorted(str(path) for path in paths if path.is_file() and "/wal/" not in str(path))

    def files(self, backup_id: str) -> list[str]:
        directory = self.scene.repository / layout.backup_prefix(self.scene.name, backup_id)
        return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []

    def require_restores(self, factory: ServerFactory, directory: Path) -> None:
        """Every backup that is listed comes back with its rows."""
        for line in self.scene.listed().backups:
            number = self.ids.index(line.backup_id) + 1
            target = directory / line.backup_id
            self.scene.restored(self.scene.completion(line.backup_id), target, "--immediate")
            copy = started(factory, target)
            assert copy.value("SELECT max(n) FROM marks") == number
            copy.stop()


@pytest.fixture(scope="module")
def kept(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Kept]:
    factory = ServerFactory(pg_templates, installations[18], tmp_path_factory.mktemp("server"))
    try:
        yield Kept(BackupScene(tmp_path_factory.mktemp("scene"), factory(autovacuum="off")))
    finally:
        factory.destroy()


def test_from_the_plan_to_the_purge(kept: Kept, pg_factory: ServerFactory, tmp_path: Path) -> None:
    scene, ids = kept.scene, kept.ids
    objects = kept.objects()

    shown = scene.run("expire", "--dry-run")
    assert re.search(rf"{ids[0]} .* goes .* no rule keeps it", shown)
    assert re.search(rf"{ids[3]} .* stays .*newest good backup, keep_last: 1 of 2", shown)
    assert f"any moment since {ids[2]}" in shown
    plan = kept.json("expire", "--dry-run")["plan"]
    fates = [item["fate"] for item in plan["items"] if item["kind"] == "backup"]
    assert fates == ["goes", "goes", "stays", "stays"]
    assert plan["reachable_before"][0]["backups"] == 4
    assert plan["reachable_after"][0]["backups"] == 2
    scene.run("expire", status=ConfirmationError.exit_status)
    assert kept.objects() == objects

    done = kept.json("expire", "--yes")
    assert done["plan"] == {**plan, "counted_from_at": done["plan"]["counted_from_at"]}
    assert done["expired"] == ids[:2]
    assert scene.ids() == ids[2:]
    listed = kept.json("backups", "list", "--expired")["backups"]
    assert ["expired" in one["state"] for one in listed] == [True, True, False, False]
    (path,) = kept.json("recoverable")["generations"][0]["paths"]
    assert [mark["backup_id"] for mark in path["ranges"][0]["backups"]] == ids[2:]
    refused = scene.run(
        "restore", "--backup", ids[0], "--target-dir", str(tmp_path / "no"), "--yes",
        status=BackupNotFoundError.exit_status,
    )  # fmt: skip
    assert f"expire --undo {ids[0]}" in refused
    assert "nothing" not in kept.json("purge", "--yes")
    assert kept.files(ids[0]) != []

    # One comes back with its WAL, is held, and stays through the next expiry.
    scene.run("expire", "--undo", ids[1])
    scene.run("hold", "add", ids[1], "--reason", "case 4711")
    assert kept.json("holds")["holds"][0]["reason"] == "case 4711"
    scene.run("expire", "--yes")
    assert scene.ids() == ids[1:]

    kept.age()
    purge = kept.json("purge", "--yes")
    assert [item["item_id"] for item in purge["plan"]["items"]] == [ids[0]]
    assert purge["refused"] == 0
    # It was a full one, and the others are incremental: what they refer to stays, and no more.
    assert purge["plan"]["items"][0]["kept_objects"] == len(kept.files(ids[0])) > 0
    assert not any(name.startswith(("complete", "manifest")) for name in kept.files(ids[0]))
    late = scene.run("expire", "--undo", ids[0], status=RetentionError.exit_status)
    assert "was purged" in late
    kept.require_restores(pg_factory, tmp_path)
    assert kept.json("verify", "--full")["result"] == "ok"

    scene.run("hold", "release", ids[1])
    scene.run("expire", "--yes")
    assert scene.ids() == ids[2:]
    kept.age()
    scene.run("purge", "--yes")
    assert "complete.json" not in kept.files(ids[1])
    kept.scene.run("verify", "--full")
    journal = Journal(scene.store, scene.name).runs(datetime(2000, 1, 1, tzinfo=UTC))[0]
    commands = [run.command for run in journal]
    assert (commands.count("expire"), commands.count("purge")) == (5, 3)  # one undo failed


def test_what_a_restore_reads_on_is_kept(kept: Kept, tmp_path: Path) -> None:
    """A restore is under way while everything that it needs expires, and is to be purged."""
    scene = kept.scene
    while len(scene.ids()) < 3:
        kept.another(len(kept.backups) + 1)
    victim = scene.ids()[0]
    words = ("restore", "--backup", victim, "--target-dir", str(tmp_path / "copy"), "--yes")
    process = scene.start(*words, pause="restore.marked")
    point = scene.wait_paused("restore.marked", process)
    plan = kept.json("expire", "--yes")["plan"]
    (item,) = [one for one in plan["items"] if one["item_id"] == victim]
    assert item["fate"] == "stays"
    assert item["why"][0].startswith("in use: restore run")
    point.unlink()
    output = process.communicate(timeout=60)
    assert process.returncode == 0, output
    # The lease was released with it.
    assert [one["item_id"] for one in kept.json("expire", "--dry-run")["plan"]["items"]
            if one["fate"] == "goes"] == [victim]  # fmt: skip
    assert not list((scene.repository / layout.leases_prefix(scene.name)).glob("*/*"))
