"""Receivers that are killed, and repositories and disks that fail: no byte is lost or invented."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pgrecall.errors import DestinationError, SpaceError
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import SEGMENT, WalFile
from pgrecall.wal import receive_spool
from tests.support.postgresql import PostgresServer, ServerFactory
from tests.support.receive_scene import ReceiveScene, Running

POINTS = [
    "receive.written",
    "receive.flush",
    "receive.flushed",
    "receive.whole",
    "receive.renamed",
    "receive.tail",
    "receive.tail-stored",
    "receive.stored",
    "receive.unlinked",
    "wal-object.commit",
]


def keeping_server(pg_factory: ServerFactory, **settings: object) -> PostgresServer:
    """A server that keeps all its WAL, to compare with."""
    return pg_factory(segment_mib=1, wal_keep_size="2GB", **settings)


def assert_archive_is_the_servers(scene: ReceiveScene) -> None:
    """Every archived segment is the server's, without a gap up to the last switch."""
    archive = scene.archive()
    names = [found.name for found in archive.segments(1)]
    assert names
    wal = scene.pg.pgdata / "pg_wal"
    for name in names:
        assert archive.read(name) == (wal / name).read_bytes(), name
    first = WalFile(names[0]).start(scene.segment_bytes)
    last = Lsn(WalFile(names[-1]).start(scene.segment_bytes) + scene.segment_bytes)
    assert archive.first_gap(TimelineHistory(1), first, last) is None


def finish(scene: ReceiveScene) -> None:
    """Let a new receiver catch up with all that the server has."""
    last = scene.switch()
    with scene.receiving() as running:
        running.wait(lambda: scene.archive().has(last), f"{last} is stored")
        running.wait(
            lambda: not [name for name in os.listdir(scene.spool) if is_segment(name)],
            "the spool is empty",
        )


def is_segment(name: str) -> bool:
    return len(name) == 24 and WalFile(name).kind == SEGMENT


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_receiver_killed_at_any_point_loses_nothing(
    pg_factory: ServerFactory, tmp_path: Path, point: str, count: int
) -> None:
    scene = ReceiveScene(tmp_path, keeping_server(pg_factory), tail_seconds=0.05)
    process = scene.start_program(PGRECALL_FAULT_KILL=f"{point}:{count}")
    try:
        deadline = time.monotonic() + 90
        while process.poll() is None:
            scene.fill(1)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.06)  # a tail is stored of a segment that stays unfinished so long
            assert time.monotonic() < deadline, "the point is not reached"
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(scene)
    assert_archive_is_the_servers(scene)


@pytest.mark.parametrize("seed", range(4))
def test_receivers_killed_at_random_under_load(
    pg_factory: ServerFactory, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    is_synchronous = dice.random() < 0.5
    pg = keeping_server(pg_factory)
    scene = ReceiveScene(tmp_path, pg, tail_seconds=0.1, is_synchronous=is_synchronous)
    pg.pgbench("-i", "-s", "2", "-q")
    load = pg.start_pgbench("-c", "2", "-T", "60")
    try:
        for _ in range(4):
            process = scene.start_program()
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.5 + dice.random())
            finally:
                process.kill()
                process.communicate()
            if dice.random() < 0.3:
                pg.kill9()
                pg.start()
                load.wait()
                load = pg.start_pgbench("-c", "2", "-T", "60")
    finally:
        load.kill()
        load.wait()
    finish(scene)
    assert_archive_is_the_servers(scene)


def test_a_repository_that_is_away_holds_nothing_up(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    scene = ReceiveScene(tmp_path, keeping_server(pg_factory))
    repository = Path(scene.repository.path)
    with scene.receiving() as running:
        running.wait_streaming()
        away = repository.with_name("away")
        repository.rename(away)
        scene.fill(3)
        last = scene.switch()
        running.wait_flushed(scene.current()[1])
        running.wait(lambda: running.receiver.facts()["problem"], "the problem is told")
        away.rename(repository)
        running.wait(lambda: scene.archive().has(last), f"{last} is stored")
        running.wait(lambda: not running.receiver.facts()["problem"], "it is mended")
    assert_archive_is_the_servers(scene)


def test_a_repository_that_hangs_holds_nothing_up(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    scene = ReceiveScene(tmp_path, keeping_server(pg_factory), tail_seconds=0)
    process = scene.start_program(PGRECALL_FAULT_PAUSE=f"push.put:{tmp_path}")
    try:
        stuck = tmp_path / "push.put"
        scene.pg.wait_until(lambda: scene.pg.sql("SELECT 1 FROM pg_replication_slots"), "the slot")
        scene.fill(3)
        scene.pg.wait_until(stuck.exists, "it hangs")
        scene.fill(3)
        lsn = scene.current()[1]
        flushed = "SELECT flush_lsn >= %s::pg_lsn FROM pg_stat_replication"
        with scene.pg.connect() as connection:
            scene.pg.wait_until(
                lambda: (connection.execute(flushed, (str(lsn),)).fetchone() or (False,))[0],
                "it goes on to receive",
            )
        stuck.unlink()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "flushed to" in out
    finally:
        process.kill()
        process.communicate()
    finish(scene)
    assert_archive_is_the_servers(scene)


def test_with_confirm_repository_the_slot_keeps_what_is_not_stored(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    scene = ReceiveScene(tmp_path, keeping_server(pg_factory), confirm="repository", tail_seconds=0)
    with scene.receiving() as running:
        running.wait_streaming()
        stored = scene.switch()
        running.wait(lambda: scene.archive().has(stored), f"{stored} is stored")
        repository = Path(scene.repository.path)
        repository.rename(repository.with_name("away"))
        scene.fill(3)
        lsn = scene.current()[1]
        running.wait_flushed(lsn)
        restart = "SELECT restart_lsn::text FROM pg_replication_slots"
        kept = Lsn.parse(str(scene.pg.value(restart)))
        assert kept <= WalFile(stored).start(scene.segment_bytes) + scene.segment_bytes
        repository.with_name("away").rename(repository)
        last = scene.switch()
        running.wait(lambda: scene.archive().has(last), f"{last} is stored")
        scene.pg.wait_until(
            lambda: Lsn.parse(str(scene.pg.value(restart))) > lsn, "the slot moves on"
        )


def test_a_full_disk_ends_it_cleanly_and_the_slot_keeps_the_wal(
    pg_factory: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = ReceiveScene(tmp_path, keeping_server(pg_factory))
    with scene.receiving() as running:
        running.wait_streaming()
        running.wait_flushed(scene.current()[1])
    room = [1_500_000]

    def pwritev(descriptor: int, parts: Sequence[Any], offset: int) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole = b"".join(parts)[: room[0]]
        room[0] -= len(whole)
        return os.pwrite(descriptor, whole, offset)

    with monkeypatch.context() as patched:
        patched.setattr(receive_spool.os, "pwritev", pwritev)
        running = Running(scene.receiver())
        running.wait_streaming()
        scene.fill(4)
        error = running.join()
    assert isinstance(error, SpaceError)
    assert "slot" in error.hint or "server keeps" in error.hint
    kept = Lsn.parse(str(scene.pg.value("SELECT restart_lsn::text FROM pg_replication_slots")))
    assert kept < scene.current()[1]
    finish(scene)
    assert_archive_is_the_servers(scene)


def test_a_torn_end_of_the_spool_is_cut_back(pg_factory: ServerFactory, tmp_path: Path) -> None:
    scene = ReceiveScene(tmp_path, keeping_server(pg_factory), tail_seconds=0)
    with scene.receiving() as running:
        running.wait_streaming()
        scene.fill(1)
        running.wait_flushed(scene.current()[1])
    (partial,) = scene.spool.glob("*.partial")
    content = bytearray(partial.read_bytes())
    if len(content) > 4096:
        content[-4096:] = os.urandom(4096)
    partial.write_bytes(bytes(content) + os.urandom(10_000))
    finish(scene)
    assert_archive_is_the_servers(scene)


def test_a_receiver_lives_through_restarts_and_crashes_of_the_server(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    pg = keeping_server(pg_factory)
    scene = ReceiveScene(tmp_path, pg)
    with scene.receiving() as running:
        running.wait_streaming()
        for end in (lambda: pg.stop("fast"), lambda: pg.stop("immediate"), pg.kill9):
            scene.fill(2)
            end()
            running.wait(lambda: running.receiver.facts()["state"] == "waiting", "it notices")
            assert running.receiver.facts()["problem"]
            pg.start()
            scene.fill(1)
            last = scene.switch()
            running.wait(lambda last=last: scene.archive().has(last), f"{last} is stored")
        assert not running.receiver.facts()["problem"]
    assert_archive_is_the_servers(scene)


def test_one_receiver_at_a_time(pg_factory: ServerFactory, tmp_path: Path) -> None:
    scene = ReceiveScene(tmp_path, keeping_server(pg_factory))
    with scene.receiving() as running:
        running.wait_streaming()
        process = scene.start_program()
        _, err = process.communicate(timeout=60)
        assert process.returncode == DestinationError.exit_status
        assert "another receiver" in err
