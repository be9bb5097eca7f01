"""A component that does one small thing again and again, such as recording names."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pgrecall.agent.component import Fact, Facts
from pgrecall.errors import PgrecallError
from pgrecall.system.clock import Clock

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 60.0


class Periodic:
    """Does ``work`` at the start and every ``interval_seconds``; a Component.

    An error of ours is a fact, and the work is tried again after a minute: a server
    or store that is away is no failure of the agent. Facts: ``last_at``,
    ``done_total``, ``error``, and what ``work`` returns.
    """

    def __init__(
        self, name: str, work: Callable[[], Facts], interval_seconds: float, clock: Clock
    ) -> None:
        self._name = name
        self._work = work
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._facts: dict[str, Fact] = {"last_at": None, "done_total": 0, "error": None}
        self._done = 0

    @property
    def name(self) -> str:
        """As it was given."""
        return self._name

    def facts(self) -> Facts:
        """What came of it last."""
        with self._lock:
            return dict(self._facts)

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop``."""
        while not stop.is_set():
            is_done = self._do()
            stop.wait(
                self._interval_seconds if is_done else min(self._interval_seconds, _RETRY_SECONDS)
            )

    def _do(self) -> bool:
        try:
            found = self._work()
        except PgrecallError as error:
            with self._lock:
                is_new = self._facts["error"] != error.message
                self._facts["error"] = error.message
            if is_new:
                extra = {"component": self._name, "hint": error.hint}
                _log.warning("not done: %s", error.message, extra=extra)
            return False
        self._done += 1
        with self._lock:
            self._facts = {
                **found,
                "last_at": self._clock.now().isoformat(),
                "done_total": self._done,
                "error": None,
            }
        return True
