"""A standby is promoted, and the old primary comes back as a primary: it is refused, loudly."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.errors import FormerPrimaryError
from pgrecall.model.forks import end_of_wal
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import WalFile, history_name, segment_name
from pgrecall.postgres.control import read_control
from pgrecall.repository import layout
from pgrecall.repository.wal_objects import read_header
from pgrecall.wal.commands import restore_command
from tests.support.acknowledged import Writers
from tests.support.agent_process import AgentScene, RunningAgent
from tests.support.postgresql import SUPERUSER, ServerFactory
from tests.support.product import SERVER, Product


class Failover:
    """A primary that archives, by itself or by an agent, and a standby that will when promoted."""

    def __init__(self, pg_factory: ServerFactory, directory: Path, *, with_agent: bool) -> None:
        self.product = Product.start(pg_factory, directory, wal_keep_size="64MB")
        self.old = self.product.server
        self.agents = AgentScene(self.product)
        self.agent: RunningAgent | None = self.agents.start() if with_agent else None
        self.old.sql("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS number")
        self.product.switch()
        pgdata = directory / "standby"
        self.old.client("pg_basebackup", "-D", str(pgdata), "-X", "stream", "-c", "fast")
        self.new = pg_factory.adopt(pgdata, self.old.installation)
        (pgdata / "standby.signal").touch()
        where = f"host={self.old.host} port={self.old.port} user={SUPERUSER}"
        self.new.configure(primary_conninfo=where)
        self.new.start()
        self.old.wait_until(
            lambda: self.old.value("SELECT count(*) FROM pg_stat_replication"), "it streams"
        )

    def wait_received(self) -> None:
        end = self.old.value("SELECT pg_current_wal_lsn()::text")
        self.new.wait_until(
            lambda: self.new.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", end),
            "the standby has everything",
        )

    def promote(self) -> None:
        """Promote the standby, and wait until its history is in the archive."""
        self.new.sql("SELECT pg_promote()")
        self.new.wait_until(
            lambda: self.product.archive().has(history_name(2)), "its history is archived"
        )

    @property
    def left_at(self) -> Lsn:
        return self.product.archive().history(2).switches[-1].end

    def stored(self, timeline: int) -> list[str]:
        return [segment.name for segment in self.product.archive().segments(timeline)]

    def beyond(self) -> list[str]:
        """Archived segments of timeline 1 that hold WAL beyond the fork."""
        archive, left_at = self.product.archive(), self.left_at
        return [name for name in self.stored(1) if end_of_wal(archive.index(name)) > left_at]

    def fill(self, count: int) -> list[str]:
        """So many segments more of the old primary; nobody waits for their archiving."""
        names = []
        for _ in range(count):
            self.old.sql("SELECT pg_logical_emit_message(true, 'test', repeat('x', 1000))")
            names.append(str(self.old.value("SELECT pg_walfile_name(pg_current_wal_lsn())")))
            self.old.sql("SELECT pg_switch_wal()")
        return names

    def wait_refused(self, *, filling: bool = False) -> str:
        """Until PostgreSQL itself counts a failure of timeline 1; the segment's name."""
        stats = "SELECT last_failed_wal FROM pg_stat_archiver WHERE failed_count > 0"
        self.old.wait_until(
            lambda: self.old.sql(stats) or (filling and not self.fill(1)), "the archiver has failed"
        )
        return str(self.old.value(stats))

    def close(self) -> None:
        self.agents.close()
        self.product.close()


@pytest.fixture(params=["command", "agent"])
def failover(
    request: pytest.FixtureRequest, pg_factory: ServerFactory, tmp_path: Path
) -> Iterator[Failover]:
    failover = Failover(pg_factory, tmp_path, with_agent=request.param == "agent")
    yield failover
    failover.close()


@pytest.fixture
def plain(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[Failover]:
    failover = Failover(pg_factory, tmp_path, with_agent=False)
    yield failover
    failover.close()


def test_a_former_primary_that_comes_back_is_refused_until_the_operator_decides(
    failover: Failover,
) -> None:
    product, old, new = failover.product, failover.old, failover.new
    with Writers(old, 2) as writers:
        old.wait_until(lambda: len(writers.acknowledged) > 200, "commits")
        old.kill9()
    failover.promote()
    old.start()
    with Writers(old, 2, "later") as later:
        refused = failover.wait_refused()
        # What it had archived and the standby had not received; with an agent also what it had
        # begun within the second after its last proof.
        before = failover.beyond()
        assert all(name < refused for name in before)
        count = len(later.acknowledged)
        old.wait_until(lambda: len(later.acknowledged) > count + 500, "it goes on under load")
        failover.fill(3)
        old.wait_until(lambda: old.value("SELECT failed_count FROM pg_stat_archiver") > 1, "again")
        first = product.switch(new)
    assert WalFile(first).timeline == 2
    assert WalFile(refused).timeline == 1
    assert f"{refused} goes beyond {failover.left_at}" in old.log
    assert f"exit code {FormerPrimaryError.exit_status}" in old.log
    assert "timeline 2 left timeline 1 (its history was archived at 2" in old.log
    assert "wal allow-branch 1" in old.log
    assert failover.beyond() == before
    if failover.agent is not None:
        failover.agent.wait_until(
            lambda: failover.agent.facts("pusher")["failure_code"] == "former-primary",
            "the pusher says so",
        )

    planned = product.cli("wal", "allow-branch", "1", "--dry-run", "--json")
    assert json.loads(planned.stdout)["plan"]["forks"][0]["left_at"] == str(failover.left_at)
    assert not product.archive().has(refused)
    said = product.cli("wal", "allow-branch", "1", "--reason", "promoted by mistake", "--yes")
    assert said.returncode == 0, said.stderr
    names = failover.fill(1)
    archive = product.archive()
    # The archiver itself tries again after a minute, unless it is told.
    old.wait_until(
        lambda: old.sql("SELECT pg_switch_wal()") and archive.has(names[-1]),
        "the right server archives again",
        timeout_seconds=90,
    )
    assert archive.has(refused)
    assert product.switch(new) in failover.stored(2)
    # The operator thinks better of it.
    assert product.cli("wal", "allow-branch", "1", "--revoke", "--yes").returncode == 0
    old.sql("SELECT pg_stat_reset_shared('archiver')")
    # An agent goes by its last proof for a second: some are still stored.
    refused = failover.wait_refused(filling=True)
    assert f"{refused} goes beyond {failover.left_at}" in old.log


def test_what_is_archived_while_the_promotion_is_told_is_a_second_at_most(
    failover: Failover,
) -> None:
    """The network is cut, not the primary: it writes and archives while the standby is promoted."""
    product, old = failover.product, failover.old
    failover.new.configure(primary_conninfo="")
    failover.new.reload()
    with Writers(old, 2):
        failover.fill(3)
        failover.promote()
        failed = "SELECT 1 FROM pg_stat_archiver WHERE failed_count > 0"
        old.wait_until(lambda: failover.fill(1) and old.sql(failed), "it is refused")
        seen = failover.beyond()
        failover.fill(3)
        time.sleep(2)  # longer than a proof lasts: what must not happen cannot be awaited
        product.switch(failover.new)
    assert failover.beyond() == seen

    def pushed_at(name: str) -> object:
        archive = product.archive()
        key = layout.wal_key(SERVER, archive.generation.number, WalFile(name))
        return read_header(archive.store, key).pushed_at

    told = pushed_at(history_name(2))
    late = [name for name in seen if pushed_at(name) > told + timedelta(seconds=1.5)]  # type: ignore[operator]
    assert late == []


def test_a_switchover_is_not_refused(plain: Failover) -> None:
    """The last segments of a primary that was stopped are archived after the promotion."""
    product, old = plain.product, plain.old
    old.configure(archive_command="false")
    old.reload()
    names = plain.fill(2)
    old.sql("INSERT INTO rows VALUES (0)")
    last = str(old.value("SELECT pg_walfile_name(pg_current_wal_lsn())"))
    old.stop()
    plain.promote()
    control = read_control(old.pgdata)
    assert (control.state, control.primary_timeline) == ("shut down", 1)
    ready = {path.stem for path in (old.pgdata / "pg_wal/archive_status").glob("*.ready")}
    assert ready == {*names, last}
    for name in sorted(ready):
        pushed = product.cli("wal", "push", str(old.pgdata / "pg_wal" / name))
        assert pushed.returncode == 0, pushed.stderr
    assert plain.beyond() == []
    # What it would write if it were started again is refused: nobody may start it so.
    old.configure(archive_command=plain.new.value("SHOW archive_command"))
    old.start()
    old.sql("SELECT pg_stat_reset_shared('archiver')")
    (own,) = plain.fill(1)
    assert plain.wait_refused() == own
    assert plain.beyond() == []


def test_what_is_left_of_a_timeline_that_the_server_has_left_is_archived(plain: Failover) -> None:
    product, old = plain.product, plain.old
    old.kill9()
    plain.promote()
    old.start()
    names = plain.fill(2)
    assert plain.wait_refused() <= names[0]
    old.stop()
    fetch = restore_command(pgrecall_command(), str(product.config), SERVER, standby=False)
    old.configure(
        restore_command=fetch,
        recovery_target_timeline="current",
    )
    (old.pgdata / "recovery.signal").touch()
    old.start()
    old.wait_until(lambda: not old.value("SELECT pg_is_in_recovery()"), "it is promoted")
    archive = product.archive()
    old.wait_until(lambda: all(archive.has(name) for name in names), "the rest is archived")
    assert product.switch()[:8] == "00000003"
    history = archive.history(3)
    assert history.end_of(1) > plain.left_at  # type: ignore[operator]
    begin = WalFile(names[0]).start(archive.segment_bytes)
    assert archive.first_gap(history, begin, history.end_of(1) or begin) is None


def test_a_spool_is_salvaged_beyond_the_fork(plain: Failover) -> None:
    product, old = plain.product, plain.old
    receiver = subprocess.Popen(
        product.command("wal", "receive"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        old.wait_until(
            lambda: old.value("SELECT count(*) FROM pg_stat_replication") == 2, "it is received"
        )
        old.configure(archive_command="false")
        old.reload()
        plain.new.configure(primary_conninfo="")
        plain.new.reload()
        plain.new.wait_until(
            lambda: not plain.new.sql("SELECT 1 FROM pg_stat_wal_receiver"), "it is cut off"
        )
        plain.promote()
        kept = Path(product.repository.path)
        kept.rename(kept.with_name("away"))
        names = plain.fill(3)
        end = old.value("SELECT pg_current_wal_lsn()::text")
        old.wait_until(
            lambda: old.sql(
                "SELECT 1 FROM pg_stat_replication WHERE application_name = 'pgrecall'"
                " AND flush_lsn >= %s::pg_lsn",
                end,
            ),
            "it is in the spool",
        )
    finally:
        receiver.kill()
        receiver.communicate()
    kept.with_name("away").rename(kept)
    before = plain.beyond()
    salvaged = product.cli("wal", "receive", "--salvage", "--json")
    assert salvaged.returncode == 0, salvaged.stderr
    assert set(names) <= set(plain.beyond()) - set(before)
    assert segment_name(1, plain.left_at, product.archive().segment_bytes) <= names[0]
