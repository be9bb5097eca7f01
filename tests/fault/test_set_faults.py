"""Sets whose making, or whose way back, is killed: no half set, and the same command again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.postgres.instance import running_postmaster
from pgrecall.system.processes import wait_until_gone
from tests.support.backup_scene import BackupScene, shared_scene
from tests.support.dumped_text import text_of_server
from tests.support.postgresql import Installation, PostgresServer, ServerFactory, Templates

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(pg_templates, installations[18], tmp_path_factory, autovacuum="off") as scene:
        (scene.directory / "space").mkdir()
        scene.server.sql("CREATE ROLE clerk")
        scene.server.sql(f"CREATE TABLESPACE fast LOCATION '{scene.directory / 'space'}'")
        scene.server.sql("CREATE DATABASE shop OWNER clerk TABLESPACE fast")
        scene.server.sql("CREATE TABLE t AS SELECT generate_series(1, 500) AS n", database="shop")
        scene.server.sql("CREATE TABLE here AS SELECT 1 AS one")
        yield scene


@pytest.fixture(scope="module")
def made(scene: BackupScene) -> dict[str, Any]:
    result = json.loads(scene.run("set", "create", "--no-passwords", "--yes", "--json"))
    record: dict[str, Any] = result["recovery_set"]
    return record


@pytest.mark.parametrize("point", ["set.backed-up", "set.point-made", "set.parts-complete"])
def test_a_kill_leaves_parts_and_no_set(
    scene: BackupScene, made: dict[str, Any], point: str
) -> None:
    before = json.loads(scene.run("sets", "list", "--json"))["sets"]
    backups = len(scene.ids())
    scene.run("set", "create", "--yes", kill=point, status=KILLED)
    assert json.loads(scene.run("sets", "list", "--json"))["sets"] == before
    assert len(scene.ids()) == backups + 1  # an ordinary one, which is whole
    scene.run("verify", scene.ids()[-1])
    scene.run("sets", "show", made["set_id"])


def test_what_was_written_when_it_was_killed_is_a_set(scene: BackupScene) -> None:
    before = json.loads(scene.run("sets", "list", "--json"))["sets"]
    scene.run("set", "create", "--yes", kill="set.completed", status=KILLED)
    now = json.loads(scene.run("sets", "list", "--json"))["sets"]
    assert len(now) == len(before) + 1
    scene.run("verify", now[-1]["set_id"])


def end(directory: Path) -> None:
    pid = running_postmaster(directory)
    if pid is not None:
        os.kill(pid, signal.SIGQUIT)
        assert wait_until_gone(pid, 60.0)


def text_of_copy(scene: BackupScene, directory: Path, result: dict[str, Any]) -> str:
    server = PostgresServer(scene.server.installation, directory)
    os.rmdir(server.host)
    server.host, server.port = result["host"], result["port"]
    return text_of_server(server)


@pytest.mark.parametrize(
    ("mode", "point"),
    [
        ("--physical", "set-restore.recovered"),
        ("--logical", "set-restore.initdb"),
        ("--logical", "set-restore.marked"),
        ("--logical", "set-restore.loaded"),
    ],
)
def test_the_same_command_again(
    scene: BackupScene, made: dict[str, Any], tmp_path: Path, mode: str, point: str
) -> None:
    target, space = tmp_path / "copy", tmp_path / "space"
    space.mkdir()
    call = (
        "set", "restore", made["set_id"], mode, "--target-dir", str(target), "--yes",
        "--tablespace-map", f"fast={space}",
    )  # fmt: skip
    try:
        scene.run(*call, kill=point, status=KILLED)
        result = json.loads(scene.run(*call, "--json"))
        assert result["plan"]["goes_on"]
        text = text_of_server(scene.server).replace(str(scene.directory / "space"), str(space))
        assert text_of_copy(scene, target, result) == text
    finally:
        end(target)


def test_into_a_server_that_is_there(
    scene: BackupScene, made: dict[str, Any], pg_factory: ServerFactory, tmp_path: Path
) -> None:
    """Killed after two databases, repeated, and refused when it is somebody's."""
    fresh = pg_factory(name="fresh", autovacuum="off")
    tmp_path /= "space"
    tmp_path.mkdir()
    call = (
        "set", "restore", made["set_id"], "--logical", "--yes", "--json",
        "--host", fresh.host, "--port", str(fresh.port), "--tablespace-map", f"fast={tmp_path}",
    )  # fmt: skip
    scene.run(*call, kill="set-restore.database:2", status=KILLED)
    again = json.loads(scene.run(*call))
    assert "unfinished" in {one["present"] for one in again["plan"]["databases"]}
    text = text_of_server(scene.server).replace(str(scene.directory / "space"), str(tmp_path))
    assert text_of_server(fresh) == text
    # Now it is somebody's.
    refused = scene.start(*call)
    error = json.loads(refused.communicate()[0])["error"]
    assert (refused.returncode, error["code"]) == (59, "set-failed")
    assert "'shop'" in error["message"]
    assert text_of_server(fresh) == text
