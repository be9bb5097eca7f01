"""Copies beside production: they harm nothing, and go on, or take over, when somebody says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.errors import (
    ConfirmationError,
    CorruptObjectError,
    NotOwnerError,
    RecoveryError,
    WalConflictError,
)
from pgrecall.model.targets import Immediate, Latest, ToLsn, ToName, ToTime, ToXid
from pgrecall.model.wal_files import WalFile
from pgrecall.postgres.instance import running_postmaster
from pgrecall.repository import layout
from pgrecall.wal.push import push_file
from tests.support.oracle import Oracle
from tests.support.postgresql import PostgresServer, ServerFactory, free_port
from tests.support.product import Product


@pytest.fixture
def product(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[Product]:
    made = Product.start(pg_factory, tmp_path, track_commit_timestamp="on")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def oracle(product: Product) -> Iterator[Oracle]:
    with Oracle(product.server) as made:
        yield made


def auto_conf(pgdata: Path) -> str:
    return (pgdata / "postgresql.auto.conf").read_text()


# --- beside production ---------------------------------------------------------------


def test_two_clones_on_one_timeline_number_leave_the_archive_alone(
    product: Product, oracle: Oracle, tmp_path: Path
) -> None:
    """Facts 2 and 29, invariant 9a: both promote to timeline 2 while production goes on."""
    server = product.server
    product.backup()
    oracle.write(3)
    product.switch()
    before = product.objects()
    clones = [tmp_path / "one", tmp_path / "two"]
    ports = set()
    for clone in clones:
        result = product.restore(clone, start=True)
        assert result.started is not None
        assert (result.started.state, result.started.timeline) == ("open", 2)
        ports.add(result.started.port)
        copy = product.connected(clone)
        copy.sql("CREATE TABLE of_the_copy AS SELECT generate_series(1, 1000) AS number")
        copy.sql("SELECT pg_switch_wal()")
        copy.sql("CHECKPOINT")
        assert copy.value("SHOW archive_mode") == "off"
        assert copy.value("SHOW listen_addresses") == ""
    assert len(ports | {server.port}) == 3
    assert product.objects() == before
    # Pushing by hand is refused as well: the marker tells whose copy it is.
    for clone in clones:
        history = clone / "pg_wal" / "00000002.history"
        context = product.context()
        with pytest.raises(NotOwnerError):
            push_file(context.settings, context.server, str(history), pgdata="", environment={})
    assert product.objects() == before
    # Production has lost nothing: the newest state is its own.
    oracle.write(3)
    product.switch()
    third = tmp_path / "three"
    result = product.restore(third, start=True)
    assert oracle.found_on(product.connected(third)) == [1, 2, 3, 4, 5, 6]


def test_take_over_and_recovery_across_the_switch(
    pg_factory: ServerFactory, product: Product, oracle: Oracle, tmp_path: Path
) -> None:
    """--take-over: the copy archives, the old server is refused; then PITR on the new path, to
    moments before and behind the switch, and back on timeline 1 (fact 29)."""
    server = product.server
    product.backup()
    first = oracle.write(3)
    last = oracle.write(3)
    product.switch()
    clone = tmp_path / "clone"
    product.restore(clone, ToXid(first.xid), start=True)
    product.approvals.questions.clear()
    new = tmp_path / "new"
    product.restore(new, ToXid(first.xid), take_over=True)
    assert product.approvals.questions != [""]
    # Production does not know yet. What it brings now is refused.
    with server.connect() as connection:
        connection.execute("SELECT pg_logical_emit_message(true, 'test', 'not empty')")
        connection.execute("SELECT pg_switch_wal()")
    server.wait_until(
        lambda: server.value("SELECT failed_count FROM pg_stat_archiver") > 0, "a refusal"
    )
    assert "taken over" in server.log
    server.stop("immediate")
    owner = pg_factory.adopt(new)
    owner.port, owner.host = server.port, server.host
    owner.start()
    owner.wait_until(lambda: not owner.value("SELECT pg_is_in_recovery()"), "promotion")
    assert oracle.found_on(owner) == [1, 2, 3]
    assert owner.value("SHOW archive_mode") == "on"
    owner.sql("INSERT INTO oracle VALUES (100, '')")
    owner.sql("SELECT pg_create_restore_point('on_two')")
    owner.sql("INSERT INTO oracle VALUES (101, '')")
    assert product.switch(owner).startswith("00000002")
    # The clone was promoted to timeline 2 as well: it comes too late.
    before = product.objects()
    with pytest.raises(WalConflictError, match="timeline 2"):
        product.promote(clone, take_over=True)
    assert product.objects() == before
    for target, wishes, rows in (
        (Latest(), {}, [1, 2, 3, 100, 101]),
        (ToName("on_two"), {}, [1, 2, 3, 100]),
        (ToXid(oracle.acknowledged[1].xid), {}, [1, 2]),
        (Latest(), {"timeline": 1}, [1, 2, 3, 4, 5, 6]),
        (ToTime(oracle.acknowledged[4].at), {"timeline": 1}, [1, 2, 3, 4, 5]),
    ):
        copy = tmp_path / f"copy-{len(product.copies)}"
        result = product.restore(copy, target, start=True, **wishes)
        assert result.started is not None
        assert result.plan.timeline == wishes.get("timeline", 2)
        assert result.started.timeline == 3
        assert oracle.found_on(product.connected(copy)) == rows
        product.end(copy)
    assert last.number == 6
    # A damaged history file: which WAL belongs together cannot be told any more.
    history = product.path_of(layout.wal_key("main", 1, WalFile("00000002.history")))
    content = bytearray(history.read_bytes())
    content[len(content) // 2] ^= 1
    history.chmod(0o600)
    history.write_bytes(content)
    with pytest.raises(CorruptObjectError, match=r"00000002\.history"):
        product.restore(tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


def test_paused_and_inspected_then_promoted_to_take_over(
    product: Product, oracle: Oracle, tmp_path: Path
) -> None:
    server = product.server
    product.backup()
    middle = oracle.write(3)
    oracle.write(3)
    product.switch()
    copy = tmp_path / "copy"
    result = product.restore(copy, ToXid(middle.xid), action="pause", start=True)
    assert result.started is not None
    assert result.started.state == "paused"
    status = product.status(copy)
    assert (status.state, status.timeline, status.archive_mode) == ("paused", 1, "off")
    assert status.target == f"recovery_target_xid = {middle.xid}"
    assert status.last_commit_at == middle.at
    assert status.restore_id == result.restore_id
    inspected = product.connected(copy)
    assert oracle.found_on(inspected) == [1, 2, 3]
    promoted = product.promote(copy)
    assert (promoted.status.state, promoted.status.timeline) == ("open", 2)
    assert "--take-over" in promoted.next_steps[0]
    assert not settings_in_force(copy) & {"recovery_target_xid", "restore_command"}
    inspected.sql("INSERT INTO oracle VALUES (100, '')")
    inspected.sql("SELECT pg_switch_wal()")
    before = product.objects()
    words = ("recovery", "promote", "--take-over", "--target-dir", str(copy))
    assert product.cli(*words).returncode == ConfirmationError.exit_status
    shown = product.cli(*words, "--dry-run")
    assert shown.returncode == 0
    assert "the original server" in shown.stdout
    assert product.objects() == before
    product.approvals.questions.clear()
    taken = product.promote(copy, take_over=True)
    assert product.approvals.questions == ["Shall this copy replace the server?"]
    assert taken.take_over is not None
    assert taken.take_over.pushed[0] == "00000002.history"
    assert len(taken.take_over.pushed) > 1
    assert set(before) < set(product.objects())
    assert any("restart" in step for step in taken.next_steps)
    server.stop()
    product.end(copy)
    owner = PostgresServer(server.installation, copy)
    shutil.rmtree(owner.host)
    owner.port, owner.host = server.port, server.host
    try:
        owner.start()
        assert owner.value("SHOW archive_mode") == "on"
        owner.sql("INSERT INTO oracle VALUES (101, '')")
        product.switch(owner)
        assert product.promote(copy, take_over=True).take_over is not None
        again = tmp_path / "again"
        product.restore(again, start=True)
        assert oracle.found_on(product.connected(again)) == [1, 2, 3, 100, 101]
    finally:
        owner.stop("immediate")


def settings_in_force(pgdata: Path) -> set[str]:
    """Names of what postgresql.auto.conf sets to something."""
    lines = [line for line in auto_conf(pgdata).splitlines() if not line.startswith("#")]
    return {line.split(" ")[0] for line in lines if not line.endswith("= ''")}


def test_resume_at_the_target_opens(product: Product, oracle: Oracle, tmp_path: Path) -> None:
    product.backup()
    middle = oracle.write(2)
    oracle.write()
    product.switch()
    copy = tmp_path / "copy"
    product.restore(copy, ToLsn(middle.end, False), action="pause", start=True)
    resumed = product.resume(copy)
    assert resumed.status.state == "open"
    assert oracle.found_on(product.connected(copy)) == [1, 2]
    assert not settings_in_force(copy) & {"recovery_target_lsn", "recovery_target_action"}
    with pytest.raises(RecoveryError, match="not paused"):
        product.resume(copy)
    with pytest.raises(RecoveryError, match="not in recovery"):
        product.promote(copy)
    product.end(copy)
    with pytest.raises(RecoveryError, match="no instance runs"):
        product.status(copy)
    shown = product.cli("recovery", "status", "--target-dir", str(copy), "--json")
    assert shown.returncode == RecoveryError.exit_status
    assert "pg_ctl" in json.loads(shown.stdout)["error"]["hint"]


def test_shutdown_action_port_and_standby(product: Product, oracle: Oracle, tmp_path: Path) -> None:
    product.backup()
    middle = oracle.write(2)
    oracle.write(2)
    product.switch()
    stopped = tmp_path / "stopped"
    result = product.restore(stopped, ToXid(middle.xid), action="shutdown", start=True)
    assert result.started is not None
    assert (result.started.state, result.started.pid) == ("shut-down", None)
    assert running_postmaster(stopped) is None
    standby = tmp_path / "standby"
    port = free_port()
    result = product.restore(standby, standby=True, start=True, port=port)
    assert result.started is not None
    assert (result.started.state, result.started.port) == ("recovering", port)
    copy = product.connected(standby)
    assert copy.value("SELECT pg_is_in_recovery()")
    oracle.write(2)
    product.switch()
    copy.wait_until(lambda: oracle.found_on(copy) == [1, 2, 3, 4, 5, 6], "it follows the archive")
    assert product.promote(standby).status.state == "open"
    assert os.path.exists(product.server.pgdata)


# --- settings that come with the backup --------------------------------------------------


def test_leftover_targets_do_not_stop_a_recovery(
    product: Product, oracle: Oracle, tmp_path: Path
) -> None:
    """Fact 19: an old name in postgresql.conf, another target in postgresql.auto.conf."""
    server = product.server
    server.configure(recovery_target_name="old", primary_conninfo="host=127.0.0.1 port=1")
    server.sql("ALTER SYSTEM SET recovery_target_time = '2020-01-01 00:00:00+00'")
    server.sql("ALTER SYSTEM SET recovery_end_command = 'touch ended'")
    server.sql("ALTER SYSTEM SET work_mem = '5MB'")
    # Two targets at once are FATAL at the next start; a backup does not start the server.
    product.backup()
    oracle.write()
    server.sql("SELECT pg_create_restore_point('old')")
    last = oracle.write(2)
    product.switch()
    for target in (Latest(), ToXid(last.xid)):
        copy = tmp_path / f"copy-{len(product.copies)}"
        product.restore(copy, target, start=True)
        restored = product.connected(copy)
        assert oracle.found_on(restored) == [1, 2, 3]
        assert restored.value("SHOW work_mem") == "5MB"
        assert not (copy / "ended").exists()
        assert "# recovery_target_time = " in auto_conf(copy)
        product.end(copy)


def test_settings_raised_after_the_backup(product: Product, oracle: Oracle, tmp_path: Path) -> None:
    """Fact 22: the parameter change is in the WAL, recovery would end at it."""
    server = product.server
    product.backup()
    server.configure(max_connections=137, max_worker_processes=11)
    oracle.__exit__()
    server.restart()
    server.sql("CREATE TABLE afterwards AS SELECT 7 AS number")
    product.switch()
    copy = tmp_path / "copy"
    result = product.restore(copy, start=True)
    assert result.settings["max_connections"] == "137"
    assert product.connected(copy).value("SELECT number FROM afterwards") == 7


def test_settings_from_the_command_line_of_the_server(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    """A supervisor gave max_connections as an argument: no file tells the copy."""
    product = Product.start(pg_factory, tmp_path, track_commit_timestamp="on")
    server = product.server
    server.stop()
    installation = server.installation
    text = (server.pgdata / "postgresql.conf").read_text()
    (server.pgdata / "postgresql.conf").write_text(text + "max_connections = 20\n")
    log = tmp_path / "by-hand.log"
    pg_ctl = [str(installation.program("pg_ctl")), "-D", str(server.pgdata), "-w", "-l", str(log)]
    options = f"-c max_connections=150 -p {server.port} -k {server.host}"
    os.spawnv(os.P_WAIT, pg_ctl[0], [*pg_ctl, "-o", options, "start"])
    try:
        assert server.value("SHOW max_connections") == "150"
        product.backup()
        product.switch()
        result = product.restore(tmp_path / "copy", start=True)
        assert result.started is not None
        assert result.started.state == "open"
    finally:
        product.close()
        os.spawnv(os.P_WAIT, pg_ctl[0], [*pg_ctl, "-m", "immediate", "stop"])


def test_configuration_outside_of_the_data_directory(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    """Fact 28: as Debian does it, with an include_dir that may be empty, and its own hba file."""
    product = Product.start(pg_factory, tmp_path, track_commit_timestamp="on")
    server = product.server
    server.stop()
    etc = tmp_path / "etc"
    (etc / "conf.d").mkdir(parents=True)
    (etc / "empty.d").mkdir()
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        shutil.move(server.pgdata / name, etc / name)
    (etc / "conf.d" / "memory.conf").write_text("work_mem = '7MB'\n")
    with (etc / "postgresql.conf").open("a") as file:
        file.write(
            f"data_directory = '{server.pgdata}'\nhba_file = '{etc}/pg_hba.conf'\n"
            f"ident_file = '{etc}/pg_ident.conf'\nexternal_pid_file = '{tmp_path}/main.pid'\n"
            "include_dir = 'conf.d'\ninclude_dir = 'empty.d'\n"
            "include_if_exists = 'absent.conf'\n"
        )
    log = tmp_path / "by-hand.log"
    pg_ctl = [str(server.installation.program("pg_ctl")), "-w", "-D", str(server.pgdata)]
    options = f"-c config_file={etc}/postgresql.conf -p {server.port} -k {server.host}"
    os.spawnv(os.P_WAIT, pg_ctl[0], [*pg_ctl, "-l", str(log), "-o", options, "start"])
    try:
        assert server.value("SHOW work_mem") == "7MB", log.read_text()
        product.backup()
        server.sql("CREATE TABLE afterwards AS SELECT 7 AS number")
        product.switch()
        pid_file = (tmp_path / "main.pid").read_text()
        copy = tmp_path / "copy"
        product.restore(copy, start=True)
        restored = product.connected(copy)
        assert restored.value("SELECT number FROM afterwards") == 7
        assert restored.value("SHOW work_mem") == "7MB"
        assert restored.value("SHOW data_directory") == str(copy)
        assert restored.value("SHOW hba_file") == str(copy / "pg_hba.conf")
        assert restored.value("SHOW config_file") == str(copy / "postgresql.conf")
        assert (tmp_path / "main.pid").read_text() == pid_file
    finally:
        product.close()
        os.spawnv(os.P_WAIT, pg_ctl[0], [*pg_ctl, "-m", "immediate", "stop"])


# --- places ---------------------------------------------------------------------------


def test_tablespaces_and_a_pg_wal_that_lies_elsewhere(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    """Fact 20: production's links and files stay, the copy has its own; also one in place."""
    server = pg_factory(start=False, segment_mib=1, track_commit_timestamp="on")
    shutil.move(server.pgdata / "pg_wal", tmp_path / "wal elsewhere")
    (server.pgdata / "pg_wal").symlink_to(tmp_path / "wal elsewhere")
    product = Product(tmp_path, server)
    server.start()
    places = [tmp_path / "space one", tmp_path / "zwei"]
    for number, place in enumerate(places):
        place.mkdir()
        server.sql(f"CREATE TABLESPACE space{number} LOCATION '{place}'")
    with server.connect() as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE inside LOCATION ''")
    for number, space in enumerate(("space0", "space1", "inside")):
        server.sql(f"CREATE TABLE t{number} TABLESPACE {space} AS SELECT generate_series(1, 500) n")
    try:
        product.backup()
        server.sql("INSERT INTO t0 VALUES (501); INSERT INTO t2 VALUES (501)")
        product.switch()
        server.sql("CHECKPOINT")
        before = [sorted(str(path) for path in place.rglob("*")) for place in places]
        links = sorted(os.readlink(path) for path in links_of(server.pgdata))
        copy = tmp_path / "copy"
        mapping = {str(places[0]): str(tmp_path / "new one"), "space1": str(tmp_path / "neu")}
        product.restore(copy, start=True, tablespace_map=mapping)
        restored = product.connected(copy)
        counts = [restored.value(f"SELECT count(*) FROM t{number}") for number in range(3)]
        assert counts == [501, 500, 501]
        restored.sql("INSERT INTO t0 SELECT generate_series(1, 5000); CHECKPOINT")
        assert sorted(os.readlink(path) for path in links_of(copy)) == sorted(mapping.values())
        assert sorted(os.readlink(path) for path in links_of(server.pgdata)) == links
        assert [sorted(str(path) for path in place.rglob("*")) for place in places] == before
        assert server.value("SELECT count(*) FROM t0") == 501
        assert not (copy / "pg_wal").is_symlink()
        assert not (copy / "tablespace_map").exists()
    finally:
        product.close()


def links_of(pgdata: Path) -> list[Path]:
    return [path for path in (pgdata / "pg_tblspc").iterdir() if path.is_symlink()]


def test_into_its_own_place_under_a_nasty_name(pg_factory: ServerFactory, tmp_path: Path) -> None:
    """The usual disaster: the data directory is gone, everything goes back to where it was."""
    server = pg_factory(name='my "data", 100% o\'clock ü', start=False, segment_mib=1)
    product = Product(tmp_path, server)
    server.start()
    place = tmp_path / "space"
    place.mkdir()
    server.sql(f"CREATE TABLESPACE apart LOCATION '{place}'")
    server.sql("CREATE TABLE rows TABLESPACE apart AS SELECT generate_series(1, 100) AS number")
    try:
        product.backup()
        server.sql("INSERT INTO rows VALUES (101)")
        product.switch()
        server.stop("immediate")
        shutil.rmtree(server.pgdata)
        shutil.rmtree(place)
        result = product.restore(server.pgdata, Latest(), start=True)
        assert result.started is not None
        assert product.connected(server.pgdata).value("SELECT count(*) FROM rows") == 101
        assert os.readlink(links_of(server.pgdata)[0]) == str(place)
        assert server.pgdata.stat().st_mode & 0o777 == 0o700
    finally:
        product.close()


def test_immediate_takes_the_backup_that_is_named(
    product: Product, oracle: Oracle, tmp_path: Path
) -> None:
    first = product.backup()
    oracle.write(2)
    product.backup()
    copy = tmp_path / "copy"
    result = product.restore(copy, Immediate(), backup_id=first.backup_id, start=True)
    assert result.plan.backup_id == first.backup_id
    assert oracle.found_on(product.connected(copy)) == []


def test_a_signal_during_recovery_leaves_no_server(
    product: Product, oracle: Oracle, tmp_path: Path
) -> None:
    """The instance that --start was waiting for is ended with the run."""
    product.backup()
    oracle.write(2)
    product.switch()
    copy = tmp_path / "copy"
    product.copies.append(copy)
    words = ("restore", "--standby", "--start", "--target-dir", str(copy))
    process = subprocess.Popen(product.command(*words), stdout=subprocess.DEVNULL)
    product.server.wait_until(
        lambda: running_postmaster(copy) or process.poll() is not None, "it starts"
    )
    process.send_signal(signal.SIGTERM)
    status = process.wait(30)
    if status != 0:  # a run that had finished before the signal keeps its server
        product.server.wait_until(lambda: running_postmaster(copy) is None, "it is ended")
