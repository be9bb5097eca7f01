"""One of PostgreSQL's tools at work: its output taken, its errors kept, its end seen to."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NamedTuple, Protocol

from pgrecall.errors import ToolMissingError
from pgrecall.system.held_signals import signals_held

_LONGEST_STDERR = 64 << 10
_PATIENCE_SECONDS = 10.0


class Ended(NamedTuple):
    """How a tool ended: its status, and what it wrote to standard error (the end of it)."""

    status: int
    errors: str

    @property
    def last_words(self) -> str:
        """The last lines of its errors, for a message."""
        return "\n".join(self.errors.strip().splitlines()[-5:])


class _Pipe(Protocol):
    def write(self, data: memoryview, /) -> int: ...


class Feed:
    """The standard input of a tool, or what leads there."""

    def __init__(self, pipe: _Pipe) -> None:
        self._pipe = pipe

    def write(self, data: bytes | memoryview) -> int:
        """Write all of it: a pipe itself may take less than it is given."""
        view = memoryview(data)
        while view:
            view = view[self._pipe.write(view) :]
        return len(data)


class ToolRuns:
    """The tools that a run has started: all are ended when it fails. For any thread."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._has_ended = False

    def run(
        self,
        words: Sequence[str],
        variables: Mapping[str, str],
        *,
        read: Callable[[IO[bytes]], None] | None = None,
        write: Callable[[Feed], object] | None = None,
    ) -> Ended:
        """Start it, hand its standard output to ``read`` (or feed its input by ``write``), wait.

        Raises ToolMissingError, and what ``read`` or ``write`` raises; then the tool is ended.
        """
        process = self._start(words, variables, reads=read is not None, writes=write is not None)
        errors = _Errors(process.stderr)
        try:
            if process.stdout is not None and read is not None:
                read(process.stdout)
            if process.stdin is not None and write is not None:
                _feed(process.stdin, write)
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            errors.join()
            for stream in (process.stdout, process.stdin):
                if stream is not None:
                    _close(stream)
            with self._lock:
                self._running.discard(process)
        return Ended(status, errors.text)

    def end_all(self) -> None:
        """Kill what runs; nothing is started any more."""
        with self._lock:
            self._has_ended = True
            running = list(self._running)
        for process in running:
            process.kill()

    def _start(
        self, words: Sequence[str], variables: Mapping[str, str], *, reads: bool, writes: bool
    ) -> subprocess.Popen[bytes]:
        with signals_held(), self._lock:
            if self._has_ended:
                raise ToolMissingError(f"{words[0]} is not started: the run has ended")
            try:
                process = subprocess.Popen(
                    list(words),
                    stdin=subprocess.PIPE if writes else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if reads else subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=dict(variables),
                    bufsize=0,
                    # A signal that ends this process by the terminal must not come to the tool
                    # first: its error would hide why.
                    start_new_session=True,
                )
            except OSError as error:
                raise ToolMissingError(f"{words[0]} cannot be started: {error}") from error
            self._running.add(process)
        return process


class _Errors:
    """Standard error of a tool, read as it comes; the end of it is kept."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        assert stream is not None
        self._stream = stream
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._read, name="tool-errors", daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        return self._kept.decode(errors="replace")

    def join(self) -> None:
        self._thread.join(_PATIENCE_SECONDS)
        self._stream.close()

    def _read(self) -> None:
        while True:
            data = os.read(self._stream.fileno(), 8192)
            if not data:
                return
            self._kept += data
            del self._kept[:-_LONGEST_STDERR]


def _feed(stream: IO[bytes], write: Callable[[Feed], object]) -> None:
    try:
        write(Feed(stream))
        stream.close()
    except BrokenPipeError:
        return  # it has ended before it read all: its status says why


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        return
