"""What a directory of a store holds, told by the C extension and without it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.codec.native import HAS_NATIVE
from pgrecall.store import directories
from pgrecall.store.directories import list_directory
from pgrecall.store.keys import MAX_PART_LENGTH


@pytest.fixture(params=[True, False], ids=["native", "fallback"])
def directory(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[int]:
    assert HAS_NATIVE
    monkeypatch.setattr(directories, "HAS_NATIVE", request.param)
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_files_and_directories_are_told_with_sizes_and_times(
    directory: int, tmp_path: Path
) -> None:
    assert list_directory(directory, "") == []
    (tmp_path / "below").mkdir()
    (tmp_path / "one").write_bytes(b"abc")
    os.utime(tmp_path / "one", ns=(0, 1_700_000_000_123_456_789))
    (tmp_path / "empty-_.=%+~09AZaz").touch()
    (tmp_path / ("l" * MAX_PART_LENGTH)).touch()
    found = {name: (size, modified) for name, size, modified in list_directory(directory, "")}
    assert found.keys() == {"below/", "one", "empty-_.=%+~09AZaz", "l" * MAX_PART_LENGTH}
    assert found["below/"] == (-1, 0.0)
    assert found["one"] == (3, (tmp_path / "one").stat().st_mtime)
    assert [name for name, _, _ in list_directory(directory, "on")] == ["one"]
    assert [name for name, _, _ in list_directory(directory, "be")] == ["below/"]
    assert list_directory(directory, "below/") == []


def test_what_is_not_ours_is_left_out(directory: int, tmp_path: Path) -> None:
    for name in (".hidden", "with space", "ümlaut", "quo'te", "new\nline", "back\\slash"):
        (tmp_path / name).touch()
    (tmp_path / "kept").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "to-file").symlink_to("kept")
    (tmp_path / "to-directory").symlink_to(".")
    names = sorted(name for name, _, _ in list_directory(directory, ""))
    assert names == ["kept", "to-directory/", "to-file"]


def test_many_are_told(directory: int, tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"{number:024X}").write_bytes(bytes(number % 7))
    found = sorted(list_directory(directory, ""))
    assert [(name, size) for name, size, _ in found] == [
        (f"{number:024X}", number % 7) for number in range(3000)
    ]


def test_what_cannot_be_looked_at_is_named(directory: int, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop") as caught:
        list_directory(directory, "")
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, "loop")
    assert list_directory(directory, "lo_") == []
