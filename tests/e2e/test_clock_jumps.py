"""The clock of the host is set back by an hour, and forth by a day, while everything is at work."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from pgrecall.errors import TargetUnreachableError
from tests.support.agent_process import AgentScene, RunningAgent
from tests.support.postgresql import ServerFactory
from tests.support.product import Product
from tests.support.shifted_clock import ShiftedClock

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
# Long enough for a busy loop to show: it burns the whole of it.
QUIET_SECONDS = 1.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShiftedClock]:
    """Begins at noon, far from the moments of any schedule."""
    clock = ShiftedClock(tmp_path, monkeypatch)
    clock.set(datetime.now(UTC).replace(hour=12, minute=0, second=0))
    try:
        yield clock
    finally:
        clock.close()


@pytest.fixture
def product(clock: ShiftedClock, pg_factory: ServerFactory, tmp_path: Path) -> Iterator[Product]:
    product = Product.start(pg_factory, tmp_path, track_commit_timestamp="on")
    try:
        yield product
    finally:
        product.close()


@pytest.fixture
def agents(product: Product) -> Iterator[AgentScene]:
    scene = AgentScene(product)
    try:
        yield scene
    finally:
        scene.close()


def burnt_seconds(agent: RunningAgent) -> float:
    """Processor time of the agent so far, without its children."""
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def backups(product: Product) -> list[str]:
    listed = json.loads(product.cli("backups", "list", "--json").stdout)
    return [line["backup_id"] for line in listed["backups"]]


def write_and_archive(product: Product, agent: RunningAgent, count: int) -> None:
    """Segments that are archived and received after the jump, within the usual time."""
    before = agent.facts("receiver")["segments_stored"]
    for _ in range(count):
        product.server.sql("INSERT INTO rows VALUES (default)")
        product.switch()
    agent.wait_until(
        lambda: agent.facts("receiver")["segments_stored"] >= before + count, "received"
    )
    agent.wait_until(lambda: agent.facts("pusher")["lag_segments"] == 0, "nothing waits")


def test_the_agent_archives_receives_and_schedules(
    clock: ShiftedClock, product: Product, agents: AgentScene, tmp_path: Path
) -> None:
    """Nothing is lost or late for it, and what was skipped is run once."""
    product.server.sql("CREATE TABLE rows (number serial)")
    assert product.cli("backup").returncode == 0
    agents.configure(more='[receive]\nis_enabled = true\n[schedule]\nbackup = "0 3 * * *"\n')
    agent = agents.start()
    # By how much, how many backups there are then, how often planning has begun anew by then.
    for by, made, replanned in ((-HOUR, 1, 1), (DAY, 2, 1), (-DAY, 2, 2)):
        clock.jump(by)
        write_and_archive(product, agent, 2)
        agent.wait_until(
            lambda: agent.log.count("planning begins anew") == replanned,  # noqa: B023
            f"the schedule has noticed {by}",
        )
        agent.wait_until(lambda: len(backups(product)) == made, f"{made} backups")  # noqa: B023
        agent.wait_until(lambda: agent.facts("schedule")["running"] == "", "no job runs")
        burnt = burnt_seconds(agent)
        time.sleep(QUIET_SECONDS)  # what must not happen in it cannot be awaited
        assert burnt_seconds(agent) - burnt < QUIET_SECONDS / 2, by
        assert len(backups(product)) == made
    components = agent.snapshot.components if agent.snapshot else []
    assert [(one.name, one.restarts) for one in components if one.restarts] == []
    assert agent.facts("pusher")["failures_total"] == 0, agent.log
    assert len(agent.log.splitlines()) < 100, agent.log
    status = product.cli("wal", "status", "--json")
    assert status.returncode == 0, status
    assert agent.end() == 0
    names = [segment.name for segment in product.archive().segments(1)]
    assert len(names) == int(names[-1], 16) - int(names[0], 16) + 1, names
    # From the oldest backup to the newest commit, over all jumps.
    copy = tmp_path / "copy"
    product.restore(copy, start=True, backup_id=backups(product)[0])
    rows = product.connected(copy).sql("SELECT number FROM rows ORDER BY 1")
    assert [number for (number,) in rows] == list(range(1, 7))


class Committed(NamedTuple):
    """A row that was inserted, and what PostgreSQL says of its commit."""

    label: str
    xid: int
    moment: datetime


def committed(product: Product, label: str) -> Committed:
    """Insert a row, end the segment, and commit nothing else."""
    server = product.server
    server.sql("INSERT INTO rows VALUES (%s)", label)
    ((xid, moment, segment),) = server.sql(
        "SELECT xmin::text::int, pg_xact_commit_timestamp(xmin),"
        " pg_walfile_name(pg_current_wal_lsn()) FROM rows WHERE label = %s",
        label,
    )
    server.sql("SELECT pg_switch_wal()")
    archive = product.archive()
    server.wait_until(lambda: archive.has(segment), f"{segment} archived")
    return Committed(label, xid, moment)


def test_recovery_stops_where_postgresql_does(
    clock: ShiftedClock, product: Product, tmp_path: Path
) -> None:
    """Commit times go back and forth: the plan names the commit at which PostgreSQL stops.

    That is the first one in the order of the WAL that is later than the target,
    whatever has happened before it and after it.
    """
    clock.jump(-2 * HOUR)
    product.server.sql("CREATE TABLE rows (label text)")
    assert product.cli("backup").returncode == 0
    commits: list[Committed] = []
    for label, by in (("ten", 0), ("noon", 2), ("eleven", -1), ("tomorrow", 24), ("one", -22)):
        clock.jump(by * HOUR)
        commits.append(committed(product, label))
    ten, noon, eleven, tomorrow, one = commits
    assert ten.moment < eleven.moment < noon.moment < one.moment < tomorrow.moment
    for target, rows, stop in (
        (eleven.moment + HOUR / 2, ["ten"], noon),
        (noon.moment, ["ten", "noon", "eleven"], tomorrow),
        (one.moment + HOUR / 2, ["ten", "noon", "eleven"], tomorrow),
    ):
        copy = tmp_path / f"to-{stop.label}-{target:%H%M}"
        product.copies.append(copy)
        words = ("--to-time", target.isoformat(), "--target-dir", str(copy), "--yes", "--json")
        planned = product.cli("restore", *words, "--dry-run")
        assert planned.returncode == 0, planned
        plan = json.loads(planned.stdout)["plan"]
        assert plan["stops_at"] == f"commit of transaction {stop.xid}"
        restored = product.cli("restore", *words, "--start")
        assert restored.returncode == 0, restored
        there = product.connected(copy)
        assert [label for (label,) in there.sql("SELECT label FROM rows")] == rows
        product.stop(copy)
    # Nothing later than this: PostgreSQL would end with an error, so it is said before.
    late = (tomorrow.moment + HOUR).isoformat()
    refused = product.cli("restore", "--to-time", late, "--target-dir", str(tmp_path / "late"))
    assert refused.returncode == TargetUnreachableError.exit_status, refused
    assert not (tmp_path / "late").exists()
