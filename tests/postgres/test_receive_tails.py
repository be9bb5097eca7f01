"""Tails: given to archive recovery of what is absent everywhere, and to nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.model.lsn import Lsn
from pgrecall.model.targets import ToLsn, ToName
from pgrecall.repository.wal_tails import PIECE_BYTES
from pgrecall.wal.fetch import fetch_file
from tests.fault.test_receive_zero_loss import receiver, streaming_product
from tests.support.postgresql import PostgresServer, ServerFactory
from tests.support.receive_scene import ReceiveScene

TAILS = "[receive]\ntail_seconds = 0.2\n"


def recovering_directory(scene: ReceiveScene, *signals: str) -> Path:
    """Something that looks like PGDATA in recovery."""
    pgdata = scene.directory / "-".join(("copy", *signals))
    (pgdata / "pg_wal").mkdir(parents=True)
    (pgdata / "global").mkdir()
    control = scene.pg.pgdata / "global" / "pg_control"
    (pgdata / "global" / "pg_control").write_bytes(control.read_bytes())
    for name in signals:
        (pgdata / name).touch()
    return pgdata


def test_a_tail_is_served_only_to_archive_recovery(pg: PostgresServer, tmp_path: Path) -> None:
    scene = ReceiveScene(tmp_path, pg)
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(1)
        running.wait_flushed(scene.current()[1])
    name, _ = scene.current()
    tail = scene.tail(name)
    assert tail is not None

    def fetched(*signals: str) -> Path | None:
        target = recovering_directory(scene, *signals) / "pg_wal" / "RECOVERYXLOG"
        result = fetch_file(
            scene.settings, scene.server, name, str(target), pgdata="", environment={}
        )
        if result is None:
            assert not target.exists()
            return None
        assert "is not whole in any repository" in result.warnings[0]
        assert str(tail.end) in result.warnings[0]
        return target

    assert fetched() is None
    assert fetched("standby.signal") is None
    assert fetched("recovery.signal", "standby.signal") is None
    delivered = fetched("recovery.signal")
    assert delivered is not None
    content = delivered.read_bytes()
    start = tail.pieces[0][0]
    assert len(content) == scene.segment_bytes
    raw = (pg.pgdata / "pg_wal" / name).read_bytes()
    assert content[: tail.end - start] == raw[: tail.end - start]
    assert not any(content[tail.end - start :])


def test_a_large_segments_tail_is_stored_in_pieces(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    pg = pg_factory(segment_mib=64)
    scene = ReceiveScene(tmp_path, pg)
    with scene.receiving() as running:
        running.wait_streaming()
        for _ in range(5):
            scene.fill(9)
            name, lsn = scene.current()
            running.wait(
                lambda name=name, lsn=lsn: (tail := scene.tail(name)) and tail.end >= lsn, "stored"
            )
    tail = scene.tail(name)
    assert tail is not None
    assert len(tail.pieces) > 2
    assert {end - start for start, end in tail.pieces[:-1]} == {PIECE_BYTES}
    archive = scene.archive()
    end = archive.tail_end(name)
    assert end is not None
    raw = (pg.pgdata / "pg_wal" / name).read_bytes()
    length = tail.end - tail.pieces[0][0]
    assert archive.read(name)[:length] == raw[:length]


@pytest.mark.parametrize("major", [13, 18])
def test_restores_reach_into_the_tail(
    pg_factory: ServerFactory, installations: dict[int, object], tmp_path: Path, major: int
) -> None:
    if major not in installations:
        pytest.skip(f"PostgreSQL {major} is not installed")
    product = streaming_product(
        pg_factory, tmp_path, TAILS, segment_mib=16, installation=installations[major]
    )
    server = product.server
    with receiver(product):
        server.wait_until(
            lambda: server.value("SELECT count(*) FROM pg_stat_replication"), "streaming"
        )
        product.backup()
        server.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
        server.sql("SELECT pg_create_restore_point('before')")
        before = Lsn.parse(str(server.value("SELECT pg_current_wal_insert_lsn()::text")))
        server.sql("DROP TABLE kept")
        end = Lsn.parse(str(server.value("SELECT pg_current_wal_flush_lsn()::text")))
        name = str(server.value("SELECT pg_walfile_name(pg_current_wal_flush_lsn())"))
        archive = product.archive()
        server.wait_until(lambda: (archive.tail_end(name) or 0) >= end, "the tail is stored")
    assert not archive.has(name)
    try:
        for number, target in enumerate((ToName("before"), ToLsn(before))):
            copy = tmp_path / f"copy{number}"
            product.restore(copy, target, start=True)
            restored = product.connected(copy)
            assert restored.value("SELECT count(*) FROM kept") == 1000
            product.stop(copy)
        copy = tmp_path / "latest"
        product.restore(copy, start=True)
        assert product.connected(copy).value("SELECT to_regclass('kept')") is None
    finally:
        product.close()
