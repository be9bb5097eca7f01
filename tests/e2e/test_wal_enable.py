"""``wal enable``: from a fresh server to a proven archive, and back to exactly what was there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pgrecall.agent.client_file import client_path
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.errors import (
    ArchivingRefusedError,
    ConfirmationError,
    PostgresRightsError,
    PostgresUnreachableError,
    ServerIsStandbyError,
    StoreAbsentError,
    UsageError,
)
from tests.e2e.command_line import CommandLine, Outcome
from tests.support.json_schema import require_valid
from tests.support.postgresql import Installation, PostgresServer, ServerFactory, run_program

NAME = "shop 'ü' 100%"
ROLE = 'least "rights" ü'
NOTHING = {"archive_mode": "off", "wal_level": "minimal", "max_wal_senders": 0}
# Where a value stands in a file may differ; that a restart happened, too.
_ALL = (
    "SELECT name, setting, reset_val, source, sourcefile, pending_restart FROM pg_settings"
    " WHERE name NOT IN ('transaction_read_only') ORDER BY name"
)


def settings_of(server: PostgresServer) -> dict[str, Any]:
    return {row[0]: row[1:] for row in server.sql(_ALL)}


def roles_and_slots(server: PostgresServer) -> list[Any]:
    return [
        server.sql("SELECT rolname FROM pg_roles ORDER BY 1"),
        server.sql("SELECT slot_name FROM pg_replication_slots ORDER BY 1"),
        server.sql(
            "SELECT proname, proacl::text FROM pg_proc"
            " WHERE proname ~ 'backup|_wal|read_binary' ORDER BY 1, 2"
        ),
    ]


class Enabling:
    """A fresh server that archives nothing, and the command line beside it."""

    def __init__(self, cli: CommandLine, server: PostgresServer, repository: Path) -> None:
        self.cli = cli
        self.server = server
        self.repository = repository
        made = cli.init(server, repository, "--json")
        assert made.status == 0, made

    def __call__(self, *words: str) -> Outcome:
        outcome = self.cli("wal", "enable", *words)
        if "--json" in words:
            require_valid(outcome.document)
        return outcome

    def adopt(self) -> None:
        """pg_ctl has started another postmaster, which is no child; the old one is reaped."""
        self.server.wait_exit()

    def records(self) -> list[dict[str, Any]]:
        return [
            json.loads(path.read_text())
            for path in sorted(self.repository.glob("servers/*/enablements/*.json"))
        ]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / 'it\'s 100%p "ü"'
    made.mkdir()
    return made


def scene_of(
    capsys: pytest.CaptureFixture[str], directory: Path, server: PostgresServer
) -> Enabling:
    cli = CommandLine(capsys, directory / "pg recall.toml", NAME)
    return Enabling(cli, server, directory / "repository")


@pytest.fixture
def enabling(
    capsys: pytest.CaptureFixture[str], pg_factory: ServerFactory, directory: Path
) -> Enabling:
    server = pg_factory(name="pg data 'ü'", segment_mib=1, **NOTHING)  # type: ignore[arg-type]
    return scene_of(capsys, directory, server)


def test_from_nothing_to_a_proven_archive_and_back(
    installation: Installation,
    capsys: pytest.CaptureFixture[str],
    pg_factory: ServerFactory,
    directory: Path,
) -> None:
    server = pg_factory(installation, name="pg data 'ü'", segment_mib=1, **NOTHING)  # type: ignore[arg-type]
    server.sql("ALTER SYSTEM SET archive_timeout = '3min'")
    server.reload()
    enabling = scene_of(capsys, directory, server)
    before, made_before = settings_of(server), roles_and_slots(server)
    auto_before = (server.pgdata / "postgresql.auto.conf").read_text()

    done = enabling("--yes", "--restart", "--write-hba", "--slot", "--role", ROLE, "--json")
    assert done.status == 0, done
    enabling.adopt()
    document = done.document
    assert (document["outcome"], document["pending_restart"]) == ("enabled", [])
    assert document["capture_id"].startswith("m-")
    steps = {step["what"]: step for step in document["plan"]["steps"]}
    assert steps["archive_timeout"]["doing"] == "keep"
    assert steps["wal_level"]["takes"] == steps["archive_mode"]["takes"] == "restart"
    assert server.value("SHOW archive_mode") == "on"
    assert server.value("SELECT restart_lsn FROM pg_replication_slots") is None

    text = enabling.cli.config.read_text()
    enabling.cli.config.write_text(text.replace('user = "postgres"', f"user = '{ROLE}'"))
    checked = enabling.cli("check", "--json")
    assert checked.status == 0, checked
    assert not {code for code in checked.findings("warn") if code.startswith("rights")}
    assert repr(ROLE) in checked.findings("ok")["rights"]["message"]
    backed_up = enabling.cli("backup", "--json")
    assert backed_up.status == 0, backed_up
    for words in ("wal switch", "restore-point here", "wal status", "wal slots", "recoverable"):
        shown = enabling.cli(*words.split(), "--json")
        assert shown.status == 0, (words, shown)
        assert "postgres-rights" not in shown.out
    assert server.value(
        "SELECT has_function_privilege(%s, 'pg_read_binary_file(text, bigint, bigint, boolean)',"
        " 'EXECUTE')",
        ROLE,
    )
    again = enabling("--admin", "postgres", "--slot", "--role", ROLE, "--json")
    assert (again.status, again.document["outcome"]) == (0, "nothing to do"), again

    undone = enabling("--undo", "--yes", "--restart", "--admin", "postgres", "--json")
    assert undone.document["capture_id"] > document["capture_id"]
    assert undone.status == 0, undone
    assert undone.document["findings"] == []
    assert settings_of(server) == before
    assert roles_and_slots(server) == made_before
    assert (server.pgdata / "postgresql.auto.conf").read_text() == auto_before
    second = enabling("--undo", "--yes", "--admin", "postgres", "--json")
    assert (second.status, second.document["outcome"]) == (0, "nothing to undo")


def test_a_dry_run_and_a_refused_question_change_nothing(enabling: Enabling) -> None:
    before, objects = settings_of(enabling.server), list(enabling.repository.rglob("*"))
    shown = enabling("--dry-run", "--replace")
    assert shown.status == 0, shown
    assert "archive_mode" in shown.out and "restart" in shown.out
    refused = enabling("--json")
    assert refused.status == ConfirmationError.exit_status
    assert settings_of(enabling.server) == before
    assert list(enabling.repository.rglob("*")) == objects


def test_without_a_restart_it_says_what_waits(enabling: Enabling) -> None:
    done = enabling("--yes", "--json", "--slot")
    assert done.status == 0, done
    document = done.document
    assert set(document["pending_restart"]) == {"wal_level", "max_wal_senders", "archive_mode"}
    assert any("once more makes the slot" in step for step in document["next_steps"])
    enabling.server.restart()
    assert [record["change"]["slot"] for record in enabling.records()] == [""]
    again = enabling("--yes", "--json", "--slot")
    assert (again.document["outcome"], again.status) == ("enabled", 0)
    assert [step["doing"] for step in again.document["plan"]["steps"]].count("make") == 1
    assert enabling.server.value("SELECT count(*) FROM pg_replication_slots") == 1


def test_after_a_setting_of_before_only_the_restart_is_left(enabling: Enabling) -> None:
    enabling("--yes")
    shown = enabling("--json")
    assert (shown.status, shown.document["outcome"]) == (0, "nothing to do")
    assert set(shown.document["plan"]["restart_for"]) == {
        "wal_level", "max_wal_senders", "archive_mode",
    }  # fmt: skip
    assert any("restart the server, for" in step for step in shown.document["next_steps"])


def test_a_foreign_command_stays_unless_replaced(enabling: Enabling) -> None:
    server = enabling.server
    server.configure(archive_mode="on", wal_level="replica", archive_command="cp '%p' /tmp/%f")
    server.restart()
    refused = enabling("--yes", "--json")
    assert refused.status == ArchivingRefusedError.exit_status
    assert "cp '%p' /tmp/%f" in refused.document["error"]["message"]
    assert "--replace" in refused.document["error"]["hint"]
    assert enabling.records() == []
    server.sql("ALTER SYSTEM SET archive_command = 'cp %p E\\x'")
    server.reload()
    replaced = enabling("--yes", "--json", "--replace")
    assert replaced.status == 0, replaced
    assert "wal push" in server.value("SHOW archive_command")
    undone = enabling("--undo", "--yes", "--json")
    assert undone.status == 0, undone
    assert server.value("SHOW archive_command") == "cp %p E\\x"


def test_a_push_that_fails_keeps_archiving_off(enabling: Enabling) -> None:
    store = enabling.repository / "servers"
    before = settings_of(enabling.server)
    (wal,) = [next(store.iterdir()) / "wal"]
    wal.write_text("in the way of the archive")
    refused = enabling("--yes", "--json")
    assert refused.status == ArchivingRefusedError.exit_status, refused
    assert "archiving stays off" in refused.document["error"]["message"]
    assert refused.document["error"]["hint"].endswith("once more, or --undo")
    assert settings_of(enabling.server) == before
    wal.unlink()
    assert enabling("--yes").status == 0
    assert enabling("--undo", "--yes").status == 0
    enabling.server.restart()
    assert settings_of(enabling.server) == before


def test_archive_library_is_refused_with_its_cure(enabling: Enabling) -> None:
    server = enabling.server
    server.configure(archive_library="basic_archive")
    server.reload()
    refused = enabling("--yes", "--json")
    assert refused.status == ArchivingRefusedError.exit_status
    assert "archive_library" in refused.document["error"]["hint"]


def test_allow_alter_system_off_says_what_to_put_where(enabling: Enabling) -> None:
    server = enabling.server
    server.configure(allow_alter_system="off")
    server.reload()
    done = enabling("--yes", "--json", "--no-role")
    assert (done.status, done.document["outcome"]) == (0, "by hand")
    plan = done.document["plan"]
    assert plan["config_file"] == str(server.pgdata / "postgresql.conf")
    with (server.pgdata / "postgresql.conf").open("a") as file:
        file.write("\n".join(plan["by_hand"]) + "\n")
    server.restart()
    again = enabling("--json", "--no-role")
    assert (again.status, again.document["outcome"]) == (0, "nothing to do")
    assert enabling.cli("check").status == 0


def test_a_setting_on_the_command_line_is_named(enabling: Enabling) -> None:
    server = enabling.server
    server.stop()
    started = server.installation.program("pg_ctl")
    options = f"-p {server.port} -k {server.host} -c archive_mode=off -c wal_level=replica"
    run_program(
        [started, "start", "-w", "-s", "-D", server.pgdata, "-o", options, "-l", server.log_path]
    )
    refused = enabling("--yes", "--json")
    assert refused.status == ArchivingRefusedError.exit_status
    assert "command line" in refused.document["error"]["message"]


def test_a_standby_and_a_server_that_is_down(enabling: Enabling) -> None:
    server = enabling.server
    server.configure(wal_level="replica", max_wal_senders=2)
    server.restart()
    server.stop()
    (server.pgdata / "standby.signal").touch()
    server.start()
    refused = enabling("--yes", "--json")
    assert refused.status == ServerIsStandbyError.exit_status
    assert "in recovery" in refused.document["error"]["message"]
    server.stop()
    for words in (("--yes",), ("--undo", "--yes")):
        assert enabling(*words).status == PostgresUnreachableError.exit_status


def test_what_somebody_changed_or_uses_since_stays(enabling: Enabling) -> None:
    server = enabling.server
    server.configure(wal_level="replica", max_wal_senders=10)
    server.restart()
    assert enabling("--yes", "--slot").status == 0
    server.sql("ALTER SYSTEM SET archive_timeout = '7min'")
    server.sql("CREATE TABLE theirs (); ALTER TABLE theirs OWNER TO pgrecall")
    undone = enabling("--undo", "--yes", "--json")
    assert undone.status == 0, undone
    left = {finding["subject"]: finding["message"] for finding in undone.document["findings"]}
    assert set(left) == {"archive_timeout", "role 'pgrecall'"}
    assert "owns 1 object" in left["role 'pgrecall'"]
    assert server.value("SHOW archive_timeout") == "7min"
    assert server.value("SELECT count(*) FROM pg_replication_slots") == 0


def test_wal_level_stays_while_something_needs_it(enabling: Enabling) -> None:
    server = enabling.server
    server.configure(max_replication_slots=0)
    server.restart()
    assert enabling("--yes", "--restart").status == 0
    enabling.adopt()
    server.sql("SELECT pg_create_physical_replication_slot('of_a_standby')")
    undone = enabling("--undo", "--yes", "--restart", "--json")
    assert undone.status == 0, undone
    left = {finding["subject"]: finding["message"] for finding in undone.document["findings"]}
    assert set(left) == {"wal_level", "max_replication_slots"}
    assert all("of_a_standby" in message for message in left.values())
    # With wal_level = minimal and a slot it would not have come up.
    assert (server.value("SHOW wal_level"), server.value("SHOW archive_mode")) == ("replica", "off")

    server.sql("SELECT pg_drop_replication_slot('of_a_standby')")
    server.sql("ALTER SYSTEM RESET ALL")
    run_program([server.installation.program("pg_ctl"), "stop", "-s", "-D", server.pgdata])
    server.start()
    assert enabling("--yes").status == 0
    server.sql("ALTER SYSTEM SET max_wal_senders = 20")
    undone = enabling("--undo", "--yes", "--json")
    left_out = {finding["subject"]: finding for finding in undone.document["findings"]}
    assert set(left_out) == {"max_wal_senders", "wal_level"}
    server.restart()
    assert server.value("SHOW wal_level") == "replica"


def test_a_role_that_was_there_gets_rights_and_loses_only_those(enabling: Enabling) -> None:
    server = enabling.server
    server.sql("CREATE ROLE pgrecall LOGIN")
    server.sql("GRANT EXECUTE ON FUNCTION pg_switch_wal() TO pgrecall")
    before = roles_and_slots(server)
    assert enabling("--yes").status == 0
    assert server.value("SELECT rolreplication FROM pg_roles WHERE rolname = 'pgrecall'")
    assert enabling("--undo", "--yes").status == 0
    assert not server.value("SELECT rolreplication FROM pg_roles WHERE rolname = 'pgrecall'")
    assert roles_and_slots(server) == before


def test_a_role_with_a_password(enabling: Enabling, tmp_path: Path) -> None:
    server, secret = enabling.server, tmp_path / "secret"
    secret.write_text("pass'word ü\n")
    text = (server.pgdata / "pg_hba.conf").read_text()
    (server.pgdata / "pg_hba.conf").write_text("local all pgrecall scram-sha-256\n" + text)
    server.sql("ALTER SYSTEM SET log_statement = 'all'")
    server.reload()
    done = enabling("--yes", "--json", "--role-password", f"file:{secret}")
    assert done.status == 0, done
    assert any("connected as 'pgrecall'" in line for line in done.document["done"])
    assert "pass'word" not in server.log + done.out + done.err
    assert "SCRAM-SHA-256$" in server.log


def test_pg_hba_is_edited_only_when_asked_and_put_back(enabling: Enabling) -> None:
    server = enabling.server
    files = [server.pgdata / name for name in ("pg_hba.conf", "pg_ident.conf")]
    files[0].write_text("local all postgres trust\n")
    server.reload()
    before = [file.read_bytes() for file in files]
    done = enabling("--yes", "--json", "--role", ROLE)
    assert [finding["code"] for finding in done.document["findings"]] == ["role-not-admitted"]
    assert [file.read_bytes() for file in files] == before
    written = enabling("--yes", "--json", "--role", ROLE, "--write-hba")
    assert written.document["findings"] == [], written
    assert any(f"connected as {ROLE!r}" in line for line in written.document["done"])
    kept = sorted(server.pgdata.glob("pg_hba.conf.c-*"))
    assert [path.read_bytes() for path in kept] == [before[0]]
    assert enabling("--undo", "--yes").status == 0
    assert [file.read_bytes() for file in files] == before


def test_a_broken_line_of_another_is_not_made_ours(enabling: Enabling) -> None:
    server = enabling.server
    file = server.pgdata / "pg_hba.conf"
    file.write_text("local all postgres trust\nlocal nonsense\n")
    refused = enabling("--yes", "--json", "--write-hba")
    assert refused.status == ArchivingRefusedError.exit_status
    assert "pg_hba_file_rules line 2" in refused.document["error"]["message"]
    assert file.read_text() == "local all postgres trust\nlocal nonsense\n"


def test_names_that_postgresql_does_not_take(
    enabling: Enabling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGRECALL_RECEIVE__SLOT", "Not A Slot")
    assert enabling("--yes", "--slot").status == UsageError.exit_status
    refused = enabling("--yes", "--role", "pg_backup", "--json")
    assert "reserved" in refused.document["error"]["message"]


@pytest.mark.parametrize("phase", ["enable.recorded", "enable.probed", "enable.set.wal_level"])
def test_killed_in_the_middle_it_can_be_repeated_or_undone(enabling: Enabling, phase: str) -> None:
    server = enabling.server
    before = settings_of(server)
    auto_before = (server.pgdata / "postgresql.auto.conf").read_text()
    command = [*pgrecall_command(), "--config", str(enabling.cli.config), "--server", NAME]
    command += ["wal", "enable", "--yes"]
    environment = {**os.environ, "PGRECALL_FAULT_KILL": phase}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed
    assert len(enabling.records()) == 1
    undone = enabling("--undo", "--yes", "--json").document
    assert (undone["outcome"], undone["pending_restart"]) == ("undone", [])
    assert (server.pgdata / "postgresql.auto.conf").read_text() == auto_before
    server.restart()
    assert settings_of(server) == before

    subprocess.run(command, env=environment, capture_output=True, check=False)
    assert enabling("--yes", "--json").document["outcome"] == "enabled"
    assert enabling("--undo", "--yes", "--json").document["outcome"] == "undone"
    assert (server.pgdata / "postgresql.auto.conf").read_text() == auto_before


def test_through_the_agents_client(enabling: Enabling, tmp_path: Path) -> None:
    server = enabling.server
    plain = enabling("--yes", "--json")
    assert plain.status == 0, plain
    done = enabling("--yes", "--json", "--agent")
    assert done.status == 0, done
    server.restart()
    command = server.value("SHOW archive_command")
    assert f"{client_path()} push --socket" in command
    assert "--fallback" in command
    assert enabling.cli("check", "--json").findings("fail") == {}
    # Without --agent either way is as good as the other.
    assert enabling("--json").document["outcome"] == "nothing to do"

    named = tmp_path / "pgrecall-client"
    named.write_bytes(Path(str(client_path())).read_bytes())
    named.chmod(0o755)
    refused = enabling("--yes", "--json", "--client", str(named))
    assert refused.status == ArchivingRefusedError.exit_status
    assert "status 74" in refused.document["error"]["message"]  # no agent runs
    assert server.value("SHOW archive_command") == command
    undone = enabling("--undo", "--yes", "--json")
    assert undone.document["outcome"] == "undone"
    assert len(undone.document["plan"]["changes"]) == 3


def test_as_a_role_that_may_not_change_settings(enabling: Enabling) -> None:
    server = enabling.server
    server.sql("CREATE ROLE plain LOGIN")
    done = enabling("--admin", "plain", "--no-role", "--yes", "--json")
    assert (done.status, done.document["outcome"]) == (0, "by hand"), done
    assert len(done.document["plan"]["by_hand"]) == 6
    codes = {finding["code"] for finding in done.document["plan"]["findings"]}
    assert "rights-settings" in codes
    refused = enabling("--admin", "plain", "--yes", "--json")
    assert refused.status == PostgresRightsError.exit_status
    assert server.value("SELECT count(*) FROM pg_roles WHERE rolname = 'pgrecall'") == 0
    # It was begun, and nothing came of it: undoing finds everything as it was.
    assert enabling("--undo", "--yes", "--json").document["outcome"] == "undone"


def test_repositories_that_are_away(enabling: Enabling, tmp_path: Path) -> None:
    with enabling.cli.config.open("a") as file:
        file.write(f'[repositories.spare]\nrole = "best-effort"\npath = "{tmp_path}/spare"\n')
    done = enabling("--yes", "--json")
    assert done.status == 0, done
    (left_out,) = [
        finding
        for finding in done.document["plan"]["findings"]
        if finding.get("subject") == "spare"
    ]
    assert left_out["code"] == "store-absent"
    away = enabling.repository.rename(tmp_path / "away")
    before = settings_of(enabling.server)
    unknown = enabling("--undo", "--yes", "--json")
    assert unknown.status == StoreAbsentError.exit_status
    assert enabling("--yes").status == StoreAbsentError.exit_status
    assert settings_of(enabling.server) == before
    away.rename(enabling.repository)
    assert enabling("--undo", "--yes", "--json").document["outcome"] == "undone"
    # Every change is on record in the required one: what is away can add nothing.
    assert enabling("--undo", "--yes", "--json").document["outcome"] == "nothing to undo"
