"""Parts of a capture brought back to a real server, checked, and taken back again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.app.capturing import capture_session
from pgrecall.model.capture_restore import PARTS
from pgrecall.postgres.capture_restoring import create_subscription, drop_subscription
from pgrecall.postgres.capturing import capture_facts
from tests.support.backup_scene import BackupScene, shared_scene
from tests.support.postgresql import Installation, Templates

RULE = "host all all 10.9.0.0/16 reject"


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(
        pg_templates, installations[18], tmp_path_factory, wal_level="logical"
    ) as scene:
        yield scene


def ran(scene: BackupScene, *words: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(scene.run(*words, "--yes", "--json"))
    return result


def setting(scene: BackupScene, name: str) -> str:
    return str(scene.server.value("SELECT reset_val FROM pg_settings WHERE name = %s", name))


def captured(scene: BackupScene) -> str:
    return str(json.loads(scene.run("capture", "--json"))["capture_id"])


def reload(scene: BackupScene) -> None:
    scene.server.sql("SELECT pg_reload_conf()")


def test_settings_go_back_by_alter_system_and_undo_brings_them_forth(scene: BackupScene) -> None:
    scene.server.sql("ALTER SYSTEM SET work_mem = '7MB'")
    scene.server.sql("ALTER SYSTEM SET search_path = '$user', 'a b', public")
    reload(scene)
    capture = captured(scene)
    for change in ("work_mem = '9MB'", "max_connections = 77", "statement_timeout = '5min'"):
        scene.server.sql(f"ALTER SYSTEM SET {change}")
    scene.server.sql("ALTER SYSTEM RESET search_path")
    reload(scene)
    connections = setting(scene, "max_connections")
    dry = scene.run("captures", "restore", capture, "--only", "settings", "--dry-run")
    assert "work_mem" in dry
    assert setting(scene, "work_mem") == "9216"
    result = ran(scene, "captures", "restore", capture, "--only", "settings")
    actions = {step["name"]: step["action"] for step in result["plan"]["steps"]}
    assert (actions["work_mem"], actions["search_path"]) == ("set", "set")
    assert actions["statement_timeout"] == "reset"
    assert setting(scene, "work_mem") == "7168"
    assert setting(scene, "search_path") == '"$user", "a b", public'
    assert setting(scene, "statement_timeout") == "0"
    shown = scene.run("runs", "show", result["run_id"], "--json")
    assert json.loads(shown)["run"]["capture_id"] == result["before_id"]

    scene.server.sql("ALTER SYSTEM SET work_mem = '3MB'")  # somebody else
    undone = ran(scene, "undo", result["run_id"])
    assert [one["subject"] for one in undone["findings"]] == ["work_mem"]
    reload(scene)
    assert setting(scene, "work_mem") == "3072"
    assert setting(scene, "statement_timeout") == "300000"
    assert setting(scene, "search_path") == '"$user", public'
    assert setting(scene, "max_connections") == connections
    scene.server.sql("ALTER SYSTEM RESET ALL")
    reload(scene)


def test_rules_are_written_and_undone(scene: BackupScene) -> None:
    hba = scene.server.pgdata / "pg_hba.conf"
    with hba.open("a") as file:
        file.write(RULE + "\n")
    capture, then = captured(scene), hba.read_text()
    now = then.replace(RULE, "# gone")
    hba.write_text(now)
    result = ran(scene, "captures", "restore", capture, "--only", "hba", "--only", "ident")
    assert hba.read_text() == then
    assert [step["part"] for step in result["plan"]["steps"]] == ["hba"]
    assert {one["after"] for one in result["plan"]["differences"]} == {RULE}
    undone = ran(scene, "undo", result["run_id"])
    assert undone["findings"] == []
    assert hba.read_text() == now


@pytest.mark.parametrize("rules", ["nonsense\n", "local all all reject\nhost all all all reject\n"])
def test_rules_that_do_not_parse_or_keep_us_out_are_put_back(
    scene: BackupScene, rules: str
) -> None:
    hba = scene.server.pgdata / "pg_hba.conf"
    good = hba.read_text()
    hba.write_text(rules)
    try:
        capture = captured(scene)
    finally:
        hba.write_text(good)
    errors = scene.run("captures", "restore", capture, "--only", "hba", "--yes", status=67)
    assert errors == ""
    assert hba.read_text() == good
    scene.run("capture")


def test_slots_tablespaces_and_subscriptions_are_made_and_none_is_dropped(
    scene: BackupScene, tmp_path: Path
) -> None:
    space = scene.directory / "space"
    space.mkdir()
    server = scene.server
    server.sql(f"CREATE TABLESPACE room LOCATION '{space}'")
    server.sql("SELECT pg_create_physical_replication_slot('standby_1')")
    server.sql("SELECT pg_create_logical_replication_slot('feed', 'test_decoding')")
    server.sql(
        "CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1' PUBLICATION one WITH (connect = false)"
    )
    capture = captured(scene)
    server.sql("DROP TABLESPACE room")
    server.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    server.sql("ALTER SUBSCRIPTION sub SET (slot_name = NONE)")
    server.sql("DROP SUBSCRIPTION sub")
    server.sql("SELECT pg_create_physical_replication_slot('another')")
    only = [word for part in ("slots", "tablespaces", "subscriptions") for word in ("--only", part)]
    result = ran(scene, "captures", "restore", capture, *only)
    names = "SELECT slot_name FROM pg_replication_slots ORDER BY 1"
    assert server.sql(names) == [("another",), ("feed",), ("standby_1",)]
    assert server.sql("SELECT count(*) FROM pg_tablespace WHERE spcname = 'room'") == [(1,)]
    # The repository is not encrypted: how the subscription connects is not in the capture.
    assert [one["subject"] for one in result["findings"]] == ["subscriptions postgres sub"]
    again = ran(scene, "captures", "restore", capture, *only)
    assert again["outcome"] == "nothing to do"
    ran(scene, "undo", result["run_id"])
    assert server.sql(names) == [("another",)]
    (space / "file").write_text("in the way")
    left = ran(scene, "captures", "restore", capture, "--only", "tablespaces")
    assert "is not empty" in left["findings"][0]["message"]


def test_a_run_that_stops_in_the_middle_can_be_undone(scene: BackupScene) -> None:
    server = scene.server
    before = setting(scene, "work_mem")
    server.sql("SELECT pg_create_physical_replication_slot('wanted')")
    server.sql("ALTER SYSTEM SET work_mem = '11MB'")
    reload(scene)
    capture = captured(scene)
    server.sql("ALTER SYSTEM RESET work_mem")
    reload(scene)
    server.sql("SELECT pg_drop_replication_slot('wanted')")
    server.sql(
        "SELECT pg_create_physical_replication_slot('filler_' || n) FROM generate_series(1,"
        " current_setting('max_replication_slots')::int"
        " - (SELECT count(*)::int FROM pg_replication_slots)) AS n"
    )
    only = ("--only", "settings", "--only", "slots")
    process = scene.start("captures", "restore", capture, *only, "--yes", "--json")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 67, errors
    result = json.loads(output)
    assert result["outcome"] == "stopped in the middle"
    assert {one["subject"] for one in result["findings"]} == {"slots wanted"}
    server.wait_until(lambda: setting(scene, "work_mem") == "11264", "what was set counts")
    ran(scene, "undo", result["run_id"])
    assert setting(scene, "work_mem") == before
    server.sql(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        " WHERE slot_name LIKE 'filler%'"
    )


def test_a_subscription_is_made_again_disabled(scene: BackupScene) -> None:
    context, sql = scene.context(), scene.server.sql
    sql(
        "CREATE SUBSCRIPTION \"odd 'sub\" CONNECTION 'host=127.0.0.1 password=a''b'"
        ' PUBLICATION one, "two""" WITH (connect = false, slot_name = NONE)'
    )
    with capture_session(context) as connection:
        (before,) = capture_facts(connection, with_secrets=True).subscriptions
        assert drop_subscription(connection, before.name)
        assert not drop_subscription(connection, before.name)
        create_subscription(connection, before)
        assert capture_facts(connection, with_secrets=True).subscriptions == (before,)
        assert drop_subscription(connection, before.name)


def test_every_version_takes_a_capture_back(
    pg_templates: Templates, installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with shared_scene(pg_templates, installation, tmp_path_factory) as scene:
        server, hba = scene.server, scene.server.pgdata / "pg_hba.conf"
        server.sql("SELECT pg_create_physical_replication_slot('standby_1')")
        server.sql("ALTER SYSTEM SET work_mem = '7MB'")
        reload(scene)
        capture, rules = captured(scene), hba.read_text()
        server.sql("SELECT pg_drop_replication_slot('standby_1')")
        server.sql("ALTER SYSTEM SET work_mem = '9MB'")
        reload(scene)
        ident = scene.server.pgdata / "pg_ident.conf"
        hba.write_text(rules + RULE + "\n")
        mapped = ident.read_text() + "some him her\n"
        ident.write_text(mapped)
        only = [word for part in PARTS for word in ("--only", part)]
        result = ran(scene, "captures", "restore", capture, *only)
        assert result["findings"] == []
        assert setting(scene, "work_mem") == "7168"
        assert hba.read_text() == rules
        assert server.value("SELECT slot_name::text FROM pg_replication_slots") == "standby_1"
        assert ran(scene, "undo", result["run_id"])["findings"] == []
        assert setting(scene, "work_mem") == "9216"
        assert (hba.read_text(), ident.read_text()) == (rules + RULE + "\n", mapped)
        assert server.value("SELECT count(*) FROM pg_replication_slots") == 0
