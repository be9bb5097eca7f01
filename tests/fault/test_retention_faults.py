"""Expire and purge that are killed, as processes on a directory: what is left, and what is next."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pgrecall
from pgrecall.repository import layout
from pgrecall.store.local import LocalStore
from tests.support.backup_scene import PROGRAM, SOURCE
from tests.support.retention_scene import GRACE, RetentionScene

POINTS = (
    "expire.planned",
    "expire.recorded",
    "unexpire.recorded",
    "purge.recorded",
    "purge.object-deleted",
    "purge.object-deleted:3",
    "purge.object-deleted:9",
    "purge.stage-deleted",
    "purge.stage-deleted:2",
    "purge.wal-deleted",
)


class OnDisk:
    """A scene in a directory, and the command line on it."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "repository"
        store = LocalStore(str(self.root))
        store.create_root()
        self.scene = RetentionScene(store)
        self.config = directory / "pgrecall.toml"
        self.config.write_text(
            f'[servers.main]\n[repositories.one]\npath = "{self.root}"\n'
            '[retention]\npolicy = "own"\n[policies.own]\nkeep_last = 2\n'
        )

    def run(self, *words: str, kill: str = "") -> int:
        environment = {"PYTHONPATH": SOURCE, "PATH": os.environ["PATH"]}
        if kill:
            environment["PGRECALL_FAULT_KILL"] = kill
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "--config", str(self.config), *words, "--yes"],
            env=environment,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0 or kill, done
        return done.returncode

    def age(self) -> None:
        """Let the grace be over: the store's clock is that of the file system."""
        for path in (self.root / layout.retention_prefix("main")).glob("*.json"):
            at = path.stat().st_mtime - GRACE.total_seconds() - 60
            os.utime(path, (at, at))


def test_the_points_are_all_there() -> None:
    source = Path(pgrecall.__file__).parent / "retention"
    found = {
        point
        for path in source.glob("*.py")
        for point in re.findall(r'reached\("([^"]+)"\)', path.read_text())
    }
    assert found == {point.partition(":")[0] for point in POINTS}


@pytest.mark.parametrize("point", POINTS)
def test_killed(tmp_path: Path, point: str) -> None:
    """Whatever is listed is whole, before and after the next run, which comes to the same end."""
    place = OnDisk(tmp_path)
    scene = place.scene
    full = scene.backup(packs=3)
    scene.work(1)
    ids = [scene.backup() for _ in range(2)]
    child = scene.backup({full: [2]})
    words: tuple[str, ...] = ("expire",)
    if not point.startswith("expire"):
        place.run("expire")
        place.age()
        words = ("purge",)
    if point.startswith("unexpire"):
        words = ("expire", "--undo", ids[0])
    assert place.run(*words, kill=point) == -signal.SIGKILL
    scene.require_sealed()
    # The lease of the killed run is alive still, and stops no other expire or purge.
    place.run("expire")
    place.age()
    place.run("purge")
    assert scene.listed() == [ids[1], child]
    assert scene.objects_of(full) == ["pack-0002"]
    assert scene.objects_of(ids[0]) == []
    assert scene.segments() == scene.visible_segments()
    scene.require_sealed()
