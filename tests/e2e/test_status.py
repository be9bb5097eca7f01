"""``status`` on real servers: what it shows, and its exit status for monitoring."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.errors import StatusFailError, StatusWarnError, UsageError
from tests.support.agent_process import AgentScene
from tests.support.postgresql import ServerFactory
from tests.support.product import Product


@pytest.fixture
def scene(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[AgentScene]:
    scene = AgentScene(Product.start(pg_factory, tmp_path))
    try:
        yield scene
    finally:
        scene.close()
        scene.product.close()


def status(scene: AgentScene, *words: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Exit status, the only server's part, and severity by code."""
    done = scene.product.cli("status", "--json", *words)
    document = json.loads(done.stdout)
    assert document["schema"] == "pgrecall/status/1", done.stdout
    (server,) = document["servers"]
    return (
        done.returncode, server, {one["code"]: one["severity"] for one in server["findings"]},
    )  # fmt: skip


def test_without_a_backup_nothing_can_be_restored(scene: AgentScene) -> None:
    code, server, found = status(scene)
    assert code == StatusFailError.exit_status
    assert found["backup-none"] == "fail"
    assert server["rpo_seconds"] is None
    assert server["rto"] == "not measured"


def test_all_is_well_and_then_work_is_at_risk(scene: AgentScene) -> None:
    product = scene.product
    assert product.cli("backup").returncode == 0
    product.server.sql("CREATE TABLE orders (n int); INSERT INTO orders VALUES (1)")
    product.switch()
    scene.configure(more="[targets]\nrpo_seconds = 1\nbackup_age_seconds = 3600\n")
    code, server, found = status(scene)
    assert (code, found) == (0, {}), server
    assert server["rpo_seconds"] == 0
    assert server["newest_at"] is not None
    assert server["last_backup_age_seconds"] < 3600
    assert server["runs"] == 1
    assert server["archive"].startswith("works, last 0000")
    assert server["history"] == []
    # A commit that is only in the current segment would be lost.
    product.server.sql("INSERT INTO orders VALUES (2)")
    product.server.sql("SELECT pg_sleep(1.1)")
    code, server, found = status(scene, "--since", "1h")
    assert code == StatusFailError.exit_status
    assert found == {"rpo-missed": "fail"}
    assert server["rpo_seconds"] > 1
    assert "bytes of WAL are not in the repository yet" in server["rpo_basis"]
    (line,) = server["history"]
    assert (line["command"], line["outcome"]) == ("backup", "ok")
    # What a policy asks for is held to as well.
    scene.configure(more='[retention]\npolicy = "shop"\n[policies.shop]\nrpo_seconds = 1\n')
    code, server, found = status(scene)
    assert (code, found) == (StatusFailError.exit_status, {"rpo-missed": "fail"})
    assert (server["rpo_target_seconds"], server["rto_target_seconds"]) == (1, 0)


def test_a_failing_archive_and_a_server_that_is_gone(scene: AgentScene) -> None:
    product = scene.product
    product.backup()
    product.server.configure(archive_command="false")
    product.server.reload()
    product.server.sql("SELECT pg_logical_emit_message(true, 'test', 'x'), pg_switch_wal()")
    product.server.wait_until(
        lambda: product.server.value("SELECT failed_count > 0 FROM pg_stat_archiver")
    )
    code, server, found = status(scene)
    assert (code, found["archiving-fails"]) == (StatusFailError.exit_status, "fail")
    assert "1 file(s) wait" in server["archive"] or "2 file(s) wait" in server["archive"]
    product.server.stop("immediate")
    code, server, found = status(scene)
    assert (code, found["postgres-unreachable"]) == (StatusWarnError.exit_status, "warn")
    assert server["rpo_basis"].startswith("at most: the time since the last commit")


def test_the_agent_and_its_runs(scene: AgentScene) -> None:
    scene.product.backup()
    scene.product.switch()
    scene.configure(more='[schedule]\nbackup = "0 3 1 1 *"\n')
    code, server, found = status(scene)
    assert (code, found) == (StatusWarnError.exit_status, {"agent-not-running": "warn"})
    agent = scene.start()
    code, server, found = status(scene)
    assert (code, found) == (0, {})
    assert server["agent"] == f"running, pid {agent.process.pid}"
    assert agent.end() == 0


def test_a_measured_restore_is_the_rto(scene: AgentScene, tmp_path: Path) -> None:
    product = scene.product
    product.backup()
    product.switch()
    scene.configure(more="[targets]\nrto_seconds = 0.001\n")
    assert status(scene)[2] == {"rto-not-measured": "warn"}
    target = tmp_path / "restored"
    product.copies.append(target)
    done = product.cli("restore", "--target-dir", str(target), "--start")
    assert done.returncode == 0, done.stderr
    code, server, found = status(scene)
    assert (code, found) == (StatusFailError.exit_status, {"rto-missed": "fail"})
    assert server["rto_seconds"] > 0
    assert server["rto"].startswith("measured by r-")


def test_a_repository_that_is_away_is_a_failure_and_never_fine(scene: AgentScene) -> None:
    Path(scene.product.repository.path).rename(scene.product.directory / "elsewhere")
    code, server, found = status(scene)
    assert code == StatusFailError.exit_status
    assert "fail" in found.values()
    assert server["newest_at"] is None


def test_for_people(scene: AgentScene) -> None:
    scene.product.backup()
    scene.product.switch()
    done = scene.product.cli("status", "--since", "7d")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "newest at" in done.stdout
    assert "not measured" in done.stdout
    assert "target" not in done.stdout
    assert scene.product.cli("status", "--since", "soon").returncode == UsageError.exit_status
