"""Receiving WAL by streaming from real servers: what is stored, kept, reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.postgresql import Installation, PostgresServer, ServerFactory
from tests.support.receive_scene import ReceiveScene
from tests.support.s3_fixtures import S3Settings


def raw(server: PostgresServer, name: str) -> bytes:
    return (server.pgdata / "pg_wal" / name).read_bytes()


@pytest.mark.parametrize("segment_mib", [1, 16, 64])
def test_segments_arrive_as_the_server_wrote_them(
    pg_factory: ServerFactory, installation: Installation, tmp_path: Path, segment_mib: int
) -> None:
    pg = pg_factory(installation, segment_mib=segment_mib)
    scene = ReceiveScene(tmp_path, pg)
    with scene.receiving() as running:
        running.wait_streaming()
        names = []
        for _ in range(3):
            scene.fill(1)
            names.append(scene.switch())
        archive = scene.archive()
        for name in names:
            running.wait(lambda name=name: archive.has(name), f"{name} is stored")
            assert archive.read(name) == raw(pg, name)
    assert not [path for path in scene.spool.iterdir() if path.name in names]


def test_the_tail_is_stored_at_the_interval_and_goes_when_the_segment_is_whole(
    pg: PostgresServer, tmp_path: Path
) -> None:
    scene = ReceiveScene(tmp_path, pg)
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(1)
        name, lsn = scene.current()

        def stored() -> bool:
            tail = scene.tail(name)
            return tail is not None and tail.end >= lsn

        running.wait(stored, "the tail is stored")
        scene.fill(1)
        name, lsn = scene.current()
        running.wait(stored, "a longer tail is stored")
        tail = scene.tail(name)
        assert tail is not None
        assert len(tail.pieces) == 1
        scene.switch()
        running.wait(lambda: scene.archive().has(name), "the segment is stored")
        running.wait(lambda: scene.tail(name) is None, "the tail is gone")


def test_segments_and_tails_go_to_an_object_store(
    pg_factory: ServerFactory,
    tmp_path: Path,
    s3_settings: S3Settings,
    secret_environment: dict[str, str],
) -> None:
    pg = pg_factory(segment_mib=1)
    scene = ReceiveScene(
        tmp_path, pg, repository=s3_settings(), environment=secret_environment, tail_seconds=0.2
    )
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(1)
        stored = scene.switch()
        running.wait(lambda: scene.archive().has(stored), f"{stored} is stored")
        pg.sql("SELECT pg_logical_emit_message(true, 'test', 'the tail')")
        name, lsn = scene.current()
        running.wait(lambda: (tail := scene.tail(name)) and tail.end >= lsn, "its tail is stored")
        scene.switch()
        running.wait(lambda: scene.archive().has(name), f"{name} is stored")
        running.wait(lambda: scene.tail(name) is None, "the tail is gone")
    assert scene.archive().read(stored) == raw(pg, stored)
