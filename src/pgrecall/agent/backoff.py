"""How long to wait after a failure: longer each time, never too long, never all at once."""

from __future__ import annotations

import random
from collections.abc import Callable

_FACTOR = 2.0


class Backoff:
    """Waits that double from ``first_seconds`` to ``longest_seconds``, each shortened by chance.

    The chance (a wait is half of its length at least) keeps several agents from
    coming back to a store in step. Not thread-safe.
    """

    def __init__(
        self,
        first_seconds: float = 1.0,
        longest_seconds: float = 60.0,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._first = first_seconds
        self._longest = longest_seconds
        self._chance = chance
        self._next = first_seconds

    def after_failure(self, worked_seconds: float) -> float:
        """The wait after a failure; what worked for longer than the longest wait begins anew."""
        if worked_seconds > self._longest:
            self._next = self._first
        whole = self._next
        self._next = min(self._longest, whole * _FACTOR)
        return whole * (0.5 + 0.5 * self._chance())
