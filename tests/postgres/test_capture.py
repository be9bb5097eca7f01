"""Captures of a real server: what they hold, what they leave out, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.agent.configuration import ConfigurationWatch
from pgrecall.app.agent import Agent
from pgrecall.app.runs import show_run
from pgrecall.model.captures import CaptureFacts
from pgrecall.postgres.capturing import capture_facts
from pgrecall.postgres.connection import connect
from tests.support.backup_scene import BackupScene, shared_scene, wait_until
from tests.support.postgresql import Installation, PostgresServer, Templates

STRANGE = 'Größe "x" y\'z'
QUOTED = '"' + STRANGE.replace('"', '""') + '"'
SECRET = "Rumpelstilzchen-4711"


def fill(server: PostgresServer, tablespace: Path) -> None:
    tablespace.mkdir()
    server.sql(f"CREATE ROLE {QUOTED} LOGIN PASSWORD '{SECRET}'")
    server.sql(f"CREATE ROLE clerk; GRANT clerk TO {QUOTED} WITH ADMIN OPTION")
    server.sql(f"CREATE DATABASE {QUOTED} OWNER {QUOTED}")
    server.sql(f"ALTER ROLE clerk SET app.api_key = '{SECRET}'")
    server.sql("ALTER ROLE clerk SET work_mem = '7MB'")
    server.sql(f"CREATE TABLESPACE {QUOTED} LOCATION '{tablespace}'")
    server.sql("SELECT pg_create_physical_replication_slot('standby_1')")
    server.sql(f"CREATE TABLE {QUOTED} (id int)")
    server.sql(f"CREATE PUBLICATION {QUOTED} FOR TABLE {QUOTED}")
    server.sql(
        f"CREATE SUBSCRIPTION {QUOTED} CONNECTION 'host=127.0.0.1 password={SECRET}'"
        " PUBLICATION one WITH (connect = false)"
    )
    server.sql(f"ALTER SYSTEM SET primary_conninfo = 'host=other password={SECRET}'")
    with (server.pgdata / "pg_hba.conf").open("a") as rules:
        rules.write(f'host all all 10.9.0.0/16 ldap ldapserver=x "ldapbindpasswd=a {SECRET}"\n')


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(pg_templates, installations[18], tmp_path_factory) as scene:
        fill(scene.server, scene.directory / "space")
        yield scene


def captured(scene: BackupScene) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(scene.run("capture", "--json"))
    return result


def facts_of(scene: BackupScene, user: str = "", *, with_secrets: bool = False) -> CaptureFacts:
    context = scene.context()
    with connect(
        context.server, application_name="test", purpose="test", environment=context.environment
    ) as connection:
        if user:
            connection.rows(f"SET ROLE {user}")
        return capture_facts(connection, with_secrets=with_secrets)


def test_a_plain_repository_gets_everything_but_secrets(scene: BackupScene) -> None:
    made = captured(scene)
    shown = json.loads(scene.run("captures", "show", made["capture_id"], "--json"))
    facts = shown["capture"]["facts"]
    assert SECRET not in json.dumps(shown)
    assert "SCRAM-SHA-256$" not in json.dumps(shown)
    assert {Path(file["path"]).name for file in facts["files"]} >= {
        "postgresql.conf",
        "postgresql.auto.conf",
        "pg_hba.conf",
        "pg_ident.conf",
    }
    roles = {role["name"]: role for role in facts["roles"]}
    assert roles[STRANGE]["member_of"] == ["clerk WITH ADMIN OPTION"]
    assert STRANGE in {one["name"] for one in facts["databases"] if one["owner"] == STRANGE}
    assert {one["name"]: one["is_withheld"] for one in facts["scoped_settings"]} == {
        "app.api_key": True,
        "work_mem": False,
    }
    assert facts["publications"][0]["tables"] == ["public." + QUOTED]
    assert facts["subscriptions"][0]["name"] == STRANGE
    assert {"roles", "settings", "subscriptions"} <= {
        one["subject"] for one in made["findings"] if one["code"] == "capture-withheld"
    }


def test_what_is_in_the_store_holds_no_secret(scene: BackupScene) -> None:
    key = captured(scene)["capture_id"]
    (info,) = [one for one in scene.store.list("servers/") if key in one.key]
    assert SECRET.encode() not in scene.store.read(info.key)


def test_secrets_go_where_they_are_encrypted(scene: BackupScene) -> None:
    facts = facts_of(scene, with_secrets=True)
    assert {role.name for role in facts.roles if role.password} >= {STRANGE}
    assert SECRET in facts.subscriptions[0].connection
    assert not any(one.code == "capture-withheld" for one in facts.findings)
    (auto,) = [one for one in facts.files if one.path.endswith("postgresql.auto.conf")]
    assert SECRET in auto.content


def test_what_has_not_changed_is_stored_once(scene: BackupScene) -> None:
    first = captured(scene)
    again = captured(scene)
    assert (again["capture_id"], again["is_new"]) == (first["capture_id"], False)
    scene.server.sql("CREATE ROLE one_more")
    changed = captured(scene)
    assert changed["is_new"]
    listed = json.loads(scene.run("captures", "list", "--json"))["captures"]
    assert [one["capture_id"] for one in listed][-2:] == [
        first["capture_id"],
        changed["capture_id"],
    ]


def test_sql_makes_things_again(scene: BackupScene) -> None:
    facts = facts_of(scene)
    (space,) = facts.tablespaces
    scene.server.sql(f"DROP TABLESPACE {QUOTED}")
    scene.server.sql(space.sql)
    (slot,) = [one for one in facts.slots if one.name == "standby_1"]
    scene.server.sql("SELECT pg_drop_replication_slot('standby_1')")
    scene.server.sql(slot.sql)
    assert facts_of(scene) == facts


def test_a_role_without_rights_is_told_what_is_missing(scene: BackupScene) -> None:
    facts = facts_of(scene, "clerk", with_secrets=True)
    assert facts.files == ()
    assert {role.password for role in facts.roles} == {""}
    missing = {one.subject: one.hint for one in facts.findings if one.code == "capture-rights"}
    assert set(missing) == {"files", "roles", "subscriptions"}
    assert "GRANT" in missing["files"]


def test_verify_reads_captures_and_expire_lets_them_be(scene: BackupScene) -> None:
    made = captured(scene)
    scene.run("backup", "--yes")
    scene.run("verify")
    scene.run("check")
    scene.run("expire", "--dry-run")
    (info,) = [one for one in scene.store.list("servers/") if made["capture_id"] in one.key]
    path = Path(scene.store.root) / info.key
    whole = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(whole.replace(b"standby_1", b"standby_2"))
    try:
        scene.run("verify", status=43)
    finally:
        path.write_bytes(whole)


def test_every_version_can_be_captured(
    pg_templates: Templates, installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with shared_scene(pg_templates, installation, tmp_path_factory) as scene:
        scene.server.sql("SELECT pg_create_physical_replication_slot('standby_1')")
        facts = facts_of(scene)
        assert [slot.name for slot in facts.slots] == ["standby_1"]
        assert bool(facts.databases[0].locale_provider) == (facts.version_num >= 150000)


def test_differences_between_captures_and_from_the_living_server(scene: BackupScene) -> None:
    first = captured(scene)["capture_id"]
    scene.server.sql("ALTER SYSTEM SET work_mem = '9MB'")
    with (scene.server.pgdata / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 10.8.0.0/16 reject\n")
    scene.server.sql("SELECT pg_reload_conf()")
    scene.server.sql(f"CREATE ROLE later PASSWORD '{SECRET}'")
    live = json.loads(scene.run("captures", "diff", "--live", "--json"))
    kinds = {(one["kind"], one["change"]) for one in live["differences"]}
    assert {("hba", "added"), ("roles", "added"), ("files", "added")} <= kinds
    assert live["after"]["capture_id"] == ""
    second = captured(scene)["capture_id"]
    scene.run("captures", "diff", first, "--exit-code", status=66)
    found = json.loads(scene.run("captures", "diff", first, "--json"))
    assert found["differences"] == live["differences"]
    assert (found["before"]["capture_id"], found["after"]["capture_id"]) == (first, second)
    assert scene.run("captures", "diff", "--live", "--exit-code").endswith("nothing differs\n")
    shown = scene.run("captures", "diff", "--at", found["before"]["at"], "latest")
    assert "\nhba\n" in shown
    assert "+ host all all 10.8.0.0/16 reject" in shown
    assert SECRET not in shown
    for words in (("m-20200101T000000Z-aaaa",), ("--at", "2020-01-01 00:00+00"), ("a", "b", "c")):
        scene.run("captures", "diff", *words, status=2)


def newest(scene: BackupScene) -> str:
    """The id of the capture that equals the server, which the last command must have made."""
    made = captured(scene)
    assert not made["is_new"]
    return str(made["capture_id"])


def test_a_backup_names_the_capture_that_was_made_before_it(scene: BackupScene) -> None:
    for source in ("local", "stream"):
        before = captured(scene)["capture_id"]
        scene.server.sql(f"CREATE ROLE before_{source}")
        result = json.loads(scene.run("backup", "--yes", "--source", source, "--json"))
        assert result["backup"]["capture_id"] == newest(scene) != before
        assert not [one for one in result["findings"] if one["code"] == "capture-failed"]
    listed = json.loads(scene.run("runs", "list", "--command", "backup", "--json"))["runs"]
    run = show_run(scene.context(), listed[-1]["run_id"]).run
    assert run.capture_id == result["backup"]["capture_id"]


def test_a_capture_that_fails_is_a_warning_of_the_backup(scene: BackupScene) -> None:
    made = captured(scene)["capture_id"]
    (info,) = [one for one in scene.store.list("servers/") if one.key.endswith(f"{made}.json")]
    directory = (Path(scene.store.root) / info.key).parent
    aside = directory.with_name("aside")
    directory.rename(aside)
    directory.write_text("in the way")
    try:
        result = json.loads(scene.run("backup", "--yes", "--json"))
    finally:
        directory.unlink()
        aside.rename(directory)
    assert result["backup"]["capture_id"] == ""
    (finding,) = [one for one in result["findings"] if one["code"] == "capture-failed"]
    assert "pgrecall capture" in finding["hint"]


def test_what_changes_the_server_captures_it_before(scene: BackupScene) -> None:
    captured(scene)
    scene.server.sql("SELECT pg_create_physical_replication_slot('going')")
    dropped = json.loads(scene.run("wal", "slots", "--drop", "going", "--yes", "--json"))
    shown = json.loads(scene.run("captures", "show", dropped["capture_id"], "--json"))
    assert "going" in {slot["name"] for slot in shown["capture"]["facts"]["slots"]}


def test_a_server_can_be_left_out(scene: BackupScene) -> None:
    before = captured(scene)["capture_id"]
    scene.server.sql("CREATE ROLE unseen")
    text = scene.config.read_text()
    scene.config.write_text(
        text.replace("[repositories.one]", "captures = false\n[repositories.one]")
    )
    try:
        result = json.loads(scene.run("backup", "--yes", "--json"))
    finally:
        scene.config.write_text(text)
    assert result["backup"]["capture_id"] == ""
    listed = json.loads(scene.run("captures", "list", "--json"))["captures"]
    assert listed[-1]["capture_id"] == before


def test_the_agent_captures_what_somebody_else_has_changed(scene: BackupScene) -> None:
    text = scene.config.read_text()
    scene.config.write_text(f'{text}\n[agent]\ndirectory = "{scene.directory / "agent"}"\n')
    try:
        agent = Agent(scene.context())
    finally:
        scene.config.write_text(text)
    (blueprint,) = [one for one in agent._blueprints(agent._place) if one.name == "configuration"]
    watch = blueprint.make({})
    assert isinstance(watch, ConfigurationWatch)
    try:
        watch.look()
        captured(scene)
        scene.server.sql("ALTER ROLE clerk SET work_mem = '6MB'")
        assert watch.look()
    finally:
        watch.close()
    shown = json.loads(scene.run("captures", "show", newest(scene), "--json"))
    assert "6MB" in {one["value"] for one in shown["capture"]["facts"]["scoped_settings"]}


def test_captures_are_held_expire_come_back_and_are_purged(scene: BackupScene) -> None:
    made = []
    for name in ("first", "second", "third"):
        scene.server.sql(f"CREATE ROLE retained_{name}")
        made.append(captured(scene)["capture_id"])
    first, second, _ = made
    scene.run("hold", "add", first, "--reason", "audit")
    result = json.loads(scene.run("expire", first, second, "--yes", "--json"))
    assert result["expired"] == [second]

    def listed() -> set[str]:
        found = json.loads(scene.run("captures", "list", "--json"))["captures"]
        return {one["capture_id"] for one in found}

    def is_purged() -> bool:
        scene.run("purge", "--yes")
        return not any(one.key.endswith(f"{second}.json") for one in scene.store.list("servers/"))

    assert second not in listed()
    scene.run("expire", "--undo", second)
    assert second in listed()
    scene.run("expire", second, "--yes")
    text = scene.config.read_text()
    grace = "[retention]\ngrace_seconds = 6\nlease_seconds = 5\n"
    scene.config.write_text(f"{text}{grace}")
    try:
        wait_until(is_purged, "the grace of a capture is over, and it is purged")
    finally:
        scene.config.write_text(text)
    scene.run("captures", "show", second, status=2)
    assert first in listed()
