"""PostgreSQL where no Python can run: the client archives and recovers by an agent elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgrecall.agent.client_file import install_client
from pgrecall.wal.commands import client_archive_command, client_restore_command
from tests.support.agent_process import RunningAgent
from tests.support.bare_root import BareRoot, bare_root, can_change_root
from tests.support.listener_scene import agent_process, wait_until
from tests.support.postgresql import (
    SUPERUSER,
    Installation,
    PostgresServer,
    ServerFactory,
    quote_setting,
)
from tests.support.product import Product

CLIENT = "/shared/pgrecall-client"
SOCKET = "/shared/run/agent.sock"


@pytest.fixture
def root(installations: dict[int, Installation]) -> Iterator[BareRoot]:
    why = can_change_root()
    if why:
        pytest.skip(f"NOT PROVEN HERE: no user namespace to change the root in: {why}")
    with (
        tempfile.TemporaryDirectory(prefix="bare-") as directory,
        bare_root(Path(directory), installations[18]) as made,
    ):
        yield made


def configure(pgdata: Path, **settings: object) -> None:
    with (pgdata / "postgresql.conf").open("a", encoding="utf-8") as file:
        for name, value in settings.items():
            file.write(f"{name} = {quote_setting(value)}\n")


def value(root: BareRoot, port: int, text: str) -> object:
    with psycopg.connect(
        host=str(root.path / "run"), port=port, user=SUPERUSER, dbname="postgres", autocommit=True
    ) as connection:
        cursor = connection.execute(text)  # type: ignore[call-overload]
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


@contextlib.contextmanager
def agent_of(product: Product) -> Iterator[RunningAgent]:
    """``pgrecall agent``, at work; ended whatever happens."""
    agent = RunningAgent(product, product.directory / "agent")
    try:
        agent.wait_until(
            lambda: agent.snapshot is not None and agent.facts("listener").get("is_listening")
        )
        yield agent
        assert agent.end() == 0
    finally:
        agent.close()


@pytest.mark.parametrize("sees", ["its data directory", "no data directory"])
def test_archive_lose_and_recover(
    root: BareRoot, pg_factory: ServerFactory, tmp_path: Path, sees: str
) -> None:
    made = pg_factory(start=False, segment_mib=1)
    product = Product(tmp_path, made)
    pgdata = root.path / "pgdata"
    socket = root.path / SOCKET.strip("/")
    with product.config.open("a") as config:  # what the agent's container sees
        config.write(f'[agent]\ndirectory = "{tmp_path / "agent"}"\nsocket = "{socket}"\n')
    seen = str(pgdata) if sees == "its data directory" else str(tmp_path / "elsewhere")
    text = product.config.read_text().replace(str(made.pgdata), seen)
    product.config.write_text(text.replace(made.host, str(root.path / "run")))
    shutil.copytree(made.pgdata, pgdata)
    configure(
        pgdata,
        port=made.port,
        archive_command=client_archive_command(CLIENT, SOCKET, server="main"),
    )
    shutil.copytree(pgdata, root.path / "base", symlinks=True)
    assert root.pythons() == []
    for name in ("python3", "python"):
        assert root.run("/bin/sh", "-c", f"command -v {name} || exec {name}").returncode == 127
    log = tmp_path / "bare.log"

    def ask(text: str) -> object:
        return value(root, made.port, text)

    with agent_of(product):
        root.start("/pgdata", log)
        ask("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    # Without its agent the client archives nothing, and PostgreSQL keeps everything.
    ask("SELECT pg_switch_wal()")
    wait_until(lambda: ask("SELECT failed_count > 0 FROM pg_stat_archiver"), seconds=60)
    with agent_of(product) as agent:
        ask("INSERT INTO kept SELECT generate_series(1001, 2000)")
        last = ask("SELECT pg_walfile_name(pg_switch_wal())")
        wait_until(
            lambda: ask("SELECT last_archived_wal FROM pg_stat_archiver") == last, seconds=60
        )
        agent.wait_until(lambda: agent.facts("listener")["pushes"] >= 2)
        root.lose("/pgdata")
    # The agent comes first, as it does in a pod: there is no data directory yet.
    with agent_of(product) as agent:
        (root.path / "base").rename(pgdata)
        configure(pgdata, restore_command=client_restore_command(CLIENT, [SOCKET], "main"))
        (pgdata / "recovery.signal").touch()
        root.start("/pgdata", log)
        wait_until(lambda: not ask("SELECT pg_is_in_recovery()"), seconds=60)
        assert ask("SELECT count(*) FROM kept") == 2000
        # It goes on archiving, on its own timeline.
        ask("SELECT pg_switch_wal()")
        wait_until(lambda: 2 in product.archive().timelines(), seconds=60)
        agent.wait_until(lambda: agent.facts("listener")["fetches"] >= 3)
        root.end()
    assert "pgrecall-client: no agent answers at /shared/run/agent.sock" in log.read_text()


def test_archive_and_recover_with_nothing_on_the_path(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    """What can be proven everywhere: an empty environment, in which no program is found."""
    server = pg_factory(start=False, segment_mib=1)
    product = Product(tmp_path, server)
    base = tmp_path / "base"
    shutil.copytree(server.pgdata, base, symlinks=True)
    socket = Path(server.host) / "agent.sock"
    client = install_client(server.host)
    server.configure(archive_command=client_archive_command(client, str(socket), server="main"))
    with agent_process(product.config, socket):
        _start_bare(server)
        server.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        last = server.value("SELECT pg_walfile_name(pg_switch_wal())")
        wait_until(
            lambda: server.value("SELECT last_archived_wal FROM pg_stat_archiver") == last,
            seconds=60,
        )
        server.kill9()
        shutil.rmtree(server.pgdata)
        again = pg_factory.adopt(base)
        again.configure(
            archive_mode="off",
            restore_command=client_restore_command(client, [str(socket)], "main"),
        )
        (base / "recovery.signal").touch()
        _start_bare(again)
        wait_until(lambda: not again.value("SELECT pg_is_in_recovery()"), seconds=60)
        assert again.value("SELECT count(*) FROM kept") == 1000


def _start_bare(server: PostgresServer) -> None:
    """As ``start``, but PostgreSQL and its commands get an environment without a PATH."""
    argv = [str(server.installation.program("postgres")), "-D", str(server.pgdata)]
    argv += ["-p", str(server.port), "-k", server.host]
    with server.log_path.open("ab") as log:
        server._process = subprocess.Popen(
            argv,
            env={"PATH": "/nonexistent"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server.wait_ready()
