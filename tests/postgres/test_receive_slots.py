"""Slots and synchronous commits: what is made, watched, refused; and wal slots."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pgrecall.check.receiving import receiving_findings
from pgrecall.errors import PostgresRightsError, SlotError, SynchronousCommitError, WalGapError
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.connection import connect
from pgrecall.postgres.slots import drop_idle_slot, list_slots
from pgrecall.wal.commands import archive_command
from tests.support.postgresql import Installation, PostgresServer, ServerFactory
from tests.support.receive_scene import PROGRAM, ReceiveScene, Running


def end_of(scene: ReceiveScene, **terms: bool) -> BaseException | None:
    """What a receiver raises that ends by itself."""
    return Running(scene.receiver(**terms)).join()


def reload(pg: PostgresServer, **settings: object) -> None:
    pg.configure(**settings)
    pg.reload()


def test_a_slot_is_made_reported_and_kept(
    pg_factory: ServerFactory, installation: Installation, tmp_path: Path
) -> None:
    pg = pg_factory(installation, segment_mib=1)
    scene = ReceiveScene(tmp_path, pg)
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(2)
        lsn = scene.current()[1]
        running.wait_flushed(lsn)
        restart = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'pgrecall'"
        pg.wait_until(lambda: Lsn.parse(str(pg.value(restart))) >= lsn, "the slot follows")
        assert running.receiver.facts()["slot_wal_status"] == "reserved"
        assert "max_slot_wal_keep_size is -1" in str(running.receiver.facts()["warnings"])
        columns = pg.sql("SELECT write_lsn, flush_lsn, replay_lsn FROM pg_stat_replication")
        # Nothing is ever said to be applied (fact 9).
        assert columns[0][2] is None
        assert columns[0][0] == columns[0][1]
    with connect(scene.server, application_name="test", purpose="test") as connection:
        (slot,) = list_slots(connection)
        assert (slot.name, slot.kind, slot.is_active) == ("pgrecall", "physical", False)
        assert slot.retained_bytes is not None
        drop_idle_slot(connection, "pgrecall")
        assert list_slots(connection) == []
        with pytest.raises(SlotError, match="has no replication slot"):
            drop_idle_slot(connection, "pgrecall")


@pytest.mark.parametrize("is_archiving", [False, True])
def test_a_lost_slot_is_named_and_the_archive_bridges_it(
    pg_factory: ServerFactory, tmp_path: Path, is_archiving: bool
) -> None:
    pg = pg_factory(
        segment_mib=1, max_slot_wal_keep_size="2MB", min_wal_size="2MB", max_wal_size="4MB"
    )
    scene = ReceiveScene(tmp_path, pg)
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(2)
        running.wait_flushed(scene.current()[1])
        assert "max_slot_wal_keep_size" not in str(running.receiver.facts()["warnings"])
    scene.write_config()
    text = scene.config.read_text().replace(
        "[servers.main]\n", f'[servers.main]\ndata_directory = "{pg.pgdata}"\n'
    )
    scene.config.write_text(text)
    real = archive_command(PROGRAM, str(scene.config), "main")
    reload(pg, archive_command=real if is_archiving else "true")
    for _ in range(12):
        scene.fill(1)
        last = scene.switch()
    pg.wait_until(
        lambda: pg.value("SELECT last_archived_wal FROM pg_stat_archiver") == last, "archived"
    )
    pg.sql("CHECKPOINT")
    pg.sql("CHECKPOINT")
    error = end_of(scene)
    assert isinstance(error, SlotError), error
    assert "is lost" in error.message
    assert "--drop pgrecall" in error.hint
    pg.sql("SELECT pg_drop_replication_slot('pgrecall')")
    if not is_archiving:
        error = end_of(scene)
        assert isinstance(error, WalGapError), error
        assert "bytes) before it was received" in error.message
        return
    with scene.receiving() as running:
        running.wait_streaming()
        name = scene.switch()
        running.wait(lambda: scene.archive().has(name), f"{name} is stored")
        assert not running.receiver.gaps


def test_archive_command_and_streaming_do_not_disturb_each_other(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    pg = pg_factory(segment_mib=1)
    scene = ReceiveScene(tmp_path, pg)
    text = scene.config.read_text().replace(
        "[servers.main]\n", f'[servers.main]\ndata_directory = "{pg.pgdata}"\n'
    )
    scene.config.write_text(text)
    reload(pg, archive_command=archive_command(PROGRAM, str(scene.config), "main"))
    with scene.receiving() as running:
        running.wait_streaming()
        for _ in range(5):
            scene.fill(1)
            last = scene.switch()
        pg.wait_until(
            lambda: pg.value("SELECT last_archived_wal FROM pg_stat_archiver") == last, "archived"
        )
        running.wait(
            lambda: not [path for path in scene.spool.iterdir() if len(path.name) == 24],
            "all is stored",
        )
        assert pg.value("SELECT failed_count FROM pg_stat_archiver") == 0


def test_remote_apply_is_refused_and_weaker_levels_are_told(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    pg = pg_factory(segment_mib=1)
    scene = ReceiveScene(tmp_path, pg, is_synchronous=True)
    pg.sql("CREATE ROLE weak")
    pg.sql("ALTER ROLE weak SET synchronous_commit = 'local'")
    with scene.receiving() as running:
        running.wait_streaming()
        running.wait(
            lambda: "does not wait for it" in str(running.receiver.facts()["warnings"]), "told"
        )
    reload(pg, synchronous_standby_names="pgrecall")
    with scene.receiving() as running:
        running.wait(
            lambda: "local for role weak" in str(running.receiver.facts()["warnings"]), "told"
        )
        pg.sql("CREATE TABLE waits AS SELECT 1")  # returns: the receiver has it
    reload(pg, synchronous_commit="remote_apply")
    error = end_of(scene)
    assert isinstance(error, SynchronousCommitError), error
    assert "the server" in error.message
    assert "synchronous_commit = on" in error.hint


def test_a_role_that_cannot_ask_whether_the_server_is_a_copy_is_refused(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    pg = pg_factory(segment_mib=1)
    pg.sql("CREATE ROLE receiver LOGIN REPLICATION")
    scene = ReceiveScene(tmp_path, pg)
    server = scene.server.replace(user="receiver")
    receiver = scene.receiver()
    receiver._server = server
    error = Running(receiver).join()
    assert isinstance(error, PostgresRightsError), error
    assert "GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file" in error.hint
    pg.sql(
        "GRANT EXECUTE ON FUNCTION"
        " pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO receiver"
    )
    receiver = scene.receiver()
    receiver._server = server
    running = Running(receiver)
    running.wait_streaming()
    running.stop()
    assert running.error is None


def test_slots_are_listed_and_dropped_by_command(pg_factory: ServerFactory, tmp_path: Path) -> None:
    pg = pg_factory(segment_mib=1)
    scene = ReceiveScene(tmp_path, pg)
    pg.sql("SELECT pg_create_physical_replication_slot('forgotten', true)")

    def slots(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, "--config", str(scene.config), "wal", "slots", *words],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    shown = slots("--json")
    assert shown.returncode == 0, shown.stdout
    listed = json.loads(shown.stdout)
    assert [slot["name"] for slot in listed["slots"]] == ["forgotten"]
    assert listed["findings"][0]["code"] == "slot-idle"
    refused = slots("--drop", "forgotten")
    assert refused.returncode == 61, refused.stderr
    shown = slots("--drop", "forgotten", "--dry-run")
    assert shown.returncode == 0
    assert "forgotten" in shown.stdout
    assert pg.value("SELECT count(*) FROM pg_replication_slots") == 1
    with scene.receiving() as running:
        running.wait_streaming()
        busy = slots("--drop", "pgrecall", "--yes")
        assert busy.returncode == SlotError.exit_status
        assert "is in use by process" in busy.stderr
    dropped = slots("--drop", "forgotten", "--yes")
    assert dropped.returncode == 0, dropped.stderr
    assert "dropped" in dropped.stdout
    absent = slots("--drop", "forgotten", "--yes")
    assert absent.returncode == SlotError.exit_status


def test_check_tells_of_the_slot_and_of_commits_that_hang(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    pg = pg_factory(segment_mib=1)
    scene = ReceiveScene(tmp_path, pg, is_synchronous=True)

    def findings() -> dict[str, str]:
        with connect(scene.server, application_name="test", purpose="test") as connection:
            found = receiving_findings(connection, scene.receive)
        return {finding.code: finding.severity for finding in found}

    assert findings() == {}
    with scene.receiving() as running:
        running.wait_streaming()
        assert findings() == {"slot-unlimited": "warn"}
        reload(pg, max_slot_wal_keep_size="100MB", synchronous_standby_names="pgrecall")
        running.wait(lambda: findings() == {"commits-received": "ok"}, "commits wait")
        reload(pg, synchronous_commit="local")
        assert findings() == {"commits-not-received": "warn"}
        pg.sql("ALTER DATABASE postgres SET synchronous_commit = 'remote_apply'")
        assert findings() == {"commits-hang": "fail"}
        pg.sql("SET synchronous_commit = local; ALTER DATABASE postgres RESET ALL")
        reload(pg, synchronous_standby_names="")
    assert findings() == {"slot-idle": "warn"}
