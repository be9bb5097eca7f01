"""What the agent is made of: components, each at work in a thread of its own (light)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

Fact = str | int | float | bool | None
Facts = Mapping[str, Fact]


class Component(Protocol):
    """One duty of the agent: the listener, the pusher, the receiver, the schedule, the metrics.

    ``name`` is unique within an agent, in kebab case; it labels the log, the
    status and the metrics.
    """

    @property
    def name(self) -> str:
        """The name in the log, the status and the metrics."""
        ...

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set, then end within seconds.

        Raising means failure: the supervisor logs it, waits (longer each time),
        and calls ``run`` again on the same object. Returning before ``stop`` is
        set means that there is nothing to do.
        """
        ...

    def facts(self) -> Facts:
        """What is known at this moment; called from other threads, never waits long."""
        ...
