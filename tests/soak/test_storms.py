"""Agent, clients, server and store die at random under writers; no acknowledged commit is lost.

``PGRECALL_SOAK_ROUNDS`` rounds (20), the first with the seed ``PGRECALL_SOAK_SEED`` (taken from
the clock); every round names its own seed, by which it can be repeated alone.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from pathlib import Path

import pytest

from pgrecall.agent.client_file import client_path
from pgrecall.app.invocation_path import pgrecall_command
from tests.soak.storm import Storm, SynchronousStorm
from tests.soak.writers import assert_kept
from tests.support.postgresql import ServerFactory
from tests.support.product import Product

_ROUNDS = int(os.environ.get("PGRECALL_SOAK_ROUNDS", "20"))
_FIRST = int(os.environ.get("PGRECALL_SOAK_SEED") or time.time())
_EVENTS = 8

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("round_number", range(_ROUNDS))
def test_no_acknowledged_commit_is_lost(
    pg_factory: ServerFactory, tmp_path: Path, round_number: int
) -> None:
    seed = _FIRST + round_number
    print(f"storm: PGRECALL_SOAK_SEED={seed} PGRECALL_SOAK_ROUNDS=1")
    product = Product.start(pg_factory, tmp_path, segment_mib=16 if seed % 5 == 4 else 1)
    with product.config.open("a", encoding="utf-8") as file:
        file.write(f'[agent]\ndirectory = "{tmp_path / "agent"}"\n')
    if seed % 2:
        archive_by_client(product, tmp_path / "agent" / "main" / "agent.sock")
    # Without an agent the same commands do the work themselves.
    storm = Storm(product, seed, has_agent=seed % 4 != 3)
    try:
        storm.begin()
        storm.blow(_EVENTS)
        storm.calm()
        storm.agent.end()
        product.server.stop("immediate")
        shutil.rmtree(product.server.pgdata)
        copy = tmp_path / "copy"
        product.restore(copy, start=True)
        kept = assert_kept(product.connected(copy), storm.writers)
        assert kept > 0
    except BaseException:
        print(f"events: {', '.join(storm.done)}\nagent:\n{storm.agent.text()[-6000:]}")
        raise
    finally:
        storm.end()
        product.close()


@pytest.mark.parametrize("round_number", range(_ROUNDS // 2))
def test_no_commit_is_lost_with_the_host(
    pg_factory: ServerFactory, tmp_path: Path, round_number: int
) -> None:
    """RPO 0: what was acknowledged is on the receiver's disk, whatever became of the server."""
    seed = _FIRST + round_number
    print(f"storm: PGRECALL_SOAK_SEED={seed} PGRECALL_SOAK_ROUNDS=2")
    product = Product.start(pg_factory, tmp_path, segment_mib=1, archive_mode="off")
    with product.config.open("a", encoding="utf-8") as file:
        file.write(
            f'[agent]\ndirectory = "{tmp_path / "agent"}"\n'
            "[receive]\nis_enabled = true\nis_synchronous = true\ntail_seconds = 1\n"
        )
    storm = SynchronousStorm(product, seed)
    try:
        storm.begin()
        storm.blow(_EVENTS)
        storm.lose_everything()
        salvage = product.cli("wal", "receive", "--salvage")
        assert salvage.returncode == 0, salvage.stderr
        copy = tmp_path / "copy"
        product.restore(copy, start=True)
        kept = assert_kept(product.connected(copy), storm.writers)
        assert kept > 0
    except BaseException:
        print(f"events: {', '.join(storm.done)}\nagent:\n{storm.agent.text()[-6000:]}")
        raise
    finally:
        storm.end()
        product.close()


def archive_by_client(product: Product, socket: Path) -> None:
    """Through the client without Python, which falls back to the program when no agent answers."""
    client = client_path()
    assert client is not None, "there is no C compiler here"
    command = pgrecall_command()
    words = [client, "push", "--socket", str(socket), "--config", str(product.config)]
    words += ["--server", "main", "--fallback", *command]
    assert len(command) == 1
    product.server.configure(archive_command=f'{shlex.join(words)} "%p"')
    product.server.reload()
