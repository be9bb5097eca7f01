"""The agent from outside: start, archive, reload, end, be killed, and never twice."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgrecall.agent.lock import running_agent
from pgrecall.errors import AgentRunningError, SettingsError
from pgrecall.model.runs import RunRecord
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.journal import Journal
from pgrecall.repository.retention_log import read_state
from pgrecall.store.opening import open_store
from tests.support.agent_process import AgentScene
from tests.support.postgresql import ServerFactory
from tests.support.product import SERVER, Product


@pytest.fixture
def scene(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[AgentScene]:
    scene = AgentScene(Product.start(pg_factory, tmp_path))
    try:
        yield scene
    finally:
        scene.close()


def test_check_shows_what_would_run_and_begins_nothing(scene: AgentScene) -> None:
    scene.configure(more='[schedule]\nbackup = "0 3 * * *"\n')
    shown = scene.product.cli("agent", "--check", "--json")
    assert shown.returncode == 0, shown.stderr
    plan = json.loads(shown.stdout)["plan"]
    names = [one["name"] for one in plan["components"]]
    assert names[:3] == ["pusher", "fetcher", "listener"]
    (job,) = plan["jobs"]
    assert (job["job"], job["expression"]) == ("backup", "0 3 * * *")
    assert job["next_at"].endswith("T03:00:00Z")
    text = scene.product.cli("agent", "--check").stdout
    assert "serves wal push and wal fetch" in text
    assert "0 3 * * *" in text
    assert not scene.directory.exists()


def test_it_archives_answers_and_ends_with_0(scene: AgentScene) -> None:
    agent = scene.start("--json")
    scene.product.switch()
    agent.wait_until(lambda: agent.facts("pusher")["pushed_total"] > 0, "the pusher has pushed")
    assert running_agent(str(agent.directory)) == agent.process.pid
    assert (agent.directory.stat().st_mode & 0o777) == 0o700
    assert agent.end() == 0
    document = agent.output()
    assert (document["schema"], document["ended_by"]) == ("pgrecall/agent/1", "SIGTERM")
    assert document["stuck"] == []
    assert running_agent(str(agent.directory)) is None
    assert not (agent.directory / "agent.sock").exists()
    scene.product.switch()  # and without it the command does the work itself


def test_a_second_agent_for_the_same_server_is_refused(scene: AgentScene) -> None:
    first = scene.start()
    second = scene.product.cli("agent", "--json")
    assert second.returncode == AgentRunningError.exit_status
    assert f"pid {first.process.pid}" in json.loads(second.stdout)["error"]["message"]
    assert first.end(signal.SIGINT) == 0


def test_killed_and_started_again_it_goes_on(scene: AgentScene) -> None:
    agent = scene.start()
    for _ in range(3):
        agent.end(signal.SIGKILL)
        # The command notices that nobody is there, and does the work itself.
        scene.product.switch()
        agent = scene.start()
        scene.product.switch()
    assert scene.product.backup().worst == "ok"
    assert agent.end() == 0


def test_a_reload_takes_good_settings_and_refuses_bad_ones(scene: AgentScene) -> None:
    agent = scene.start()
    scene.configure(more='[schedule]\nbackup = "61 * * * *"\n')
    agent.tell(signal.SIGHUP)
    agent.wait_until(lambda: agent.logged("the settings are refused"))
    assert "61 * * * *" in agent.log
    scene.configure(agent="nonsense = 1")
    agent.tell(signal.SIGHUP)
    agent.wait_until(lambda: agent.log.count("the settings are refused") == 2)
    assert "'nonsense' is unknown" in agent.log or "nonsense: is unknown" in agent.log
    scene.product.switch()
    scene.configure(more='[schedule]\ncheck = "0 0 1 1 *"\n')
    agent.tell(signal.SIGHUP)
    agent.wait_until(lambda: agent.logged("restarted=schedule"), "only the schedule began anew")
    agent.wait_until(lambda: agent.facts("schedule").get("check_next_at"))
    scene.product.switch()
    assert agent.end() == 0


def test_bad_settings_at_the_start_are_named(scene: AgentScene) -> None:
    scene.configure(more='[schedule]\nbackup = "soon"\ntime_zone = "Mars"\n')
    refused = scene.product.cli("agent")
    assert refused.returncode == SettingsError.exit_status
    assert "backup: 'soon'" in refused.stderr
    assert "'Mars'" in refused.stderr


def test_it_starts_before_the_server_and_outlives_it(scene: AgentScene) -> None:
    scene.product.server.stop()
    agent = scene.start()
    scene.product.server.start()
    scene.product.switch()
    scene.product.server.kill9()
    scene.product.server.start()
    scene.product.switch()
    assert agent.end() == 0


def test_the_schedule_runs_a_check_and_journals_it(scene: AgentScene) -> None:
    """What was due while no agent ran is caught up, once, and said to be late."""
    scene.configure(more='[schedule]\ncheck = "* * * * *"\n')
    agent = scene.start()
    agent.wait_until(lambda: agent.facts("schedule").get("check_next_at"))
    assert agent.end() == 0
    memory = scene.directory / SERVER / "state" / "schedule.json"
    state = json.loads(memory.read_text())
    settled = datetime.now(UTC) - timedelta(minutes=10)
    state["check"]["settled_at"] = settled.isoformat()
    memory.write_text(json.dumps(state))
    agent = scene.start()
    store = open_store(scene.product.repository, {})

    def late() -> list[RunRecord]:
        # The first agent has run one in time, if a minute began just then.
        return [one for one in Journal(store, SERVER).runs(settled)[0] if one.trigger.missed]

    agent.wait_until(late)
    assert agent.end() == 0
    (first,) = late()
    assert (first.command, first.trigger.by) == ("check", "schedule")
    assert 8 <= first.trigger.missed <= 10
    assert first.outcome in {"ok", "warn"}, first


def test_the_schedule_expires_verifies_and_purges(scene: AgentScene) -> None:
    old, new = scene.product.backup(full=True), scene.product.backup(full=True)
    jobs = ("expire", "purge", "verify")
    scene.configure(
        more="[schedule]\n"
        + "".join(f'{job} = "* * * * *"\n' for job in jobs)
        + '[retention]\npolicy = "shop"\n[policies.shop]\nkeep_last = 1\n'
    )
    agent = scene.start()
    agent.wait_until(lambda: agent.facts("schedule").get("verify_next_at"))
    assert agent.end() == 0
    memory = scene.directory / SERVER / "state" / "schedule.json"
    state = json.loads(memory.read_text())
    before = (datetime.now(UTC) - timedelta(minutes=10)).isoformat()
    memory.write_text(
        json.dumps({job: kept | {"settled_at": before} for job, kept in state.items()})
    )
    agent = scene.start()
    agent.wait_until(
        lambda: all(f"{job}_last_status" in agent.facts("schedule") for job in jobs),
        "all three have ended",
    )
    assert agent.end() == 0
    store = open_store(scene.product.repository, {})
    records, _ = Journal(store, SERVER).runs(datetime.now(UTC) - timedelta(hours=1))
    ended = {one.command: (one.outcome, one.trigger.by) for one in records}
    assert ended == dict.fromkeys(jobs, ("ok", "schedule")), records
    assert [one.backup_id for one in Catalog(store, SERVER).complete()] == [new.backup_id]
    assert old.backup_id in read_state(store, SERVER).expired  # the grace is not over


def test_the_end_of_the_agent_ends_a_job_and_the_journal_says_so(
    scene: AgentScene, tmp_path: Path
) -> None:
    pause = tmp_path / "pause"
    pause.mkdir()
    scene.configure(more='[schedule]\nbackup = "* * * * *"\n')
    memory = scene.directory / SERVER / "state" / "schedule.json"
    agent = scene.start()
    agent.wait_until(memory.exists)
    assert agent.end() == 0
    state = json.loads(memory.read_text())
    state["backup"]["settled_at"] = (datetime.now(UTC) - timedelta(minutes=3)).isoformat()
    memory.write_text(json.dumps(state))
    agent = scene.start(PGRECALL_FAULT_PAUSE=f"backup.started:{pause}")
    agent.wait_until(lambda: any(pause.iterdir()), "the backup is held up in the middle")
    agent.wait_until(lambda: agent.facts("schedule").get("running") == "backup")
    agent.tell(signal.SIGTERM)
    assert agent.end() == 0, "a second signal does not cut the end short"
    store = open_store(scene.product.repository, {})
    (record,), _ = Journal(store, SERVER).runs(datetime.now(UTC) - timedelta(hours=1))
    assert (record.command, record.outcome) == ("backup", "interrupted")
    # It is not settled: the next agent begins it again.
    (pause / "backup.started").unlink(missing_ok=True)
    agent = scene.start()
    agent.wait_until(lambda: agent.facts("schedule").get("backup_last_status") == 0)
    assert agent.end() == 0


def test_systemd_is_told(scene: AgentScene, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(30)
        agent = scene.start(NOTIFY_SOCKET=path, WATCHDOG_USEC="1000000")
        assert systemd.recv(1000) == b"READY=1\nSTATUS=serving main"
        assert systemd.recv(1000) == b"WATCHDOG=1"
        agent.tell(signal.SIGHUP)
        while not (said := systemd.recv(1000)).startswith(b"RELOADING=1\nMONOTONIC_USEC="):
            assert said == b"WATCHDOG=1"
        agent.tell(signal.SIGTERM)
        while (said := systemd.recv(1000)) != b"STOPPING=1":
            assert said in {b"WATCHDOG=1", b"READY=1\nSTATUS=serving main"}
        assert agent.process.wait(30) == 0


def test_a_place_of_somebody_else_is_refused(scene: AgentScene) -> None:
    place = scene.directory / SERVER
    place.mkdir(parents=True)
    os.chmod(place, 0o755)
    refused = scene.product.cli("agent")
    assert refused.returncode == 71
    assert "open to other users" in refused.stderr


def test_it_receives_and_records_names_when_asked_to(scene: AgentScene) -> None:
    scene.configure(more="[receive]\nis_enabled = true\ntail_seconds = 1\n")
    agent = scene.start()
    assert [one.name for one in agent.snapshot.components] == [  # type: ignore[union-attr]
        "pusher", "fetcher", "listener", "receiver", "schedule", "observer", "configuration",
        "names", "rollups",
    ]  # fmt: skip
    scene.product.server.sql("CREATE TABLE orders (n int)")
    scene.product.switch()
    agent.wait_until(lambda: agent.facts("receiver")["segments_stored"] > 0, "it has received")
    agent.wait_until(lambda: agent.facts("names").get("relations"), "names are recorded")
    agent.wait_until(lambda: agent.facts("rollups").get("rolled_up") == 0, "nothing is finished")
    assert agent.facts("receiver")["restarts"] == 0
    assert agent.end() == 0
    assert scene.product.cli("status").returncode != 0, "the settings want an agent"


def test_metrics_of_a_running_agent(scene: AgentScene) -> None:
    path = scene.product.directory / "m.sock"
    scene.product.backup()
    scene.configure(agent=f'metrics_address = "{path}"')
    agent = scene.start()
    scene.product.switch()
    agent.wait_until(lambda: agent.facts("observer").get("last_backup_id"))
    agent.wait_until(lambda: agent.facts("configuration").get("looked_at"))

    def scrape(what: str) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(path))
            client.sendall(f"GET {what} HTTP/1.0\r\n\r\n".encode())
            return client.makefile("rb").read().decode()

    text = scrape("/metrics")
    assert 'pgrecall_component_up{component="pusher",server="main"} 1.0' in text
    assert 'pgrecall_backup_last_age_seconds{server="main"}' in text
    assert 'pgrecall_server_up{server="main"} 1.0' in text
    assert 'pgrecall_archive_pushed_total{server="main"}' in text
    assert " 200 " in scrape("/healthz")
    assert agent.end() == 0


def test_one_component_that_fails_ends_no_other_and_is_named(scene: AgentScene) -> None:
    scene.product.backup()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        scene.configure(agent=f'metrics_address = ":{port}"')
        agent = scene.start(wait=False)
        agent.wait_until(lambda: agent.snapshot and agent.facts("metrics")["restarts"] > 0)
        scene.product.switch()
        agent.wait_until(lambda: agent.facts("pusher")["state"] == "running")
        shown = json.loads(scene.product.cli("status", "--json").stdout)["servers"][0]
        (finding,) = (one for one in shown["findings"] if one["code"] == "component-ill")
        assert finding["subject"] == "metrics"
        assert f"127.0.0.1:{port}" in finding["message"]
    agent.wait_until(lambda: agent.facts("metrics")["state"] == "running", "the port is free")
    assert agent.end() == 0


def test_a_component_that_is_gone_after_a_reload_is_ended(scene: AgentScene) -> None:
    path = scene.product.directory / "m.sock"
    scene.configure(agent=f'metrics_address = "{path}"')
    agent = scene.start()
    agent.wait_until(path.exists)
    scene.configure()
    agent.tell(signal.SIGHUP)
    agent.wait_until(lambda: not path.exists())
    agent.wait_until(lambda: agent.logged("restarted=metrics"))
    assert agent.end() == 0


def test_on_a_standby_it_plans_nothing_until_the_promotion(
    scene: AgentScene, pg_factory: ServerFactory, tmp_path: Path
) -> None:
    scene.product.backup()
    (scene.product.server.pgdata / "standby.signal").touch()
    scene.product.server.restart()
    scene.configure(more='[schedule]\ncheck = "* * * * *"\n')
    agent = scene.start()
    agent.wait_until(lambda: agent.facts("schedule").get("is_standby") is True)
    scene.product.server.sql("SELECT pg_promote()")
    agent.wait_until(lambda: agent.facts("schedule").get("is_standby") is False)
    assert agent.end() == 0


def test_one_repository_is_no_agent_s(scene: AgentScene) -> None:
    refused = scene.product.cli("agent", "--repository", "one")
    assert refused.returncode == 2
    assert "all repositories" in refused.stderr
