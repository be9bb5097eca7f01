"""Tails that odd ends leave beside whole segments: the next receiver removes those, no others."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgrecall.wal import receive_worker
from pgrecall.wal.push import push_file
from tests.support.postgresql import DEADLINE_SECONDS, PostgresServer, ServerFactory
from tests.support.receive_scene import ReceiveScene


@pytest.fixture
def scene(pg_factory: ServerFactory, tmp_path: Path) -> ReceiveScene:
    server = pg_factory(segment_mib=1, wal_keep_size="64MB")
    return ReceiveScene(tmp_path, server, tail_seconds=0.05)


@contextmanager
def program(scene: ReceiveScene, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = scene.start_program(**environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_tail(scene: ReceiveScene) -> str:
    """Write something; the segment whose tail is stored up to there."""
    scene.pg.sql("SELECT pg_logical_emit_message(true, 'test', 'something')")
    name, lsn = scene.current()
    scene.pg.wait_until(
        lambda: (tail := scene.tail(name)) is not None and tail.end >= lsn, "the tail is stored"
    )
    return name


def lose_spool(scene: ReceiveScene) -> None:
    """The receiver's host is gone with its disk."""
    shutil.rmtree(scene.spool)


def push(scene: ReceiveScene, pg: PostgresServer, name: str) -> None:
    """As archive_command does it on the server's host."""
    server = scene.server.replace(data_directory=str(pg.pgdata))
    path = pg.pgdata / "pg_wal" / name
    push_file(scene.settings, server, str(path), pgdata=str(pg.pgdata), environment={})


def leave_one_behind(scene: ReceiveScene) -> str:
    """A receiver is killed when it has stored a segment, and not yet removed its tail."""
    with program(scene, PGRECALL_FAULT_KILL="receive.stored") as process:
        name = wait_tail(scene)
        scene.switch()
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
    assert scene.archive().has(name)
    assert scene.tail(name) is not None
    lose_spool(scene)
    return name


def test_killed_between_the_segment_and_its_tail(scene: ReceiveScene) -> None:
    name = leave_one_behind(scene)
    with scene.receiving() as running:
        running.wait(lambda: scene.tail(name) is None, "the tail is gone")
        unfinished = wait_tail(scene)
    assert not scene.archive().has(unfinished)
    assert scene.tail(unfinished) is not None
    assert scene.archive().has(name)


def test_killed_while_it_removes_them(scene: ReceiveScene) -> None:
    name = leave_one_behind(scene)
    with program(scene, PGRECALL_FAULT_KILL="receive.leftover") as process:
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
    assert scene.tail(name) is not None
    with scene.receiving() as running:
        running.wait(lambda: scene.tail(name) is None, "the tail is gone")


def test_archive_command_stores_the_segment_while_nobody_receives(scene: ReceiveScene) -> None:
    with program(scene):
        name = wait_tail(scene)
    lose_spool(scene)
    scene.switch()
    push(scene, scene.pg, name)
    assert scene.tail(name) is not None
    with scene.receiving() as running:
        running.wait(lambda: scene.tail(name) is None, "the tail is gone")


def test_while_it_runs_it_looks_again(scene: ReceiveScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive_worker, "_SWEEP_SECONDS", 0.1)
    name = leave_one_behind(scene)
    tails = [
        (path, path.read_bytes())
        for path in (scene.directory / "repository").glob(f"**/tails/*/{name}/*")
        if path.is_file()
    ]
    assert tails
    with scene.receiving() as running:
        running.wait(lambda: scene.tail(name) is None, "the tail is gone")
        running.wait_streaming()
        for path, content in tails:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        running.wait(lambda: scene.tail(name) is None, "it is gone once more")
