"""An agent that runs as root and serves a server that cannot: as root, ``make test-root``."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.agent.client_file import install_client
from pgrecall.agent.listener import Listener
from pgrecall.errors import AgentSilentError
from pgrecall.system.unprivileged import Account, choose_account
from tests.support.listener_scene import served
from tests.support.socket_scene import ABSENT, DESTINATION, SocketScene

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run it as root")


@pytest.fixture
def account() -> Account:
    """The user of the server."""
    return choose_account()


@pytest.fixture
def scene(account: Account) -> Iterator[SocketScene]:
    """PGDATA is the server's; repository, agent and the agent's directory are root's."""
    with tempfile.TemporaryDirectory(prefix="ra-") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "run").mkdir(mode=0o755)
        scene = SocketScene(place, place / "run" / "main")
        for path in [scene.pgdata, *scene.pgdata.rglob("*")]:
            os.chown(path, account.uid, account.gid)
        scene.pgdata.chmod(0o700)
        install_client(name)
        listener = Listener(scene.socket, scene.service, server="main", owner=account.uid)
        with served(listener):
            yield scene


def ask(
    scene: SocketScene, user: int, group: int, *words: str, cwd: Path | None = None
) -> tuple[int, str]:
    finished = subprocess.run(
        [scene.path / "pgrecall-client", words[0], "--socket", scene.socket, *words[1:]],
        cwd=cwd or scene.pgdata,
        user=user,
        group=group,
        extra_groups=[],
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    return finished.returncode, finished.stderr


def test_the_server_archives_and_recovers(scene: SocketScene, account: Account) -> None:
    who = (account.uid, account.gid)
    assert ask(scene, *who, "push", f"pg_wal/{scene.name}") == (0, "")
    assert ask(scene, *who, "fetch", scene.name, DESTINATION) == (0, "")
    found = scene.delivered.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (*who, 0o600)
    assert scene.delivered.read_bytes() == scene.content
    assert ask(scene, *who, "fetch", ABSENT, DESTINATION) == (64, "")
    # The directory lets the server's user through, and shows nothing.
    assert (Path(scene.socket).parent.stat().st_mode & 0o777) == 0o711


def test_it_writes_nowhere_for_him_but_in_his_own(scene: SocketScene, account: Account) -> None:
    who = (account.uid, account.gid)
    scene.push(scene.pgdata / "pg_wal" / scene.name)
    theirs = scene.path / "of root"
    theirs.mkdir(mode=0o755)
    status, said = ask(scene, *who, "fetch", scene.name, f"{theirs}/segment")
    assert status == AgentSilentError.exit_status
    assert "not the caller's" in said
    shutil.copytree(scene.pgdata, theirs / "pgdata")
    for path in [theirs / "pgdata", *(theirs / "pgdata").rglob("*")]:
        path.chmod(0o755)
    status, said = ask(scene, *who, "push", f"pg_wal/{scene.name}", cwd=theirs / "pgdata")
    assert status == AgentSilentError.exit_status
    assert list(theirs.rglob("segment*")) == []


def test_a_third_user_does_not_get_in(scene: SocketScene, account: Account) -> None:
    stranger = 54321
    assert stranger != account.uid
    other = scene.make_pgdata("other")
    other.chmod(0o755)
    for path in [other, *other.rglob("*")]:
        os.chown(path, stranger, stranger)
    scene.write(scene.name, scene.content, other).chmod(0o644)
    status, said = ask(scene, stranger, stranger, "push", f"pg_wal/{scene.name}", cwd=other)
    assert status == AgentSilentError.exit_status
    assert "Permission denied" in said
    os.chmod(scene.socket, 0o666)  # and if he did
    status, said = ask(scene, stranger, stranger, "push", f"pg_wal/{scene.name}", cwd=other)
    assert status == AgentSilentError.exit_status
    assert "neither root, nor the agent's user, nor the server's" in said
    assert not scene.object_path(scene.name).exists()
