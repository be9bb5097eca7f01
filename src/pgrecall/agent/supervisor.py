"""Runs the agent's components, each in a thread of its own, and keeps them running.

A component that fails is logged, waited for, and run again; its failure never
ends another. What it was is kept: state, restarts, last error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import msgspec

from pgrecall.agent.backoff import Backoff
from pgrecall.agent.component import Component, Fact
from pgrecall.errors import PgrecallError

_log = logging.getLogger(__name__)

State = Literal["starting", "running", "waiting", "ended", "stuck"]


class Spec(NamedTuple):
    """A component to be run: how it is made, and what it is made from.

    ``signature`` compares equal as long as the settings that the component was
    made from are the same; a reload restarts it only when they differ.
    """

    name: str
    signature: object
    make: Callable[[], Component]


class ComponentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One component at one moment.

    ``state``: ``waiting`` after a failure until it is run again, ``ended`` when it
    returned by itself, ``stuck`` when it did not end in time. ``facts`` are its own.
    """

    name: str
    state: State
    started_at: datetime
    restarts: int = 0
    last_error: str = ""
    failed_at: datetime | None = None
    facts: dict[str, Fact] = {}


class Supervisor:
    """The components of one agent. ``apply`` and ``stop`` are called by one thread only."""

    def __init__(
        self, *, stop_seconds: float = 20.0, backoff: Callable[[], Backoff] = Backoff
    ) -> None:
        self._stop_seconds = stop_seconds
        self._backoff = backoff
        self._lock = threading.Lock()
        self._runners: dict[str, _Runner] = {}

    def apply(self, specs: Sequence[Spec]) -> list[str]:
        """Run exactly these: start what is new, restart what changed, end what is gone.

        Returns the names that were started, restarted or ended. One that does not
        end in time is replaced nevertheless, but only once it has ended: two of a
        name never work at the same time.
        """
        wanted = {spec.name: spec for spec in specs}
        if len(wanted) != len(specs):
            raise ValueError("two components have the same name")
        before = dict(self._runners)
        leaving = {
            name: runner
            for name, runner in before.items()
            if name not in wanted or runner.spec.signature != wanted[name].signature
        }
        self._end(list(leaving.values()))
        kept = {name: runner for name, runner in before.items() if name not in leaving}
        started = {
            name: _Runner(spec, self._backoff(), leaving.get(name))
            for name, spec in wanted.items()
            if name not in kept
        }
        with self._lock:
            self._runners = {name: (kept | started)[name] for name in wanted}
        for runner in started.values():
            runner.start()
        return sorted({*leaving, *started})

    def statuses(self) -> list[ComponentStatus]:
        """All components with their facts; from any thread."""
        with self._lock:
            runners = list(self._runners.values())
        return [runner.status() for runner in runners]

    def stop(self) -> list[str]:
        """End all components at once; returns the names of those that did not in time."""
        runners = list(self._runners.values())
        self._end(runners)
        return [runner.spec.name for runner in runners if runner.is_alive]

    def _end(self, runners: Sequence[_Runner]) -> None:
        for runner in runners:
            runner.ask_to_stop()
        deadline = time.monotonic() + self._stop_seconds
        for runner in runners:
            if not runner.join(max(0.0, deadline - time.monotonic())):
                _log.error(
                    "a component does not end",
                    extra={"component": runner.spec.name, "waited_seconds": self._stop_seconds},
                )


class _Runner:
    """One component, its thread, and what became of it."""

    def __init__(self, spec: Spec, backoff: Backoff, predecessor: _Runner | None) -> None:
        self.spec = spec
        self._backoff = backoff
        self._predecessor = predecessor
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._component: Component | None = None
        self._state: State = "starting"
        self._started_at = datetime.now(UTC)
        self._restarts = 0
        self._last_error = ""
        self._failed_at: datetime | None = None
        # A daemon: what hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=spec.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_to_stop(self) -> None:
        self._stop.set()

    def join(self, timeout_seconds: float) -> bool:
        """Wait until it has ended; False, and stuck from now on, when it has not in time."""
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._set(state="stuck")
            return False
        return True

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def status(self) -> ComponentStatus:
        with self._lock:
            component = self._component
            status = ComponentStatus(
                name=self.spec.name,
                state=self._state,
                started_at=self._started_at,
                restarts=self._restarts,
                last_error=self._last_error,
                failed_at=self._failed_at,
            )
        if component is None:
            return status
        try:
            facts = dict(component.facts())
        except Exception as error:  # noqa: BLE001 (no component's bug may hide the others)
            _log.exception("a component cannot say its facts", extra={"component": status.name})
            facts = {"facts_error": f"{type(error).__name__}: {error}"}
        return msgspec.structs.replace(status, facts=facts)

    def _work(self) -> None:
        if self._predecessor is not None:
            self._predecessor.wait_to_the_end()
            self._predecessor = None
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._run_once()
            except Exception as error:  # noqa: BLE001 (no component's bug may end another)
                wait = self._backoff.after_failure(time.monotonic() - began)
                self._failed(error, wait)
                self._stop.wait(wait)
                self._set(restarts=self._restarts + 1)
            else:
                break
        self._set(state="ended")

    def wait_to_the_end(self) -> None:
        self._thread.join()

    def _run_once(self) -> None:
        component = self._component
        if component is None:
            component = self.spec.make()
        with self._lock:
            self._component = component
            self._state = "running"
        component.run(self._stop)

    def _failed(self, error: Exception, wait_seconds: float) -> None:
        is_ours = isinstance(error, PgrecallError)
        text = str(error) if is_ours else f"{type(error).__name__}: {error}"
        self._set(state="waiting", last_error=text, failed_at=datetime.now(UTC))
        facts = {"component": self.spec.name, "again_in_seconds": round(wait_seconds, 1)}
        if isinstance(error, PgrecallError):
            facts |= {"code": error.code, "hint": error.hint}
        # Of our own errors the message says all; of a bug only the traceback does.
        _log.error("a component failed: %s", text, exc_info=None if is_ours else error, extra=facts)

    def _set(self, **changes: object) -> None:
        with self._lock:
            for name, value in changes.items():
                setattr(self, f"_{name}", value)
