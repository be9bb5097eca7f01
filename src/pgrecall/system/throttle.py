"""How fast something may go: so many bytes in a second, for all threads together."""

from __future__ import annotations

import threading
import time


class Throttle:
    """Lets ``bytes_per_second`` through, over any second or so; 0 lets everything through."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may pass; returns at once without a rate.

        The time that they take is reserved before it is waited for, so that threads
        go one behind the other and the rate holds for all of them.
        """
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            begins = max(now, self._free_at)
            self._free_at = begins + count / self._rate
        time.sleep(begins - now)
