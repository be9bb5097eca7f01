"""``standby build``: from the repository, until primary and standby say that it streams."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from pgrecall.app.requests import StandbyBuildRequest
from pgrecall.app.standbys import StandbyBuildResult, build_standby
from pgrecall.errors import DestinationError, PostgresRightsError, SlotError, UsageError
from pgrecall.further_errors import StandbyError
from tests.support.postgresql import SUPERUSER, PostgresServer, ServerFactory
from tests.support.product import Product


@pytest.fixture
def product(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[Product]:
    made = Product.start(pg_factory, tmp_path)
    try:
        made.server.sql("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS number")
        made.backup()
        yield made
    finally:
        made.close()


def url(server: PostgresServer, user: str = SUPERUSER) -> str:
    return f"postgresql://{user}@/postgres?host={quote(server.host, safe='')}&port={server.port}"


def build(
    product: Product, target: Path, primary: str = "", **wishes: object
) -> StandbyBuildResult:
    product.copies.append(target)
    request = StandbyBuildRequest(
        primary=primary or url(product.server),
        target_dir=str(target),
        wait_seconds=120.0,
        **wishes,  # type: ignore[arg-type]
    )
    return build_standby(product.context(), request)


def arrives(product: Product, target: Path, table: str) -> None:
    """What is committed on the primary is seen on the standby, without the archive's help."""
    product.server.sql(f"CREATE TABLE {table} AS SELECT 1 AS one")
    standby = product.connected(target)
    product.server.wait_until(
        lambda: standby.value("SELECT to_regclass(%s) IS NOT NULL", table), f"{table} arrives"
    )
    assert standby.value("SELECT pg_is_in_recovery()") is True
    assert standby.value("SELECT status FROM pg_stat_wal_receiver") == "streaming"


def test_build_then_rebuild_over_the_old_files(product: Product, tmp_path: Path) -> None:
    """An odd name, a slot that is made, and a second build by delta that finds the slot."""
    target = tmp_path / "the replica's «données» 100%"
    result = build(product, target, slot="replica_1")
    assert result.streaming is not None
    assert result.streaming.application_name == result.made_slot == "replica_1"
    assert result.started is not None
    assert result.started.state == "recovering"
    slots = "SELECT slot_name, active FROM pg_replication_slots"
    assert product.server.sql(slots) == [("replica_1", True)]
    arrives(product, target, "first")
    standby = product.connected(target)
    assert standby.value("SHOW archive_mode") == "off"
    assert standby.value("SHOW recovery_target_timeline") == "latest"
    assert "|| exit 1" in standby.value("SHOW restore_command")
    with pytest.raises(SlotError, match="in use"):
        build(product, tmp_path / "other", slot="replica_1")
    assert not (tmp_path / "other").exists()
    with pytest.raises(DestinationError):  # it runs
        build(product, target, delta=True)
    product.stop(target)
    product.server.sql("UPDATE rows SET number = -number WHERE number < 10")
    again = build(product, target, slot="replica_1", delta=True)
    assert again.made_slot == ""
    assert again.streaming is not None
    arrives(product, target, "second")
    assert product.connected(target).value("SELECT sum(number) FROM rows") == 500500 - 90


def test_what_cannot_be_followed_is_refused_before_anything_is_written(
    product: Product, pg_factory: ServerFactory, tmp_path: Path
) -> None:
    target = tmp_path / "standby"
    server = product.server
    other = pg_factory()
    with pytest.raises(StandbyError, match="another system"):
        build(product, target, url(other))
    server.sql("CREATE ROLE reader LOGIN")
    with pytest.raises(PostgresRightsError, match="replication"):
        build(product, target, url(server, "reader"), slot="mine")
    with pytest.raises(UsageError, match="holds a password") as refused:
        build(product, target, "postgresql://someone:sesame@localhost/postgres")
    assert "sesame" not in str(refused.value)
    open_file = tmp_path / "pass"
    open_file.write_text("*:*:*:*:sesame\n")
    open_file.chmod(0o644)
    with pytest.raises(UsageError, match="open to others"):
        build(product, target, f"{url(server)}&passfile={open_file}")
    assert server.sql("SELECT slot_name FROM pg_replication_slots") == []
    assert not target.exists()
    target.mkdir()
    (target / "mine").write_text("not to be lost")
    with pytest.raises(DestinationError):
        build(product, target, slot="mine")
    assert server.sql("SELECT slot_name FROM pg_replication_slots") == []
    assert (target / "mine").read_text() == "not to be lost"


def test_an_old_primary_is_not_followed(product: Product, tmp_path: Path) -> None:
    """The archive went on to another timeline: who is left behind is no primary any more."""
    new = tmp_path / "new"
    product.restore(new, start=True)
    product.promote(new, take_over=True)
    with pytest.raises(StandbyError, match="does not lead there"):
        build(product, tmp_path / "standby")
    assert not (tmp_path / "standby").exists()


@pytest.mark.parametrize("point", ["standby.slot", "restore.configured"])
def test_the_same_command_goes_on_after_a_kill(
    product: Product, tmp_path: Path, point: str
) -> None:
    """Killed with the slot made, or with files half written: the slot is not made twice."""
    target = tmp_path / "standby"
    product.copies.append(target)
    words = ("standby", "build", "--target-dir", str(target), "--primary", url(product.server))
    words += ("--slot", "mine", "--yes")
    killed = product.cli(*words, environment={"PGRECALL_FAULT_KILL": point})
    assert killed.returncode == -signal.SIGKILL
    assert product.server.sql("SELECT slot_name FROM pg_replication_slots") == [("mine",)]
    again = product.cli(*words, "--json")
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert result["made_slot"] == ""
    assert result["streaming"]["application_name"] == "mine"
    arrives(product, target, "later")


def test_a_failover_and_the_old_primary_as_the_new_standby(
    product: Product, tmp_path: Path
) -> None:
    """As docs/standbys.md says it: promote with --take-over, then build the old one by delta."""
    target = tmp_path / "standby"
    build(product, target, slot="replica")
    arrives(product, target, "before")
    old = product.server
    old.stop("immediate")
    product.promote(target, take_over=True)
    product.stop(target)
    new = PostgresServer(old.installation, target)
    try:
        new.start()
        new.sql("CREATE TABLE after AS SELECT 2 AS two")
        product.promote(target, take_over=True)
        product.switch(new)
        product.copies.append(old.pgdata)
        result = build(product, old.pgdata, url(new), slot="old_one", delta=True)
        assert result.made_slot == "old_one"
        assert result.started is not None
        rebuilt = product.connected(old.pgdata)
        assert rebuilt.value("SELECT two FROM after") == 2
        assert rebuilt.value("SELECT received_tli FROM pg_stat_wal_receiver") == 2
    finally:
        new.destroy()
