"""``wal status`` on real servers: what waits, what fails and why, and the exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgrecall.errors import ServerIsStandbyError, StatusFailError, StatusWarnError
from tests.e2e.command_line import CommandLine, Scene, objects
from tests.support.json_schema import require_valid
from tests.support.postgresql import Installation, ServerFactory

MIB = 1 << 20


@pytest.fixture
def scene(capsys: pytest.CaptureFixture[str], pg_factory: ServerFactory, tmp_path: Path) -> Scene:
    server = pg_factory(segment_mib=1, autovacuum="off")
    cli = CommandLine(capsys, tmp_path / "pgrecall.toml", "main")
    scene = Scene(cli, server, tmp_path / "repository")
    server.sql("CREATE TABLE t (n int)")
    assert cli("wal", "switch").status == 0
    return scene


def status(scene: Scene, *words: str, expected: int = 0) -> dict[str, Any]:
    outcome = scene.cli("wal", "status", "--json", *words)
    assert outcome.status == expected, outcome
    require_valid(outcome.document)
    return outcome.document


def codes(document: dict[str, Any]) -> set[str]:
    return {finding["code"] for finding in document["findings"]}


def finish_segment(scene: Scene) -> None:
    scene.server.sql("SELECT pg_logical_emit_message(true, 'test', 'x')")
    scene.server.sql("SELECT pg_switch_wal()")


def test_all_is_well(scene: Scene) -> None:
    document = status(scene)
    assert document["schema"] == "pgrecall/wal-status/1"
    assert (document["role"], document["result"]) == ("primary", "ok")
    current = scene.server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    assert document["segment"] == current
    assert document["pending"]["segments"] == 0
    assert document["lag"]["waiting_seconds"] == 0
    assert 0 <= document["lag"]["behind_bytes"] < MIB
    (repository,) = document["repositories"]
    assert repository["newest_segment"] == document["archiver"]["last_archived_file"]
    assert document["agent"] == {"is_running": False, "pid": None, "has_socket": False}
    assert scene.cli("wal", "status").status == 0


def test_every_version(
    capsys: pytest.CaptureFixture[str],
    installation: Installation,
    pg_factory: ServerFactory,
    tmp_path: Path,
) -> None:
    server = pg_factory(installation, segment_mib=1, autovacuum="off")
    cli = CommandLine(capsys, tmp_path / "pgrecall.toml", "main")
    scene = Scene(cli, server, tmp_path / "repository")
    server.sql("CREATE TABLE t (n int)")
    server.sql("SELECT pg_create_physical_replication_slot('kept', true)")
    first = cli("wal", "switch", "--timeout", "30", "--json").document
    idle = cli("wal", "switch", "--timeout", "30", "--json").document
    assert (first["is_switched"], idle["is_switched"]) == (True, False)
    assert idle["segment"] == first["segment"]
    point = cli("restore-point", "here", "--timeout", "30", "--json")
    assert point.status == 0, point
    assert not point.document["is_recoverable"]  # there is no backup
    document = status(scene, "--test", "--reset-stats", expected=StatusWarnError.exit_status)
    assert codes(document) == {"slot-inactive"}
    assert document["probe"]["durable_in"] == ["main"]
    assert document["pending"]["segments"] == 0


def test_a_failure_and_its_cause(scene: Scene) -> None:
    right = scene.server.value("SHOW archive_command")
    scene.configure(archive_command=right.replace("--server main", "--server shop"))
    finish_segment(scene)
    scene.server.wait_until(
        lambda: scene.server.value("SELECT failed_count FROM pg_stat_archiver") > 0, "it fails"
    )
    document = status(scene, expected=StatusFailError.exit_status)
    (failing,) = (one for one in document["findings"] if one["code"] == "archiver-failing")
    assert "no server 'shop'" in failing["message"] or "shop" in failing["message"]
    assert "archive-command" in codes(document)
    assert document["pending"]["segments"] == 1
    assert document["pending"]["oldest"] == document["archiver"]["last_failed_file"]
    assert document["lag"]["waiting_seconds"] > 0
    people = scene.cli("wal", "status")
    assert people.status == StatusFailError.exit_status
    assert "HINT:" in people.out


def test_bounds(scene: Scene) -> None:
    scene.configure(archive_command="")
    finish_segment(scene)
    finish_segment(scene)
    scene.server.wait_until(
        lambda: status(scene, expected=StatusFailError.exit_status)["pending"]["segments"] == 2,
        "two segments wait",
    )
    found = status(scene, "--warn-segments", "1", expected=StatusFailError.exit_status)
    assert "archive-lag-segments" in codes(found)
    found = status(scene, "--fail-bytes", str(MIB), expected=StatusFailError.exit_status)
    assert {"archive-command", "archive-lag-bytes"} <= codes(found)
    found = status(scene, "--warn-seconds", "0", expected=StatusFailError.exit_status)
    assert "archive-lag-seconds" in codes(found)
    assert "archive-lag-seconds" not in codes(
        status(scene, "--fail-seconds", "5000", expected=StatusFailError.exit_status)
    )


def test_a_warning_has_its_own_status(scene: Scene) -> None:
    scene.server.sql("SELECT pg_create_physical_replication_slot('forgotten', true)")
    document = status(scene, expected=StatusWarnError.exit_status)
    assert codes(document) == {"slot-inactive"}
    (slot,) = document["slots"]
    assert (slot["name"], slot["is_active"]) == ("forgotten", False)


def test_a_probe_goes_the_whole_way(scene: Scene) -> None:
    before = objects(scene.repository)
    assert status(scene, "--test", "--dry-run")["probe"] is None
    assert objects(scene.repository) == before
    probe = status(scene, "--test")["probe"]
    assert probe["durable_in"] == ["main"]
    added = {name.rpartition("/")[2] for name in set(objects(scene.repository)) - set(before)}
    assert added == {probe["segment"]}


@pytest.mark.parametrize(("command", "words"), [("false", "fails"), ("true", "says that")])
def test_a_probe_that_does_not_arrive(scene: Scene, command: str, words: str) -> None:
    scene.configure(archive_command=command)
    document = status(scene, "--test", "--timeout", "30", expected=StatusFailError.exit_status)
    (found,) = (one for one in document["findings"] if one["code"] == "probe-failed")
    assert words in found["message"]
    assert document["probe"] is None


def test_statistics_are_reset_after_they_were_shown(scene: Scene) -> None:
    document = status(scene, "--reset-stats", "--dry-run")
    assert not document["was_reset"]
    document = status(scene, "--reset-stats")
    assert document["was_reset"]
    assert document["archiver"]["archived_count"] > 0
    assert status(scene)["archiver"]["archived_count"] == 0


def test_a_role_that_may_not_look(scene: Scene) -> None:
    scene.server.sql("CREATE ROLE watcher LOGIN")
    text = scene.cli.config.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("user =")]
    at = next(at for at, line in enumerate(lines) if line.startswith("[servers."))
    lines.insert(at + 1, 'user = "watcher"')
    scene.cli.config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # What the role may not list, this user reads from the directory.
    document = status(scene, expected=scene.cli("wal", "status", "--json").status)
    assert document["pending"] is not None
    assert "pending-unknown" not in codes(document)


def test_a_standby(scene: Scene) -> None:
    scene.server.stop()
    (scene.server.pgdata / "standby.signal").touch()
    scene.server.start()
    document = status(scene)
    assert document["role"] == "standby"
    outcome = scene.cli("wal", "status", "--test")
    assert outcome.status == ServerIsStandbyError.exit_status


def test_a_repository_that_is_away_is_not_empty(scene: Scene) -> None:
    scene.repository.rename(scene.repository.with_name("away"))
    document = status(scene, expected=StatusFailError.exit_status)
    (repository,) = document["repositories"]
    assert repository["error"]
    assert repository["newest_segment"] == ""
