"""The auditor's report: what the records say of a period, and whether they are whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pgrecall.errors import StatusFailError, UsageError
from pgrecall.repository import layout
from tests.support.backup_scene import BackupScene, shared_scene
from tests.support.postgresql import Installation, Templates

REASON = "for the | auditor <b>"


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(pg_templates, installations[18], tmp_path_factory, autovacuum="off") as scene:
        (scene.directory / "copies").mkdir()
        scene.config.write_text(
            scene.config.read_text()
            + f"[drill]\ndirectory = {json.dumps(str(scene.directory / 'copies'))}\n"
            "[targets]\nrto_seconds = 3600.0\nrpo_seconds = 0.001\n"
        )
        made = json.loads(scene.run("backup", "--yes", "--json"))["backup"]["backup_id"]
        scene.run("hold", "add", made, "--reason", REASON)
        scene.run("drill", "--yes")
        scene.run("dump", "postgres", "--yes")
        dumps = json.loads(scene.run("dumps", "list", "--json"))["dumps"]
        out = str(scene.directory / "out")
        scene.run("export", dumps[0]["backup_id"], "--to", out, "--yes")
        scene.run("hold", "release", made)
        scene.run("hold", "add", made, "--reason", REASON)
        yield scene


def reported(scene: BackupScene, *words: str, status: int = 0) -> dict[str, Any]:
    process = scene.start("report", *words, "--json")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == status, (output, errors)
    report: dict[str, Any] = json.loads(output)
    return report


def test_everything_that_happened_is_in_it(scene: BackupScene) -> None:
    report = reported(scene, "--since", "1d")
    assert report["is_complete"]
    assert [one["run"]["command"] for one in report["made"]][:2] == ["backup", "dump"]
    assert [one["result"] for one in report["drills"]] == ["ok"]
    assert [one["run"]["command"] for one in report["uses"]] == ["export"]
    assert [one["kind"] for one in report["decisions"]] == ["hold", "release", "hold"]
    assert [one["hold"]["reason"] for one in report["holds"]] == [REASON]
    assert 0 < report["rto_seconds"] < 3600
    assert report["trail"]["result"] == "ok"
    path = scene.directory / "report.md"
    scene.run("report", "--since", "1d", "--to", str(path))
    text = path.read_text()
    for title in ("Targets", "Policies", "Repositories", "Drills", "Holds", "Findings"):
        assert f"\n## {title}\n" in text
    assert "| RTO: slowest restore or drill of the period |" in text
    assert "| met |" in text
    assert "for the \\| auditor &lt;b>" in text
    assert report["drills"][0]["drill_id"] in text


def test_what_is_outside_the_period_is_left_out(scene: BackupScene) -> None:
    past = datetime.now(UTC) - timedelta(days=9)
    words = ("--since", f"{past:%F %T}+00", "--until", f"{past + timedelta(days=1):%F %T}+00")
    report = reported(scene, *words)
    for name in ("made", "drills", "uses", "decisions", "failed", "holds"):
        assert report[name] == []


@pytest.mark.parametrize(
    "words",
    [
        ("--since", "2000-01-01 00:00:00+00", "--until", "1999-01-01 00:00:00+00"),
        ("--since", "1d", "--until", "2999-01-01 00:00:00+00"),
        ("--since", "yesterday"),
    ],
)
def test_a_period_that_makes_no_sense(scene: BackupScene, words: tuple[str, ...]) -> None:
    reported(scene, *words, status=UsageError.exit_status)


def test_a_file_that_is_there_stays(scene: BackupScene, tmp_path: Path) -> None:
    path = tmp_path / "mine.md"
    path.write_text("mine")
    scene.run("report", "--since", "1d", "--to", str(path), status=UsageError.exit_status)
    assert path.read_text() == "mine"
    absent = str(tmp_path / "no such" / "report.md")
    scene.run("report", "--since", "1d", "--to", absent, status=UsageError.exit_status)


def test_damaged_records_make_it_incomplete(scene: BackupScene) -> None:
    key = layout.retention_key(scene.name, 1)
    path = scene.directory / "repository" / key
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-5])
        report = reported(scene, "--since", "1d", status=StatusFailError.exit_status)
    finally:
        path.write_bytes(whole)
    assert not report["is_complete"]
    assert report["result"] == "fail"
