"""The primary is killed and its data directory destroyed: every acknowledged commit comes back."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.acknowledged import Writers
from tests.support.postgresql import ServerFactory
from tests.support.product import Product

SYNCHRONOUS = "[receive]\nis_synchronous = true\ntail_seconds = 0.3\n"


def streaming_product(
    pg_factory: ServerFactory, directory: Path, more: str = SYNCHRONOUS, **settings: object
) -> Product:
    """A server whose WAL only a receiver brings into the repository."""
    product = Product.start(pg_factory, directory, **settings)
    product.server.configure(archive_command="")
    product.server.reload()
    with product.config.open("a", encoding="utf-8") as file:
        file.write(f'[agent]\ndirectory = "{directory / "agent"}"\n{more}')
    return product


@contextmanager
def receiver(product: Product, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """``pgrecall wal receive`` as a process; killed at the end if it is still there."""
    argv = ["env", *(f"{k}={v}" for k, v in environment.items())]
    process = subprocess.Popen(
        [*argv, *product.command("wal", "receive", *words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_chosen(product: Product) -> None:
    """From now on commits wait for the receiver."""
    server = product.server
    server.configure(synchronous_standby_names="pgrecall")
    server.reload()
    server.wait_until(
        lambda: server.value("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"),
        "the receiver is synchronous",
    )


def destroy(product: Product) -> None:
    """The host is gone."""
    product.server.kill9()
    shutil.rmtree(product.server.pgdata)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_acknowledged_commit_is_there(
    pg_factory: ServerFactory, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    product = streaming_product(pg_factory, tmp_path)
    with receiver(product) as process:
        wait_chosen(product)
        product.backup()
        with Writers(product.server) as writers:
            enough = dice.randrange(200, 3000)
            product.server.wait_until(lambda: len(writers.acknowledged) > enough, "commits")
            if dice.random() < 0.5:
                process.kill()  # both hosts at the same time; the receiver's disk survives
            destroy(product)
    salvaged = product.cli("wal", "receive", "--salvage", "--json")
    assert salvaged.returncode == 0, salvaged.stderr
    try:
        copy = tmp_path / "copy"
        product.restore(copy, start=True)
        restored = product.connected(copy)
        assert len(writers.acknowledged) > enough
        assert writers.missing_on(restored) == []
    finally:
        product.close()


def test_a_commit_waits_until_it_is_fsynced(pg_factory: ServerFactory, tmp_path: Path) -> None:
    product = streaming_product(pg_factory, tmp_path)
    server = product.server
    writers = Writers(server, 1)
    with receiver(product) as first:
        wait_chosen(product)
        first.terminate()
        first.wait(60)
    stuck = tmp_path / "receive.flush"
    with receiver(product, PGRECALL_FAULT_PAUSE=f"receive.flush:{tmp_path}"):
        server.wait_until(
            lambda: server.value("SELECT count(*) FROM pg_stat_replication"), "it streams"
        )
        with writers:
            try:
                server.wait_until(stuck.exists, "it is about to flush", timeout_seconds=20)
                waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                server.wait_until(lambda: server.value(waiting), "it waits", timeout_seconds=20)
                before = len(writers.acknowledged)
                behind = "SELECT coalesce(flush_lsn < sent_lsn, true) FROM pg_stat_replication"
                assert server.value(behind)
                assert len(writers.acknowledged) == before
            finally:
                stuck.unlink(missing_ok=True)
            server.wait_until(lambda: len(writers.acknowledged) > before, "commits return")
