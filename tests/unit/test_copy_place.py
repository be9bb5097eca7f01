"""Where a copy's socket goes when its own path is no place for it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.app.copy_place import choose_place
from pgrecall.errors import DestinationError

LONG = "x" * 120


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A /tmp of our own, with a path that is short; pytest's own directories lie elsewhere."""
    assert tmp_path.is_dir()
    directory = tempfile.mkdtemp(prefix="p-", dir="/tmp")
    monkeypatch.setattr(tempfile, "tempdir", directory)
    yield Path(directory)
    for path in sorted(Path(directory).rglob("*"), reverse=True):
        path.unlink() if path.is_symlink() or path.is_file() else path.rmdir()
    os.rmdir(directory)


def test_a_short_path_is_its_own_place(temporary: Path) -> None:
    assert choose_place("/restore/shop", 5433).socket_directory == "/restore/shop"
    assert choose_place("/restore/shop", 5433).port == 5433
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", [LONG, "with, comma", 'with "quotes"', " ends "])
def test_every_restore_to_one_place_uses_one_directory(
    tmp_path: Path, temporary: Path, name: str
) -> None:
    copy = tmp_path / name
    copy.mkdir()
    first = choose_place(str(copy), None)
    assert choose_place(str(copy), None).socket_directory == first.socket_directory
    (made,) = temporary.iterdir()
    assert str(made) == first.socket_directory
    assert made.stat().st_mode & 0o777 == 0o700
    other = choose_place(str(tmp_path / ("y" * 120)), None)
    assert other.socket_directory != first.socket_directory
    assert made.exists()


def test_what_belonged_to_a_copy_that_is_gone_is_removed(tmp_path: Path, temporary: Path) -> None:
    copy = tmp_path / LONG
    copy.mkdir()
    gone = Path(choose_place(str(copy), None).socket_directory)
    busy = Path(choose_place(str(tmp_path / ("z" * 120)), None).socket_directory)
    (busy / ".s.PGSQL.5432").touch()
    foreign = temporary / f"pgrecall-{os.geteuid()}-foreign"
    foreign.mkdir()
    copy.rmdir()
    choose_place(str(tmp_path / ("y" * 120)), None)
    assert gone.exists(), "a restore that runs beside may be about to make its copy"
    two_days_ago = time.time() - 2 * 86400
    os.utime(gone / "copy", (two_days_ago, two_days_ago), follow_symlinks=False)
    choose_place(str(tmp_path / ("y" * 120)), None)
    assert (gone.exists(), foreign.exists()) == (False, True)
    assert {path.name for path in busy.iterdir()} == {"copy", ".s.PGSQL.5432"}


def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    place = Path(choose_place(str(tmp_path / LONG), None).socket_directory)
    place.chmod(0o755)
    with pytest.raises(DestinationError, match="open to others"):
        choose_place(str(tmp_path / LONG), None)
    (place / "copy").unlink()
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(DestinationError):
        choose_place(str(tmp_path / LONG), None)
