"""So many bytes in a second, for all threads together; by a clock that is moved by sleeping."""

from __future__ import annotations

import pytest

from pgrecall.system import throttle
from pgrecall.system.throttle import Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(throttle, "time", made)
    return made


def test_what_passes_in_a_second_is_bounded(clock: Clock) -> None:
    throttle = Throttle(1000)
    for _ in range(5):
        throttle.take(500)
    assert clock.now == pytest.approx(
        102.0
    )  # the first passes at once, each waits for those before


def test_time_that_went_unused_is_not_saved_up(clock: Clock) -> None:
    throttle = Throttle(1000)
    throttle.take(100)
    clock.now += 60
    throttle.take(2000)
    assert sum(clock.slept) == 0
    throttle.take(1)
    assert clock.slept[-1] == pytest.approx(2.0)


def test_without_a_rate_nobody_waits(clock: Clock) -> None:
    Throttle(0).take(1 << 50)
    assert clock.slept == []
