"""Ending a run by a signal: an ordinary exception, so that every ``finally`` is run (light)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pgrecall.errors import InterruptedRunError

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_as_errors() -> Iterator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP raises InterruptedRunError in the main thread.

    Further ones are ignored until the block ends, so that cleaning up is not cut
    short; SIGKILL still ends a process that hangs. A signal that was ignored
    before (nohup) stays ignored. Must be entered in the main thread; elsewhere it
    does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    has_ended = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal has_ended
        del frame
        if has_ended:
            return
        has_ended = True
        raise InterruptedRunError(
            f"ended by {signal.Signals(number).name}",
            hint="what was begun is put back; run the same command again",
        )

    previous = {}
    for number in _ENDING:
        handler = signal.getsignal(number)
        if handler is not signal.SIG_IGN:
            previous[number] = handler
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
