"""``wal switch`` and ``restore-point`` on real servers: back when the WAL is durable."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from pgrecall.errors import (
    NotArchivedError,
    RestorePointTakenError,
    ServerIsStandbyError,
    UsageError,
)
from pgrecall.model.lsn import Lsn
from tests.e2e.command_line import CommandLine, Scene, objects
from tests.fault.test_receive_zero_loss import receiver, streaming_product
from tests.support.json_schema import require_valid
from tests.support.postgresql import PostgresServer, ServerFactory

NASTY = 'vor der "Änderung" o\'clock \\ 100% $x'


@pytest.fixture
def scene(capsys: pytest.CaptureFixture[str], pg_factory: ServerFactory, tmp_path: Path) -> Scene:
    server = pg_factory(segment_mib=1, autovacuum="off")
    cli = CommandLine(capsys, tmp_path / "pgrecall.toml", "main")
    return Scene(cli, server, tmp_path / "repository")


def is_stored(scene: Scene, segment: str) -> bool:
    return any(name.endswith(f"/{segment}") for name in objects(scene.repository))


def test_the_segment_is_there_when_it_returns(scene: Scene) -> None:
    scene.server.sql("CREATE TABLE t (n int)")
    current = scene.server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
    document = scene.cli("wal", "switch", "--json").document
    require_valid(document)
    assert document["schema"] == "pgrecall/wal-switch/1"
    assert (document["segment"], document["is_switched"]) == (current, True)
    assert document["durable_in"] == ["main"]
    assert is_stored(scene, current)
    assert Lsn.parse(document["end_lsn"]) <= Lsn.parse(
        scene.server.value("SELECT pg_current_wal_insert_lsn()::text")
    )


def test_nothing_was_written_since(scene: Scene) -> None:
    scene.server.sql("CREATE TABLE t (n int)")
    first = scene.cli("wal", "switch", "--json").document
    second = scene.cli("wal", "switch", "--timeout", "30", "--json")
    assert second.status == 0, second
    assert second.document["segment"] == first["segment"]
    assert not second.document["is_switched"]
    assert "nothing was written" in second.document["message"]
    assert "nothing was written" in scene.cli("wal", "switch").out


def test_a_dry_run_changes_nothing(scene: Scene) -> None:
    before = scene.server.value("SELECT pg_current_wal_insert_lsn()::text")
    outcome = scene.cli("wal", "switch", "--dry-run")
    assert outcome.status == 0
    assert "wait until it is durable" in outcome.out
    assert scene.cli("restore-point", "here", "--dry-run").status == 0
    after = scene.server.value("SELECT pg_current_wal_insert_lsn()::text")
    assert before == after


def test_a_command_that_fails_is_named_at_once(scene: Scene) -> None:
    scene.configure(archive_command="false")
    scene.server.sql("CREATE TABLE t (n int)")
    outcome = scene.cli("wal", "switch", "--timeout", "50")
    assert outcome.status == NotArchivedError.exit_status
    assert "archive_command fails" in outcome.err
    scene.configure(archive_command="true")
    scene.server.sql("CREATE TABLE t2 (n int)")
    outcome = scene.cli("wal", "switch", "--timeout", "50")
    assert outcome.status == NotArchivedError.exit_status
    assert "says that" in outcome.err


def test_a_wait_is_bounded(scene: Scene, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    scene.configure(archive_command=f"while ! test -e {flag}; do sleep 0.05; done; exit 1")
    scene.server.sql("CREATE TABLE t (n int)")
    outcome = scene.cli("wal", "switch", "--timeout", "0.5")
    flag.touch()
    assert outcome.status == NotArchivedError.exit_status
    assert "did not arrive within 0.5 seconds" in outcome.err


def test_archiving_is_off(scene: Scene) -> None:
    scene.server.configure(archive_mode="off")
    scene.server.restart()
    before = scene.server.value("SELECT pg_current_wal_insert_lsn()::text")
    for words in (("wal", "switch"), ("restore-point", "here")):
        outcome = scene.cli(*words)
        assert outcome.status == NotArchivedError.exit_status
        assert "archive_mode is off" in outcome.err
    assert scene.server.value("SELECT pg_current_wal_insert_lsn()::text") == before


def test_best_effort_is_not_waited_for_and_named(scene: Scene, tmp_path: Path) -> None:
    with scene.cli.config.open("a", encoding="utf-8") as file:
        file.write(
            '\n[repositories.spare]\nstore = "local"\nrole = "best-effort"\n'
            f'path = "{tmp_path / "absent"}"\nretries = 0\n'
        )
    scene.server.sql("CREATE TABLE t (n int)")
    outcome = scene.cli("wal", "switch", "--json")
    assert outcome.status == 0, outcome
    assert outcome.document["durable_in"] == ["main"]
    assert [found["subject"] for found in outcome.document["findings"]] == ["spare"]


def test_a_standby_says_so(scene: Scene, pg_factory: ServerFactory) -> None:
    scene.server.stop()
    (scene.server.pgdata / "standby.signal").touch()
    scene.server.start()
    for words in (("wal", "switch"), ("restore-point", "here")):
        outcome = scene.cli(*words)
        assert outcome.status == ServerIsStandbyError.exit_status
        assert "standby" in outcome.err


@pytest.mark.parametrize("name", ["before_migration", NASTY, "-x", "x" * 63])
def test_a_restore_point_and_the_way_back(scene: Scene, tmp_path: Path, name: str) -> None:
    assert scene.cli("backup", "--json").status == 0
    scene.server.sql("CREATE TABLE t AS SELECT 1 AS n")
    made = scene.cli("restore-point", "--json", "--", name)
    assert made.status == 0, made
    document = made.document
    require_valid(document)
    assert document["name"] == name
    assert document["is_recoverable"]
    assert is_stored(scene, document["segment"])
    scene.server.sql("DROP TABLE t")
    copy = tmp_path / "copy"
    command = shlex.split(document["restore_command"].replace("DIRECTORY", str(copy)))
    planned = scene.cli(*command[1:], "--dry-run", "--json")
    assert planned.status == 0, planned
    assert planned.document["plan"]["stops_at"] == f"restore point {name!r}"
    assert Lsn.parse(planned.document["plan"]["stops_at_lsn"]) < Lsn.parse(document["lsn"])


def test_a_taken_name(scene: Scene, tmp_path: Path) -> None:
    assert scene.cli("backup", "--json").status == 0
    assert scene.cli("restore-point", "twice").status == 0
    scene.server.sql("CREATE TABLE t AS SELECT 1 AS n")
    outcome = scene.cli("restore-point", "twice")
    assert outcome.status == RestorePointTakenError.exit_status
    assert "archived already" in outcome.err
    again = scene.cli("restore-point", "twice", "--allow-taken", "--json").document
    assert again["is_recoverable"]
    words = shlex.split(again["restore_command"])
    assert words[2:5] == ["--to-lsn", again["lsn"], "--exclusive"]
    scene.server.sql("DROP TABLE t")
    assert scene.cli("wal", "switch").status == 0
    copy = restored(scene, tmp_path / "copy", words[1:5])
    assert copy.value("SELECT n FROM t") == 1
    copy.stop()


def restored(scene: Scene, directory: Path, words: list[str]) -> PostgresServer:
    outcome = scene.cli(*words, "--target-dir", str(directory), "--yes", "--json")
    assert outcome.status == 0, outcome
    copy = PostgresServer(scene.server.installation, directory)
    copy.configure(unix_socket_directories=copy.host)
    copy.start()
    copy.wait_until(lambda: not copy.value("SELECT pg_is_in_recovery()"), "it is open")
    return copy


@pytest.mark.parametrize("name", ["", "x" * 64, "ä" * 32])
def test_a_name_that_postgresql_does_not_take(scene: Scene, name: str) -> None:
    outcome = scene.cli("restore-point", "--", name)
    assert outcome.status == UsageError.exit_status
    assert "bytes" in outcome.err


def test_streaming_alone_is_enough(pg_factory: ServerFactory, tmp_path: Path) -> None:
    """Without any archive_command: the receiver brings the segment, and the wait sees it."""
    product = streaming_product(pg_factory, tmp_path, archive_mode="off")
    server = product.server
    refused = product.cli("wal", "switch")
    assert refused.returncode == NotArchivedError.exit_status, refused
    with receiver(product):
        server.wait_until(
            lambda: server.value("SELECT count(*) FROM pg_stat_replication"), "streaming"
        )
        server.sql("CREATE TABLE t (n int)")
        finished = product.cli("wal", "switch", "--timeout", "30", "--json")
        assert finished.returncode == 0, finished
        assert product.archive().has(json.loads(finished.stdout)["segment"])
        shown = product.cli("wal", "status", "--test", "--timeout", "30", "--json")
        assert shown.returncode == 0, shown
        document = json.loads(shown.stdout)
        assert document["probe"]["durable_in"] == ["one"]
        assert [one["slot"] for one in document["receivers"]] == ["pgrecall"]
    product.close()
