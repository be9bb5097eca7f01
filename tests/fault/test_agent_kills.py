"""The agent is killed again and again under load: nothing is lost, nothing is in the way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.model.lsn import Lsn
from tests.support.agent_process import AgentScene
from tests.support.postgresql import ServerFactory
from tests.support.product import Product

ROUNDS = 6


@pytest.fixture
def scene(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[AgentScene]:
    scene = AgentScene(Product.start(pg_factory, tmp_path))
    try:
        yield scene
    finally:
        scene.close()
        scene.product.close()


@pytest.mark.slow
def test_killed_under_load(scene: AgentScene, tmp_path: Path) -> None:
    product = scene.product
    server = product.server
    scene.configure(more='[receive]\nis_enabled = true\n[schedule]\ncheck = "* * * * *"\n')
    server.pgbench("-i", "-s", "2", "-q")
    backup = product.backup()
    load = server.start_pgbench("-c", "4", "-T", "600")
    try:
        for number in range(ROUNDS):
            agent = scene.start()
            wanted = 1 + number % 3
            agent.wait_until(
                lambda agent=agent, wanted=wanted: (
                    agent.facts("pusher")["pushed_total"] >= wanted
                    and agent.facts("receiver")["segments_stored"] >= wanted
                ),
                "both have stored segments",
            )
            assert agent.end(signal.SIGKILL) == -signal.SIGKILL
    finally:
        load.terminate()
        load.wait()
    agent = scene.start()
    end = Lsn.parse(str(server.value("SELECT pg_current_wal_lsn()")))
    last = product.switch()
    archive = product.archive()
    assert archive.has(last)
    history = archive.histories()[backup.timeline]
    assert archive.first_gap(history, Lsn.parse(backup.start_lsn), end - 1) is None
    known = server.sql("SELECT count(*), sum(delta) FROM pgbench_history")
    assert agent.end() == 0
    target = tmp_path / "restored"
    product.restore(target, start=True)
    copy = product.connected(target)
    assert copy.sql("SELECT count(*), sum(delta) FROM pgbench_history") == known
