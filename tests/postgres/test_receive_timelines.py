"""Receiving over a failover: followed where the WAL goes on, refused where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.errors import IdentityError, WalDivergedError, WalGapError
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import segment_name
from pgrecall.repository.gaps import NOT_RECEIVED, read_gaps
from pgrecall.wal.receive import Receiver
from tests.support.postgresql import (
    SUPERUSER,
    Installation,
    PostgresServer,
    ServerFactory,
    run_program,
)
from tests.support.receive_scene import ReceiveScene, Running


def make_standby(
    pg_factory: ServerFactory, primary: PostgresServer, directory: Path, *, keep: str = "64MB"
) -> PostgresServer:
    """A streaming standby of ``primary``, started."""
    run_program(
        [
            primary.installation.program("pg_basebackup"),
            *primary.client_options(),
            *("-D", directory, "-X", "stream", "-c", "fast", "--no-sync"),
        ]
    )
    standby = pg_factory.adopt(directory, primary.installation)
    (directory / "standby.signal").touch()
    standby.configure(
        primary_conninfo=f"host={primary.host} port={primary.port} user={SUPERUSER}"
        " application_name=standby",
        wal_keep_size=keep,
    )
    standby.start()
    return standby


def wait_replayed(standby: PostgresServer, lsn: Lsn) -> None:
    standby.wait_until(
        lambda: Lsn.parse(str(standby.value("SELECT pg_last_wal_replay_lsn()::text"))) >= lsn,
        f"{lsn} replayed",
    )


def promote(standby: PostgresServer) -> None:
    standby.sql("SELECT pg_promote()")
    standby.wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "it is promoted")
    standby.sql("CHECKPOINT")


def test_a_failover_is_followed_without_a_gap(
    pg_factory: ServerFactory, installation: Installation, tmp_path: Path
) -> None:
    primary = pg_factory(installation, segment_mib=1)
    standby = make_standby(pg_factory, primary, tmp_path / "standby")
    scene = ReceiveScene(tmp_path, primary)
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(2)
        _, lsn = scene.current()
        running.wait_flushed(lsn)
    wait_replayed(standby, lsn)
    primary.stop()
    promote(standby)
    scene.pg = standby
    standby.sql("CREATE TABLE after_failover AS SELECT 1")
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(2)
        last = scene.switch()
        assert last.startswith("00000002")
        archive = scene.archive()
        running.wait(lambda: archive.has(last), f"{last} is stored")
        assert standby.value("SELECT count(*) FROM pg_replication_slots") == 1  # fact 10
    history = scene.archive().history(2)
    switched_at = history.end_of(1)
    assert switched_at is not None
    newest = Lsn.parse(str(standby.value("SELECT pg_current_wal_lsn()::text")))
    first = min(found.name for found in scene.archive().segments(1))
    start = Lsn(int(first[8:16], 16) << 32 | int(first[16:], 16) * scene.segment_bytes)
    before = newest - newest % scene.segment_bytes
    assert scene.archive().first_gap(history, start, before) is None
    # What was received of the old timeline's last segment is kept as its tail.
    old = segment_name(1, switched_at, scene.segment_bytes)
    tail = scene.tail(old)
    assert tail is not None
    assert tail.end == switched_at


def test_a_live_receiver_on_the_standby_sees_the_promotion(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    primary = pg_factory(segment_mib=1)
    standby = make_standby(pg_factory, primary, tmp_path / "standby")
    scene = ReceiveScene(tmp_path, primary)
    scene.pg = standby
    with scene.receiving() as running:
        running.wait_streaming()
        primary.sql("SELECT pg_logical_emit_message(true, 'test', repeat('x', 3000000))")
        lsn = Lsn.parse(str(primary.value("SELECT pg_current_wal_flush_lsn()::text")))
        running.wait_flushed(lsn)
        promote(standby)
        running.wait(lambda: running.receiver.facts()["timeline"] == 2, "timeline 2")
        scene.fill(2)
        last = scene.switch()
        running.wait(lambda: scene.archive().has(last), f"{last} is stored")
    assert 2 in scene.archive().histories()


def test_what_was_received_beyond_the_switch_is_kept_and_named(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    primary = pg_factory(segment_mib=1)
    standby = make_standby(pg_factory, primary, tmp_path / "standby")
    scene = ReceiveScene(tmp_path, primary)
    standby.stop()
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(2)
        primary.sql("CREATE TABLE only_here AS SELECT 1")
        name, lsn = scene.current()
        running.wait_flushed(lsn)
    primary.kill9()
    (standby.pgdata / "standby.signal").touch()
    standby.start()
    promote(standby)
    scene.pg = standby
    with pytest.raises(WalDivergedError, match=r"are not\s+part of its timeline 2") as caught:
        run_to_end(scene.receiver())
    assert "--timeline 1" in caught.value.hint
    tail = scene.tail(name)
    assert tail is not None
    assert tail.end >= lsn
    with scene.receiving(accepts_divergence=True) as running:
        running.wait_streaming()
        scene.fill(1)
        last = scene.switch()
        running.wait(lambda: scene.archive().has(last), f"{last} is stored")
    assert scene.tail(name) is not None


def test_a_server_that_was_set_back_is_refused(pg_factory: ServerFactory, tmp_path: Path) -> None:
    primary = pg_factory(segment_mib=1)
    primary.stop()
    copy = tmp_path / "set back"
    run_program(["cp", "-a", primary.pgdata, copy])
    primary.start()
    scene = ReceiveScene(tmp_path, primary)
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(3)
        _, lsn = scene.current()
        running.wait_flushed(lsn)
    primary.stop()
    again = pg_factory.adopt(copy)
    again.start()
    scene.pg = again
    with pytest.raises(WalDivergedError, match="has only written up to"):
        run_to_end(scene.receiver())
    again.sql("SELECT pg_logical_emit_message(true, 'test', repeat('other', 1000000))")
    again.sql("SELECT pg_logical_emit_message(true, 'test', repeat('other', 1000000))")
    with pytest.raises(WalDivergedError, match="Nothing was overwritten"):
        run_to_end(scene.receiver())


def test_another_server_is_refused(pg_factory: ServerFactory, tmp_path: Path) -> None:
    primary = pg_factory(segment_mib=1)
    scene = ReceiveScene(tmp_path, primary)
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(1)
        running.wait_flushed(scene.current()[1])
    other = pg_factory(segment_mib=1, name="other", start=False)
    run_program(["rm", "-rf", other.pgdata])
    run_program(
        [
            other.installation.program("initdb"),
            *("-D", other.pgdata, "-U", SUPERUSER, "-A", "trust", "--no-sync"),
            "--wal-segsize=1",
        ]
    )
    other.start()
    scene.pg = other
    with pytest.raises(IdentityError, match="the spool holds WAL of system"):
        run_to_end(scene.receiver())


def run_to_end(receiver: Receiver) -> None:
    """Run a receiver that ends by itself."""
    error = Running(receiver).join()
    if error is not None:
        raise error


def test_a_gap_after_a_failover_is_named_and_recorded_once_it_is_accepted(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    primary = pg_factory(segment_mib=1)
    standby = make_standby(pg_factory, primary, tmp_path / "standby", keep="0")
    scene = ReceiveScene(tmp_path, primary)
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(2)
        held = scene.current()[1]
        running.wait_flushed(held)
    scene.fill(8)
    wait_replayed(standby, scene.current()[1])
    primary.stop()
    promote(standby)
    scene.pg = standby
    with pytest.raises(WalGapError, match=r"has removed the WAL from .* bytes\) before it was"):
        run_to_end(scene.receiver())
    assert list(scene.store.list("servers/main/wal/0001/gaps/")) == []
    with scene.receiving(accepts_gap=True) as running:
        running.wait_streaming()
        assert running.receiver.gaps
        last = scene.switch()
        running.wait(lambda: scene.archive().has(last), f"{last} is stored")
    (gap,) = read_gaps(scene.store, "main", 1)
    assert gap.cause == NOT_RECEIVED
    assert gap.missing_bytes > 0
    assert gap.start >= held
