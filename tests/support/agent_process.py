"""The agent as a process beside a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgrecall.agent.process import AgentSnapshot, read_snapshot
from tests.support.product import SERVER, Product

DEADLINE_SECONDS = 30.0


class RunningAgent:
    """One ``pgrecall agent``; what it logs is in ``log``."""

    def __init__(self, product: Product, directory: Path, *words: str, **environment: str) -> None:
        self.directory = directory / SERVER
        self.log_path = directory.parent / f"agent-{time.monotonic_ns()}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                product.command("agent", *words),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    @property
    def snapshot(self) -> AgentSnapshot | None:
        """What this very process said of itself last."""
        found = read_snapshot(str(self.directory / "state"))
        return found if found is not None and found.pid == self.process.pid else None

    def facts(self, component: str) -> dict[str, Any]:
        assert self.snapshot is not None
        (found,) = (one for one in self.snapshot.components if one.name == component)
        return {**found.facts, "state": found.state, "restarts": found.restarts}

    def wait_until(self, condition: Callable[[], Any], what: str = "the condition holds") -> Any:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what}\n{self.log}"
            assert self.process.poll() is None, f"the agent has ended\n{self.log}"
            time.sleep(0.02)
        return value

    def wait_running(self) -> None:
        """Until every component is at work."""
        self.wait_until(
            lambda: (
                self.snapshot is not None
                and all(one.state == "running" for one in self.snapshot.components)
            ),
            "all components run",
        )

    def logged(self, text: str) -> bool:
        return text in self.log

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it, and wait for its exit status."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)

    def output(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        document = json.loads(self.process.stdout.read())
        assert isinstance(document, dict)
        return document

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()


class AgentScene:
    """A product, and its agents one after the other."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.directory = product.directory / "agent"
        self.agents: list[RunningAgent] = []
        self.base = product.config.read_text(encoding="utf-8")
        self.configure()

    def configure(self, agent: str = "", more: str = "") -> None:
        """Write the configuration anew, with lines for [agent] and further sections."""
        self.product.config.write_text(
            f"{self.base}\n[agent]\ndirectory = {json.dumps(str(self.directory))}\n{agent}\n{more}",
            encoding="utf-8",
        )

    def start(self, *words: str, wait: bool = True, **environment: str) -> RunningAgent:
        agent = RunningAgent(self.product, self.directory, *words, **environment)
        self.agents.append(agent)
        if wait:
            agent.wait_running()
        return agent

    def close(self) -> None:
        for agent in self.agents:
            agent.close()
