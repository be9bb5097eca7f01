"""The first module that runs (light): sends a command line to the module that serves it.

``wal push`` and ``wal fetch`` are run by PostgreSQL for every segment, so they
go to a module of their own that imports nothing heavy; everything else goes to
the tree of commands. Modules are named in a table and imported on demand: the
layout makes the start fast.

PostgreSQL reads exit statuses as orders. An archive_command that ends with more
than 125 stops the archiver (documentation, "Setting Up WAL Archiving"), and a
restore_command that says "absent" ends recovery. So whatever happens below,
``wal push`` ends with 0 to 125 and never 64, and ``wal fetch`` says 0 or 64
only when its module said so by returning it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what signal wraps in enumerations, slowly
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from types import FrameType

from pgrecall.errors import EXIT_PROVEN_ABSENT, InterruptedRunError

_TREE = "pgrecall.cli.tree"
# Stages: by the agent at a socket that is named, then with the settings, each only if need be.
_STAGES = ("pgrecall.cli.wal_agent", "pgrecall.cli.wal_settings")
_TRANSFERS: dict[tuple[str, ...], Sequence[str]] = {
    ("wal", "push"): _STAGES,
    ("wal", "fetch"): _STAGES,
    # A recovery waits for its start.
    ("wal", "fetch-ahead"): ("pgrecall.cli.wal_ahead_entry",),
}
_OPTIONS_WITH_VALUE = frozenset(
    {"--config", "--server", "--repository", "--log-level", "--agent-socket"}
)
_HELP = frozenset({"--help", "-h"})
_HIGHEST_STATUS = 125
# Allocations between two collections, young and older ones between collections of the next
# generation. Modules, manifests and catalogs are many objects and hardly any cycle: with Python's
# own 700, 10 and 10 a restore spends a twentieth of its time looking for some.
_COLLECTION = (100_000, 20, 20)
_ENDINGS = {_signal.SIGTERM: "SIGTERM", _signal.SIGINT: "SIGINT", _signal.SIGHUP: "SIGHUP"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    Without ``arguments`` those of the process are taken; then ``wal push`` and
    ``wal fetch`` end the process here.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_missing_streams()
    command = command_words(words)
    stages = _TRANSFERS.get(command)
    if stages is not None and not _HELP.intersection(words):
        status = _transfer(stages, command, words)
        if arguments is None:
            # Everything is flushed. What the interpreter does at its end could only change
            # the status (to 120 when a stream is gone), and is an eighth of the time.
            os._exit(status)
        return status
    # numpy's library for matrices, of which nothing here makes any, starts threads that spin.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(*_COLLECTION)
    try:
        tree = importlib.import_module(_TREE)
    except KeyboardInterrupt:
        # Loading takes a moment; behind it, the tree itself says what an interruption left.
        sys.stderr.write("pgrecall: interrupted; nothing was begun\n")
        return InterruptedRunError.exit_status
    return int(tree.run(words))


def _open_missing_streams() -> None:
    """A caller may have closed 0, 1 or 2: no file of ours may get such a number.

    What is said on a closed stream goes nowhere, and is no reason to fail.
    """
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for the whole process)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def command_words(words: Sequence[str]) -> tuple[str, ...]:
    """The first two words that are neither options nor their values."""
    found: list[str] = []
    is_value = False
    for word in words:
        if is_value:
            is_value = False
        elif word.startswith("-"):
            is_value = word in _OPTIONS_WITH_VALUE
        else:
            found.append(word)
            if len(found) == 2:
                break
    return tuple(found)


def _transfer(stages: Sequence[str], command: tuple[str, ...], words: Sequence[str]) -> int:
    # The collector scans everything that is being imported, for nothing. The process ends
    # after one file, and buffers go by reference count.
    gc.disable()
    try:
        for number in _ENDINGS:
            _signal.signal(number, _end)
        status = None
        for stage in stages:
            status = importlib.import_module(stage).run(words)
            if status is not None:
                break
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 (an exit status must never come from a crash)
        return _crash_status(error)
    finally:
        gc.enable()
    if status == EXIT_PROVEN_ABSENT and command == ("wal", "fetch"):
        return EXIT_PROVEN_ABSENT
    return _failure_status(status) if status != 0 else 0


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    raise InterruptedRunError(f"ended by {_ENDINGS[number]}")


def _crash_status(error: BaseException) -> int:
    """Say what happened as far as that is possible still; a status from 1 to 125, not 64."""
    try:
        sys.stderr.write(f"pgrecall: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = None  # nobody listens; the interpreter must not try again at its end
    if isinstance(error, BrokenPipeError):
        sys.stdout = None
    return _failure_status(getattr(error, "exit_status", 1))


def _failure_status(status: object) -> int:
    is_fit = isinstance(status, int) and 0 < status <= _HIGHEST_STATUS
    return status if is_fit and status != EXIT_PROVEN_ABSENT else 1  # type: ignore[return-value]
