"""Damaged, torn and new pages of real servers, as a backup sees them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pgrecall.errors import (
    BackupDamagedError,
)
from pgrecall.model.lsn import Lsn
from tests.support.backup_scene import BackupScene, Hooks, relation

PAGE = 8192


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_damaged_page_is_named_and_the_backup_kept(scene: BackupScene) -> None:
    server = scene.server
    server.sql("CREATE TABLE damaged AS SELECT n, repeat('d', 900) FROM generate_series(1, 100) n")
    path = relation(server, "damaged")
    server.stop()
    damage(server.pgdata / path, 3 * PAGE + 4321)
    damage(server.pgdata / path, 5 * PAGE + 4321)
    server.start()
    output = scene.run(
        "backup", "--with-wal", "--json", "--yes", status=BackupDamagedError.exit_status
    )
    document = json.loads(output)
    (finding,) = document["findings"]
    assert finding["severity"] == "fail"
    assert finding["code"] == "corrupt-pages"
    assert finding["subject"] == path
    assert "block 3 (its checksum" in finding["message"]
    assert ", 5 (its checksum" in finding["message"]
    assert document["backup"]["worst"] == "fail"
    assert document["backup"]["totals"]["pages_failed"] == 2
    (line,) = [
        line for line in scene.listed().backups if line.backup_id == document["backup"]["backup_id"]
    ]
    assert line.result == "fail"
    _, entries = scene.manifest(scene.completion(line.backup_id))
    assert entries[path.encode()].bad_blocks == (3, 5)
    # A table that is dropped while it is copied is in no backup: nothing to say of it.
    server.sql("DROP TABLE damaged")
    assert scene.taken().worst == "ok"


@pytest.mark.parametrize("where", ["during", "beyond"])
def test_the_lsn_of_a_failing_page_decides(scene: BackupScene, where: str) -> None:
    """Changed since the start: replay brings the whole page. Beyond the WAL: it is damaged."""
    server = scene.server
    server.sql("DROP TABLE IF EXISTS judged; CREATE TABLE judged AS SELECT 1 AS n; CHECKPOINT")
    path = server.pgdata / relation(server, "judged")
    before = path.read_bytes()

    def tear() -> None:
        lsn = Lsn.parse(server.value("SELECT pg_current_wal_insert_lsn()::text"))
        lsn = Lsn(lsn + (1 << 32 if where == "beyond" else 0))
        page = bytearray(before)
        page[0:8] = (lsn >> 32).to_bytes(4, "little") + (lsn & 0xFFFFFFFF).to_bytes(4, "little")
        path.write_bytes(page)

    try:
        result = scene.backup(progress=Hooks({"copy": tear}))
    finally:
        path.write_bytes(before)
    if where == "during":
        assert result.findings == ()
    else:
        (finding,) = result.findings
        assert "lies beyond the server's insert position" in finding.message
        assert finding.severity == "fail"


def test_new_pages_are_good(scene: BackupScene) -> None:
    server = scene.server
    server.sql("CREATE TABLE fresh AS SELECT 1 AS n; CHECKPOINT")
    path = server.pgdata / relation(server, "fresh")
    os.truncate(path, 10 * PAGE)
    backup = scene.taken()
    os.truncate(path, PAGE)
    assert backup.worst == "ok"
    _, entries = scene.manifest(backup)
    assert entries[os.fsencode(path.relative_to(server.pgdata))].size == 10 * PAGE
