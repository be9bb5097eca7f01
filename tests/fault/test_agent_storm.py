"""Agents and clients die, stop and go on at random; every answer is right all the same.

``PGRECALL_STORM_SEED`` chooses the seed, ``PGRECALL_STORM_SECONDS`` how long it takes.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.test_agent_faults import ABSENT, DESTINATION, FaultScene
from tests.support.listener_scene import AgentProcess, short_directory

SEED = int(os.environ.get("PGRECALL_STORM_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
SECONDS = float(os.environ.get("PGRECALL_STORM_SECONDS", "8"))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[FaultScene]:
    with short_directory() as directory:
        yield FaultScene(tmp_path, directory / "agent.sock")


class Weather(threading.Thread):
    """One agent after the other, none of them for long."""

    def __init__(self, scene: FaultScene) -> None:
        super().__init__()
        self.random = random.Random(SEED + 1)
        self.scene = scene
        self.is_over = threading.Event()
        self.agent: AgentProcess | None = None
        self.count = 0

    def run(self) -> None:
        while not self.is_over.is_set():
            self.count += 1
            if self.agent is None:
                self.agent = self.scene.agent()
            self.is_over.wait(self.random.uniform(0.05, 1.0))
            number = self.random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, 0])
            self.agent.send(number)
            if number == signal.SIGSTOP:
                self.is_over.wait(self.random.uniform(0.1, 2.0))
                self.agent.send(signal.SIGCONT)
            elif number != 0:
                self.agent.process.wait(30)
                self.agent.end()
                self.agent = None

    def end(self) -> None:
        self.is_over.set()
        self.join(60)
        if self.agent is not None:
            self.agent.end()


def one_call(scene: FaultScene, chance: random.Random) -> None:
    """A client does what it is asked, or is killed."""
    kind = chance.choice(["c", "c", "c", "python"])
    name = chance.choice(list(scene.segments))
    wanted = chance.choice([name, ABSENT])
    is_push = chance.random() < 0.4
    words = ("push", f"pg_wal/{name}") if is_push else ("fetch", wanted, DESTINATION)
    (scene.pgdata / DESTINATION).unlink(missing_ok=True)
    # A push whose client was killed may come to its end at any moment.
    was_stored = wanted != ABSENT and scene.object_path(wanted).exists()
    process = scene.client(kind, *words)
    if chance.random() < 0.15:
        time.sleep(chance.uniform(0, 0.3))  # anywhere in its life
        process.kill()
        process.communicate()
        return
    _, said = process.communicate(timeout=60)
    where = f"seed {SEED}: {kind} {words}: {process.returncode} {said}"
    if is_push:
        assert process.returncode == 0, where
        assert scene.object_path(name).exists(), where
    elif process.returncode == 0:
        assert (scene.pgdata / DESTINATION).read_bytes() == scene.segments[wanted], where
    else:
        assert (process.returncode, was_stored) == (64, False), where


@pytest.mark.slow
def test_every_answer_is_right(scene: FaultScene) -> None:
    chance = random.Random(SEED)
    weather = Weather(scene)
    weather.start()
    calls = 0
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            one_call(scene, chance)
            calls += 1
    finally:
        weather.end()
    print(f"seed {SEED}: {calls} calls, {weather.count} changes of weather")
    assert calls > 10
    for name, content in scene.segments.items():
        if scene.object_path(name).exists():
            assert scene.fetched(name) == content
