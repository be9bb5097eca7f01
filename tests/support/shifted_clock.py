"""A wall clock for the processes that a test starts, which the test sets while they run."""

from __future__ import annotations

import mmap
import struct
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")


class ShiftedClock:
    """Every process that is started after this was made lives by it, and so do its children.

    The test itself does not. Needs a C compiler; where there is none, the test fails.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        library, offset = directory / "shifted_clock.so", directory / "offset"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, SOURCE], check=True
        )
        offset.write_bytes(bytes(8))
        with offset.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), 8)
        monkeypatch.setenv("LD_PRELOAD", str(library))
        monkeypatch.setenv("SHIFTED_CLOCK_FILE", str(offset))

    def now(self) -> datetime:
        """What the processes take for the present."""
        (seconds,) = struct.unpack("q", self._mapped[:])
        return datetime.now(UTC) + timedelta(seconds=seconds)

    def jump(self, by: timedelta) -> None:
        """Set the clock forth, or back."""
        (seconds,) = struct.unpack("q", self._mapped[:])
        self._mapped[:] = struct.pack("q", seconds + round(by.total_seconds()))

    def set(self, to: datetime) -> None:
        """Set the clock to a moment."""
        self.jump(to - self.now())

    def close(self) -> None:
        self._mapped.close()
