"""Whose the directory of fetched segments is, and that it goes when nobody has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pgrecall.postgres.ahead_place import (
    AHEAD_DIRECTORY,
    AHEAD_LOCK,
    AHEAD_SOCKET,
    is_abandoned,
    remove_abandoned,
    take,
)

HOLDER = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pgdata(tmp_path: Path) -> Path:
    (tmp_path / "pg_wal").mkdir()
    return tmp_path


def fill(pgdata: Path) -> Path:
    place = pgdata / AHEAD_DIRECTORY
    (place / "segments" / "one").mkdir(parents=True)
    (place / "segments" / "one" / "000000010000000000000001").write_bytes(b"WAL")
    (place / "segments" / "link").symlink_to(pgdata / "pg_wal")
    return place


@pytest.mark.parametrize("name", [AHEAD_LOCK, f"{AHEAD_SOCKET}.lock"])
def test_it_is_left_alone_until_its_process_is_dead(pgdata: Path, name: str) -> None:
    place = fill(pgdata)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(pgdata / name)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert not is_abandoned(str(pgdata))
        assert not remove_abandoned(str(pgdata))
        assert (place / "segments" / "one" / "000000010000000000000001").exists()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert is_abandoned(str(pgdata))
    assert remove_abandoned(str(pgdata))
    assert list((pgdata / "pg_wal").iterdir()) == []


def test_where_there_is_none_nothing_is_made(pgdata: Path) -> None:
    assert not is_abandoned(str(pgdata))
    assert not remove_abandoned(str(pgdata))
    assert list((pgdata / "pg_wal").iterdir()) == []


def test_one_has_it_at_a_time_and_none_a_place_that_is_gone(
    pgdata: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take(str(pgdata))
    assert first is not None
    assert take(str(pgdata)) is None
    os.close(first)
    opens = os.open

    def slow(path: str, *rest: int) -> int:
        """Between opening and locking, another one comes, ends, and removes everything."""
        descriptor = opens(path, *rest)
        monkeypatch.setattr(os, "open", opens)
        assert remove_abandoned(str(pgdata))
        return descriptor

    monkeypatch.setattr(os, "open", slow)
    assert take(str(pgdata)) is None
    assert not (pgdata / AHEAD_DIRECTORY).exists()
