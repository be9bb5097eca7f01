"""A recovery that has no agent: what fetches ahead of it comes by itself, and goes with it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.app import restore_commands
from pgrecall.model.lsn import Lsn
from pgrecall.model.targets import ToLsn
from pgrecall.postgres.ahead_place import AHEAD_DIRECTORY, AHEAD_SOCKET
from pgrecall.system.processes import wait_until_gone
from tests.support.listener_scene import wait_until
from tests.support.postgresql import PostgresServer, ServerFactory
from tests.support.product import Product

PATIENCE_SECONDS = 60.0


@pytest.fixture
def product(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[Product]:
    """With a backup, and enough WAL behind it; what no agent serves is said in server logs."""
    made = Product.start(pg_factory, tmp_path)
    with made.config.open("a", encoding="utf-8") as config:
        config.write(f'[log]\nlevel = "debug"\n[agent]\ndirectory = "{tmp_path / "agent"}"\n')
    try:
        made.server.sql("CREATE TABLE kept (n int)")
        made.backup()
        write(made, 6)
        yield made
    finally:
        made.close()


def write(product: Product, segments: int) -> list[str]:
    """Fill so many segments, and see them archived; their names."""
    names = []
    for _ in range(segments):
        product.server.sql("INSERT INTO kept SELECT max(n) + 1 FROM (SELECT n FROM kept"
                           " UNION ALL SELECT 0) AS known")  # fmt: skip
        names.append(product.switch())
    return names


def helper_pid(copy: Path) -> int:
    """Of the process that listens for the copy; it may be about to come."""
    lock = copy / f"{AHEAD_SOCKET}.lock"
    wait_until((copy / AHEAD_SOCKET).exists, seconds=PATIENCE_SECONDS)
    return int(lock.read_text())


def is_over(copy: Path, pid: int) -> bool:
    """Gone, and nothing of it left in pg_wal."""
    return not os.path.exists(f"/proc/{pid}") and not (copy / AHEAD_DIRECTORY).exists()


def direct(copy: Path) -> set[str]:
    """Segments that PostgreSQL's own call fetched, by what it said in the server's log."""
    text = (copy / "pgrecall_recovery.log").read_text(errors="replace")
    return set(re.findall(r"wal fetch name=([0-9A-F]{24}) outcome=delivered", text))


@pytest.mark.parametrize("way", ["the client", "Python alone"])
def test_it_comes_with_the_recovery_and_goes_with_it(
    product: Product, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "Python alone":
        monkeypatch.setattr(restore_commands, "client_path", lambda: None)
    copy = tmp_path / "copy"
    target = ToLsn(Lsn.parse(str(product.server.value("SELECT pg_current_wal_insert_lsn()"))))
    product.server.sql("INSERT INTO kept VALUES (0)")
    product.switch()
    result = product.restore(copy, target, start=True, action="pause")
    assert result.started is not None and result.started.state == "paused"
    assert ("--socket" in result.settings["restore_command"]) == (way == "the client")
    pid = helper_pid(copy)  # as long as recovery has not ended
    assert os.getsid(pid) == pid
    product.promote(copy)
    wait_until(lambda: is_over(copy, pid), seconds=PATIENCE_SECONDS)
    assert product.connected(copy).value("SELECT max(n) FROM kept") == 6


def test_what_it_leaves_when_it_is_killed_goes_with_the_next_push(
    product: Product, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    target = ToLsn(Lsn.parse(str(product.server.value("SELECT pg_current_wal_insert_lsn()"))))
    write(product, 2)
    product.restore(copy, target, start=True, action="pause")
    postmaster = int((copy / "postmaster.pid").read_text().split()[0])
    for pid, how in ((helper_pid(copy), signal.SIGKILL), (postmaster, signal.SIGQUIT)):
        os.kill(pid, how)
        wait_until_gone(pid, PATIENCE_SECONDS)
    assert (copy / AHEAD_DIRECTORY).exists()
    segment = next(path for path in sorted((copy / "pg_wal").iterdir()) if len(path.name) == 24)
    assert product.cli("wal", "push", str(segment)).returncode == 31, "it is a copy"
    assert not (copy / AHEAD_DIRECTORY).exists()


def standby(product: Product, copy: Path) -> PostgresServer:
    """A running standby that lives from the archive alone, and asks it ten times a second."""
    product.restore(copy, standby=True)
    with (copy / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
        file.write("wal_retrieve_retry_interval = '100ms'\n")
    server = PostgresServer(product.server.installation, copy)
    server.log_path = copy / "pgrecall_recovery.log"
    server.start()
    return server


def replays(product: Product, server: PostgresServer) -> None:
    newest = product.server.value("SELECT max(n) FROM kept")
    server.wait_until(lambda: server.value("SELECT max(n) FROM kept") == newest, "caught up")


def test_it_serves_what_comes_and_another_comes_when_it_is_killed(
    product: Product, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    server = standby(product, copy)
    try:
        pid = helper_pid(copy)
        later = write(product, 5)
        replays(product, server)
        assert not direct(copy) & set(later), "somebody fetched for himself"
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), seconds=PATIENCE_SECONDS)
        after = write(product, 3)
        replays(product, server)
        assert direct(copy) & set(after), "nobody could have served all of them"
        again = helper_pid(copy)
        wait_until(lambda: helper_pid(copy) != pid, seconds=PATIENCE_SECONDS)
        again = helper_pid(copy)
        # One that hangs is given up within a second, each time.
        os.kill(again, signal.SIGSTOP)
        try:
            write(product, 2)
            replays(product, server)
        finally:
            os.kill(again, signal.SIGCONT)
        server.stop("immediate")
        wait_until(lambda: is_over(copy, again), seconds=PATIENCE_SECONDS)
    finally:
        server.destroy()


def test_without_prefetching_nothing_is_started(product: Product, tmp_path: Path) -> None:
    text = product.config.read_text(encoding="utf-8")
    product.config.write_text(text.replace("[agent]\n", "[agent]\nprefetch_segments = 0\n"))
    copy = tmp_path / "copy"
    server = standby(product, copy)
    try:
        replays(product, server)
        assert not (copy / AHEAD_DIRECTORY).exists()
    finally:
        server.destroy()


def test_by_hand_it_needs_a_server_that_runs(product: Product, tmp_path: Path) -> None:
    said = product.cli("wal", "fetch-ahead", str(tmp_path))
    assert said.returncode != 0
    assert "no server runs in" in said.stderr
    assert product.cli("wal", "push", "--ahead", "x").returncode == 2
