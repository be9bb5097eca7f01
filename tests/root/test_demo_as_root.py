"""The demonstration started by root: ``python -m pytest tests/root``, as root, in a clone.

PostgreSQL refuses root, and neither the clone nor root's home lets another user in: interpreter,
package and PostgreSQL must come along, for archive_command too.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.errors import InterruptedRunError
from pgrecall.system.unprivileged import choose_account
from tests.support.demo import QUICK, DemoRun, assert_nothing_left, processes_of

ROOT = Path(__file__).resolve().parents[2]
MAKE_DEADLINE_SECONDS = 600

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start it as root")


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone that only root may enter, with what is not committed yet."""
    directory = tmp_path / "clone"
    subprocess.run(
        ["git", "-c", "safe.directory=*", "clone", "-q", str(ROOT), str(directory)], check=True
    )
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "-m", "-o", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    directory.chmod(0o700)
    return directory


def test_make_demo_in_a_closed_clone(clone: Path, place: Path) -> None:
    told = subprocess.run(
        ["make", "demo", f"PYTHON={base_interpreter()}"],
        cwd=clone,
        env={**os.environ, "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        timeout=MAKE_DEADLINE_SECONDS,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert f"going on as user {choose_account().name}" in told.stdout
    assert "Proven:" in told.stdout
    assert_nothing_left(place)


def base_interpreter() -> str:
    """The interpreter behind the environment that runs this, as a user would name it."""
    return os.path.realpath(sys.executable)


def test_interrupted_it_leaves_nothing(place: Path) -> None:
    told = DemoRun(place, *QUICK)
    told.wait_for(r"^4  ")
    assert told.end(signal.SIGTERM) == InterruptedRunError.exit_status, told.text
    assert_nothing_left(place)


def test_kept_in_a_directory_of_its_own(place: Path) -> None:
    directory = place / "kept"
    told = DemoRun(place, *QUICK, "--json", "--keep", "--directory", str(directory))
    assert told.wait() == 0, told.text
    kept = json.loads(told.text)["kept"]
    assert directory.stat().st_uid == choose_account().uid
    try:
        answer = subprocess.run(
            f"{kept['connect_to_restored']} -XAtc 'SELECT count(*) FROM orders'",
            shell=True, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert answer.stdout.strip() == "20500"
    finally:
        for line in kept["stop"]:
            subprocess.run(line, shell=True, check=True, capture_output=True, cwd="/")
        assert processes_of(directory) == []
        subprocess.run(kept["remove"], shell=True, check=True)
    assert_nothing_left(place)


def test_a_directory_that_the_user_cannot_reach_is_refused(tmp_path: Path, place: Path) -> None:
    tmp_path.chmod(0o700)
    told = DemoRun(place, "--directory", str(tmp_path / "closed"))
    assert told.wait() == 52, told.text
    assert "cannot enter" in told.text
    assert not (tmp_path / "closed").exists()
    assert_nothing_left(place)
