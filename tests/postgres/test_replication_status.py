"""``replication status`` of a real primary and its standby, in every version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pgrecall.app.replication_status import (
    ReplicationStatus,
    replication_facts,
    run_replication_status,
)
from tests.support.backup_scene import BackupScene
from tests.support.postgresql import Installation, PostgresServer, ServerFactory


@pytest.fixture
def pair(
    pg_factory: ServerFactory, installation: Installation, tmp_path: Path
) -> tuple[BackupScene, BackupScene]:
    """A primary, and its standby that streams as ``copy`` through a slot."""
    primary = pg_factory(installation, name="primary", start=False)
    directory = tmp_path / "standby"
    shutil.copytree(primary.pgdata, directory)
    primary.start()
    primary.sql("SELECT pg_create_physical_replication_slot('copy')")
    standby = pg_factory.adopt(directory, installation)
    (directory / "standby.signal").touch()
    conninfo = f"host={primary.host} port={primary.port} user=postgres application_name=copy"
    standby.configure(primary_conninfo=conninfo, primary_slot_name="copy")
    standby.start()
    scenes = []
    for server in (primary, standby):
        place = tmp_path / f"{server.pgdata.name}-scene"
        place.mkdir()
        scenes.append(BackupScene(place, server))
    wait_for(primary, "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")
    return scenes[0], scenes[1]


def wait_for(server: PostgresServer, query: str) -> None:
    server.wait_until(lambda: server.value(query), query)


def status(scene: BackupScene, **bounds: float) -> ReplicationStatus:
    return run_replication_status(scene.context(), bounds)


def codes(found: ReplicationStatus) -> set[tuple[str, str]]:
    return {(one.severity, one.code) for one in found.findings}


def test_a_primary_and_its_standby(
    pair: tuple[BackupScene, BackupScene], installation: Installation
) -> None:
    first, second = pair
    primary, standby = first.server, second.server
    wait_for(standby, "SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()")
    found = status(first)
    (one,) = found.standbys
    assert (found.role, one.name, one.slot, one.state) == ("primary", "copy", "copy", "streaming")
    assert (one.sync_state, found.result) == ("async", "ok")
    assert {(slot.name, slot.is_active) for slot in found.slots} == {("copy", True)}
    facts = replication_facts(first.context())
    assert (facts["streaming"], facts["missing"], facts["lag_bytes"]) == (1, 0, 0)

    there = status(second)
    assert there.role == "standby"
    assert there.receiving is not None
    assert (there.receiving.status, there.receiving.slot) == ("streaming", "copy")
    assert there.result == "ok"

    standby.sql("SELECT pg_wal_replay_pause()")
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS n")
    end = str(primary.value("SELECT pg_current_wal_flush_lsn()"))
    wait_for(standby, f"SELECT pg_last_wal_receive_lsn() >= '{end}'")
    behind = status(second, warn_bytes=1, fail_bytes=1000)
    assert behind.receiving is not None
    assert int(behind.receiving.behind_bytes or 0) > 1000
    assert codes(behind) >= {("warn", "replay-paused"), ("fail", "standby-lag-bytes")}
    wait_for(primary, f"SELECT flush_lsn >= '{end}' FROM pg_stat_replication")
    lagging = status(first, fail_bytes=1000)
    assert codes(lagging) == {("fail", "standby-lag-bytes")}
    assert int(lagging.standbys[0].flush_lag_bytes or 0) < 1000
    standby.sql("SELECT pg_wal_replay_resume()")


def test_a_standby_that_is_missing_ends_with_73(pg_factory: ServerFactory, tmp_path: Path) -> None:
    server = pg_factory()
    scene = BackupScene(tmp_path, server)
    server.sql("SELECT pg_create_physical_replication_slot('kept', true)")
    with scene.config.open("a") as file:
        file.write('[replication]\nstandbys = ["east"]\n')
    process = scene.start("replication", "status", "--json")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 73, errors
    found: dict[str, Any] = json.loads(output)
    assert {(one["code"], one["subject"]) for one in found["findings"]} == {
        ("standby-missing", "east"),
        ("slot-inactive", "kept"),
    }
    server.sql("SELECT pg_drop_replication_slot('kept')")
    server.sql("CREATE ROLE watcher LOGIN")
    settings = scene.config.read_text().replace('user = "postgres"', 'user = "watcher"')
    scene.config.write_text(settings.replace('standbys = ["east"]', ""))
    assert scene.run("replication", "status").startswith("server")
