"""``backup`` and ``backups`` as people and programs meet them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from pgrecall.errors import (
    BackupNotFoundError,
    CorruptObjectError,
    PostgresUnreachableError,
    SettingsError,
    UsageError,
)
from pgrecall.repository import layout
from tests.support.backup_scene import BackupScene, shared_scene
from tests.support.postgresql import Installation, Templates

BACKUP_ID = re.compile(r"b-\d{8}T\d{6}Z-[0-9a-z]{4}")
LSN = re.compile(r"[0-9A-F]+/[0-9A-F]+")

TOTALS: dict[str, type] = {
    "files": int, "directories": int, "raw_bytes": int, "stored_bytes": int, "packs": int,
    "new_bytes": int, "pages_checked": int, "pages_failed": int, "files_vanished": int,
    "wal_segments": int,
}  # fmt: skip
COMPLETION: dict[str, type] = {
    "format": int, "backup_id": str, "repository_id": str, "server": str, "generation": int,
    "system_identifier": str, "kind": str, "source": str, "version_num": int,
    "segment_bytes": int, "timeline": int, "start_lsn": str, "stop_lsn": str, "started_at": str,
    "stopped_at": str, "completed_at": str, "duration_seconds": float, "label": str,
    "compression": str, "has_wal": bool, "totals": dict, "manifest_bytes": int,
    "manifest_digest": str, "worst": str, "finding_count": int, "suite": str,
    "tool_version": str, "restore_id": str, "capture_id": str, "annotations": dict, "base_id": str,
    "references": list, "change_source": str, "run_heads": list,
}  # fmt: skip
PLAN: dict[str, type] = {
    "server": str, "repository": str, "kind": str, "source": str, "data_directory": str,
    "checkpoint": str, "compression": str, "level": int, "workers": int, "with_wal": bool,
    "base_id": str, "uses_summaries": bool, "bytes_per_second": int, "checks_pages": bool,
    "reasons": list, "findings": list,
}  # fmt: skip
LINE: dict[str, type] = {
    "backup_id": str, "kind": str, "stopped_at": str, "duration_seconds": float,
    "total_bytes": int, "stored_bytes": int, "timeline": int, "stop_lsn": str, "has_wal": bool,
    "result": str, "state": str, "damage": str,
}  # fmt: skip


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(pg_templates, installations[18], tmp_path_factory) as scene:
        yield scene


def assert_shape(record: dict[str, Any], fields: dict[str, type]) -> None:
    assert {name: type(value) for name, value in record.items()} == fields


def document(scene: BackupScene, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scene.run(*words, "--json"))
    return found


def test_the_first_and_the_second_backup(scene: BackupScene) -> None:
    assert document(scene, "backups", "list") == {
        "schema": "pgrecall/backups-list/1",
        "server": "main",
        "repository": "one",
        "backups": [],
        "findings": [],
    }
    first = document(scene, "backup", "--yes")
    assert set(first) == {"schema", "plan", "backup", "findings"}
    assert first["schema"] == "pgrecall/backup/1"
    assert_shape(first["plan"], PLAN)
    assert_shape(first["backup"], COMPLETION)
    assert_shape(first["backup"]["totals"], TOTALS)
    assert BACKUP_ID.fullmatch(first["backup"]["backup_id"])
    assert LSN.fullmatch(first["backup"]["stop_lsn"])
    assert datetime.fromisoformat(first["backup"]["stopped_at"]).tzinfo is not None
    assert first["backup"]["worst"] == "ok"

    text = scene.run("backup", "--with-wal", "--compression", "lz4", "--workers", "1", "--yes")
    (second,) = set(BACKUP_ID.findall(text)) - {first["backup"]["backup_id"]}
    listed = document(scene, "backups", "list")
    assert listed["schema"] == "pgrecall/backups-list/1"
    for line in listed["backups"]:
        assert_shape(line, LINE)
    assert [line["backup_id"] for line in listed["backups"]] == [
        first["backup"]["backup_id"],
        second,
    ]
    assert [line["has_wal"] for line in listed["backups"]] == [False, True]

    table = scene.run("backups", "list")
    rows = [line for line in table.splitlines() if BACKUP_ID.search(line)]
    assert len(rows) == 2
    assert rows[0].startswith(first["backup"]["backup_id"])
    assert "MiB" in rows[0]

    shown = document(scene, "backups", "show", second)
    assert set(shown) == {
        *("schema", "backup", "version", "data_directory", "tablespaces", "findings", "marks"),
    }
    assert shown["schema"] == "pgrecall/backups-show/1"
    assert_shape(shown["backup"], COMPLETION)
    assert shown["backup"]["compression"] == "lz4:1"
    assert shown["version"].startswith("18.")
    assert shown["data_directory"] == str(scene.server.pgdata)
    text = scene.run("backups", "show", second)
    assert second in text
    assert str(scene.server.pgdata) in text


def test_a_dry_run_changes_nothing(scene: BackupScene) -> None:
    before = [info.key for info in scene.store.list("")]
    shown = document(scene, "backup", "--dry-run")
    assert set(shown) == {"schema", "plan", "backup", "findings"}
    assert shown["backup"] is None
    assert_shape(shown["plan"], PLAN)
    text = scene.run("backup", "--dry-run", "--level", "7")
    assert "incremental" in text
    assert str(scene.server.pgdata) in text
    assert [info.key for info in scene.store.list("")] == before


def test_what_goes_wrong_has_a_status_and_a_hint(scene: BackupScene) -> None:
    missing = "b-20200101T000000Z-0000"
    errors = scene.run("backups", "show", missing, status=BackupNotFoundError.exit_status)
    assert missing in errors
    assert "HINT: 'pgrecall backups list'" in errors
    scene.run("backups", "show", "nonsense", status=UsageError.exit_status)
    scene.run("backup", "--level", "99", status=SettingsError.exit_status)
    scene.run("backup", "--compression", "zip", status=UsageError.exit_status)
    scene.run("backups", "list", "--server", "other", status=SettingsError.exit_status)
    process = scene.start("backups", "show", missing, "--json")
    output, errors = process.communicate(timeout=60)
    failure = json.loads(output or errors)
    assert failure["error"]["code"] == "backup-not-found"
    assert process.returncode == BackupNotFoundError.exit_status


def test_a_server_that_is_down(scene: BackupScene) -> None:
    """No backup then; the list needs no server."""
    before = scene.ids()
    scene.server.stop()
    try:
        scene.run("backup", "--yes", status=PostgresUnreachableError.exit_status)
        assert [line["backup_id"] for line in document(scene, "backups", "list")["backups"]] == (
            before
        )
    finally:
        scene.server.start()


def test_a_damaged_record_is_shown_beside_the_others(scene: BackupScene) -> None:
    damaged = scene.taken().backup_id
    others = [backup_id for backup_id in scene.ids() if backup_id != damaged]
    path = scene.repository / layout.complete_key("main", damaged)
    path.write_bytes(path.read_bytes().replace(b'"timeline":1', b'"timeline":2'))
    listed = document(scene, "backups", "list")
    assert [line["backup_id"] for line in listed["backups"]] == others
    assert [finding["subject"] for finding in listed["findings"]] == [damaged]
    assert damaged in scene.run("backups", "list")
    scene.run("backups", "show", damaged, status=CorruptObjectError.exit_status)
    path.unlink()
    assert document(scene, "backups", "list")["findings"] == []
