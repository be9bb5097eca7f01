"""A backup that gives way to what else the host has to do."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backup_scene import BackupScene

_IOPRIO_GET = {"x86_64": 252, "aarch64": 31}
_IDLE = 3 << 13
_NICE = 16


@pytest.fixture
def paused(scene: BackupScene) -> Iterator[subprocess.Popen[str]]:
    """A backup with the lowest priorities, in the middle of its copy."""
    words = ["backup", "--yes", "--nice", "19", "--io-priority", "idle"]
    process = scene.start(*words, pause="backup.copy")
    point = scene.wait_paused("backup.copy", process)
    try:
        yield process
        point.unlink()
        said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.communicate()


def test_all_of_its_threads_give_way(paused: subprocess.Popen[str]) -> None:
    library = ctypes.CDLL(None)
    threads = list(Path(f"/proc/{paused.pid}/task").iterdir())
    assert len(threads) > 2
    for thread in threads:
        fields = (thread / "stat").read_text().rpartition(")")[2].split()
        assert int(fields[_NICE]) == 19
        number = _IOPRIO_GET[platform.machine()]
        assert library.syscall(number, 1, int(thread.name)) >> 13 == _IDLE >> 13


def test_a_rate_that_is_none_is_refused(scene: BackupScene) -> None:
    errors = scene.run("backup", "--bytes-per-second", "-1", status=3)
    assert "--bytes-per-second: -1 is outside" in errors


def test_the_rate_is_what_is_read(scene: BackupScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the workers read went through the throttle."""
    taken: list[int] = []
    monkeypatch.setattr(
        "pgrecall.system.throttle.Throttle.take", lambda _, count: taken.append(count)
    )
    backup = scene.taken(full=True)
    assert sum(taken) >= backup.totals.raw_bytes - 8192  # pg_control is not paced
