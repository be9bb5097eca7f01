"""Progress for people: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichBars

from pgrecall.cli.rendering import duration, size
from pgrecall.system.progress import NoProgress, Progress

_LINE_EVERY_SECONDS = 5.0


def choose_progress(*, as_json: bool) -> Progress:
    """Nothing with --json, a bar when standard error is a terminal, else lines."""
    if as_json:
        return NoProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()


class BarProgress:
    """One bar for each phase: bytes, rate, time to go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: RichBars | None = None
        self._task = TaskID(0)

    def phase(self, name: str) -> None:
        """Close the phase before and show a new bar."""
        with self._lock:
            if self._bars is None:
                self._bars = RichBars(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    DownloadColumn(binary_units=True),
                    TransferSpeedColumn(),
                    TimeRemainingColumn(),
                    console=Console(stderr=True),
                )
                self._bars.start()
            else:
                self._bars.stop_task(self._task)
            self._task = self._bars.add_task(name, total=None)

    def start(self, total_bytes: int) -> None:
        """The bar's full length."""
        with self._lock:
            if self._bars is not None:
                self._bars.update(self._task, total=total_bytes, completed=0)

    def advance(self, done_bytes: int) -> None:
        """Move the bar."""
        with self._lock:
            if self._bars is not None:
                self._bars.advance(self._task, done_bytes)

    def done(self) -> None:
        """Give the terminal back."""
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None


class LineProgress:
    """A line when a phase begins, then at most one every five seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._name = ""
        self._total_bytes = 0
        self._done_bytes = 0
        self._began = self._last = time.monotonic()

    def phase(self, name: str) -> None:
        """Say its name."""
        with self._lock:
            self._name = name
            self._total_bytes = self._done_bytes = 0
            self._began = self._last = time.monotonic()
            sys.stderr.write(f"{name}\n")

    def start(self, total_bytes: int) -> None:
        """Remember the whole."""
        with self._lock:
            self._total_bytes = total_bytes
            self._done_bytes = 0

    def advance(self, done_bytes: int) -> None:
        """Count, and write a line when one is due."""
        with self._lock:
            self._done_bytes += done_bytes
            now = time.monotonic()
            if now - self._last >= _LINE_EVERY_SECONDS:
                self._last = now
                sys.stderr.write(self._line(now - self._began) + "\n")

    def done(self) -> None:
        """Nothing is held open."""

    def _line(self, elapsed_seconds: float) -> str:
        rate = self._done_bytes / elapsed_seconds
        line = f"{self._name}: {size(self._done_bytes)}"
        if self._total_bytes:
            line += f" of {size(self._total_bytes)}"
        line += f", {size(round(rate))}/s"
        left_bytes = self._total_bytes - self._done_bytes
        if rate > 0 and left_bytes > 0:
            line += f", {duration(left_bytes / rate)} to go"
        return line
