"""Threads that do one thing after the other, as many as may be at work at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Workers:
    """At most ``most`` threads, made when they are first needed.

    They are daemons: one that hangs in a store does not keep the process from
    ending. What ``do`` is given must not raise.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._lock = threading.Lock()
        self._threads = 0
        self._waiting = 0
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def do(self, job: Callable[[], None]) -> None:
        """Have ``job`` done as soon as a thread is free; never waits."""
        with self._lock:
            self._waiting += 1
            is_short = self._waiting > self._threads and self._threads < self._most
            if is_short:
                self._threads += 1
                number = self._threads
        self._jobs.put(job)
        if is_short:
            threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True).start()

    def end(self) -> None:
        """Let each thread end when it has done what was asked for before."""
        with self._lock:
            threads = self._threads
        for _ in range(threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            with self._lock:
                self._waiting -= 1
