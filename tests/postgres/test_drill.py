"""Restore drills: a real server from what is stored, examined, recorded, and gone again."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.app.drilling import drill_dump
from pgrecall.app.requests import DrillRequest
from pgrecall.further_errors import DrillFailedError
from pgrecall.model.dumps import TableProof
from pgrecall.postgres import dump_session
from pgrecall.postgres.connection import Connection
from pgrecall.repository.drill_log import DrillLog
from tests.support.backup_scene import BackupScene, relation, shared_scene
from tests.support.postgresql import Installation, Templates


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(pg_templates, installations[18], tmp_path_factory, autovacuum="off") as scene:
        server = scene.server
        server.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        server.sql("CREATE INDEX ON kept (n)")
        server.sql('CREATE DATABASE "odd, name"')
        scene.run("backup", "--yes")
        server.sql("INSERT INTO kept SELECT generate_series(1001, 1500)")
        scene.run("wal", "switch", "--yes")
        (scene.directory / "copies").mkdir()
        scene.config.write_text(
            scene.config.read_text()
            + f"[drill]\ndirectory = {json.dumps(str(scene.directory / 'copies'))}\n"
        )
        yield scene


def drilled(scene: BackupScene, *words: str, status: int = 0) -> dict[str, Any]:
    process = scene.start("drill", *words, "--json")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == status, (output, errors)
    assert list((scene.directory / "copies").iterdir()) == []
    result: dict[str, Any] = json.loads(output)
    return result


def checks_in(directory: Path, **files: str) -> str:
    directory.mkdir()
    for name, text in files.items():
        (directory / name.replace("_", ".")).write_text(text)
    return str(directory)


def test_the_newest_state_with_checks(scene: BackupScene, tmp_path: Path) -> None:
    checks = checks_in(
        tmp_path / "checks",
        rows_sql="SELECT count(*) FROM kept;\n",
        rows_expected="1500\n",
        works_sql="-- database: odd, name\nSELECT 1;\n",
    )
    record = drilled(scene, "--check", checks)["drill"]
    assert record["result"] == "ok", record["findings"]
    assert [(one["name"], one["database"], one["is_passed"]) for one in record["checks"]] == [
        ("rows", "postgres", True),
        ("works", "odd, name", True),
    ]
    by_name = {one["name"]: one for one in record["databases"]}
    assert by_name["postgres"]["tables"] == 1
    assert by_name["odd, name"]["amcheck"]
    assert record["seconds"]["restore"] > 0
    assert record["last_commit_at"] is not None
    kept = DrillLog(scene.store, scene.name).get(record["drill_id"])
    assert kept.item_id == record["item_id"]
    listed = json.loads(scene.run("drills", "list", "--json"))["drills"]
    assert listed[-1]["drill_id"] == record["drill_id"]
    assert listed[-1]["checks"] == "2 of 2"
    assert record["drill_id"] in scene.run("drills", "show", record["drill_id"])
    repositories = json.loads(scene.run("repositories", "--json"))["repositories"]
    assert repositories[0]["last_drilled_at"] is not None


def test_a_random_moment(scene: BackupScene, tmp_path: Path) -> None:
    """Between the backup and the newest commit; the copy has at least what the backup has."""
    checks = checks_in(
        tmp_path / "checks",
        rows_sql="SELECT count(*) IN (1000, 1500) FROM kept;\n",
        rows_expected="t\n",
    )
    record = drilled(scene, "--at", "random", "--check", checks)["drill"]
    assert record["result"] == "ok"
    assert record["target"].startswith("time ")


def test_a_check_that_does_not_pass(scene: BackupScene, tmp_path: Path) -> None:
    checks = checks_in(
        tmp_path / "checks",
        fails_sql="SELECT * FROM never;\n",
        differs_sql="SELECT 1;\n",
        differs_expected="2\n",
    )
    record = drilled(
        scene, "--at", "immediate", "--check", checks, status=DrillFailedError.exit_status
    )["drill"]
    assert record["result"] == "fail"
    said = {one["name"]: one["message"] for one in record["checks"]}
    assert "does not exist" in said["fails"]
    assert "expected '2', got '1'" in said["differs"]


def test_what_is_corrupt_on_the_server_is_found(scene: BackupScene) -> None:
    """An index without entries for its rows: whole in every digest, and wrong."""
    server = scene.server
    server.sql("CREATE TABLE broken AS SELECT generate_series(1, 5000) AS n")
    server.sql("CREATE INDEX broken_n ON broken (n)")
    server.sql("CHECKPOINT")
    path = server.pgdata / relation(server, "broken_n")
    server.stop()
    content = bytearray(path.read_bytes())
    leaf = 8192 * 2
    content[leaf + 100 : leaf + 900], content[leaf + 4000 : leaf + 4800] = (
        content[leaf + 4000 : leaf + 4800],
        content[leaf + 100 : leaf + 900],
    )
    path.write_bytes(content)
    server.start()
    try:
        scene.run("backup", "--yes", status=42)  # its page checksums say so already
        record = drilled(scene, "--at", "immediate", status=DrillFailedError.exit_status)["drill"]
        assert "copy-corrupt" in [one["code"] for one in record["findings"]]
        assert any("broken_n" in one["message"] for one in record["findings"])
    finally:
        server.sql("DROP TABLE broken")
        scene.run("backup", "--full", "--yes")


@pytest.mark.parametrize("kills", [True, False])
def test_ended_in_the_middle(scene: BackupScene, *, kills: bool) -> None:
    """By a signal it leaves nothing; killed, the next one removes what it left, a server too."""
    process = scene.start("drill", "--json", pause="drill.examining")
    pause = scene.wait_paused("drill.examining", process)
    (place,) = (scene.directory / "copies").iterdir()
    process.send_signal(signal.SIGKILL if kills else signal.SIGTERM)
    process.communicate(timeout=60)
    pause.unlink()
    if not kills:
        assert list((scene.directory / "copies").iterdir()) == []
        return
    assert (place / "data" / "postmaster.pid").exists()
    record = drilled(scene, "--at", "immediate", "--no-amcheck")["drill"]
    assert [one["code"] for one in record["findings"]] == ["drill-abandoned"]


def test_what_cannot_be_restored_is_a_drill_that_failed(scene: BackupScene) -> None:
    drilled(scene, "--at", "2001-01-01 00:00:00+00", status=51)
    (record,) = [
        one
        for one in DrillLog(scene.store, scene.name).all()[0]
        if one.error_code == "target-unreachable"
    ]
    assert record.result == "fail"
    assert record.seconds is None


def test_a_dry_run_restores_nothing(scene: BackupScene) -> None:
    before = DrillLog(scene.store, scene.name).all()[0]
    planned = drilled(scene, "--dry-run")
    assert planned["plan"]["backup_id"]
    assert DrillLog(scene.store, scene.name).all()[0] == before


def test_a_dump_is_loaded_and_compared(scene: BackupScene, tmp_path: Path) -> None:
    server = scene.server
    server.sql("CREATE ROLE clerk; CREATE ROLE boss; GRANT clerk TO boss WITH ADMIN OPTION")
    server.sql("CREATE TABLE of_clerk AS SELECT 1.5::float8 AS f, interval '1 day' AS i")
    server.sql("ALTER TABLE of_clerk OWNER TO clerk")
    server.sql("SELECT lo_from_bytea(0, 'abc')")
    made = json.loads(scene.run("dump", "--proofs", "--yes", "--json"))["dump"]
    planned = drilled(scene, made["backup_id"], "--dry-run")["plan"]
    assert planned["compares"] == "rows and hashes of every table"
    checks = checks_in(
        tmp_path / "checks", rows_sql="SELECT count(*) FROM kept;", rows_expected="1500"
    )
    record = drilled(scene, made["backup_id"], "--check", checks)["drill"]
    assert record["result"] == "ok", record["findings"]
    assert record["item_id"] == made["backup_id"]
    assert {one["name"] for one in record["databases"]} >= {"postgres", "odd, name"}
    assert [one["is_passed"] for one in record["checks"]] == [True]
    server.sql("DROP TABLE of_clerk; DROP ROLE boss; DROP ROLE clerk")


def test_a_dump_that_gives_back_something_else(
    scene: BackupScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proofs are held to what is there: one that says otherwise is told by table."""
    made = json.loads(scene.run("dump", "postgres", "--proofs", "--yes", "--json"))["dump"]
    real = dump_session.table_proofs

    def forged(connection: Connection) -> tuple[TableProof, ...]:
        return tuple(
            TableProof(one.schema, one.name, one.rows, "1") if one.name == "kept" else one
            for one in real(connection)
        )

    monkeypatch.setattr("pgrecall.app.drilling_dumps.table_proofs", forged)
    result = drill_dump(scene.context(), DrillRequest(backup_id=made["backup_id"]))
    assert result.drill is not None
    assert result.drill.result == "fail"
    assert [one.message for one in result.findings] == [
        "public.kept has other rows than were dumped"
    ]
