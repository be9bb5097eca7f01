"""Signals wait while something must not be cut in two."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pgrecall.errors import InterruptedRunError
from pgrecall.system.held_signals import signals_held
from pgrecall.system.signals import signals_as_errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    steps = []
    with pytest.raises(InterruptedRunError, match=number.name), signals_as_errors():
        with signals_held():
            signal.raise_signal(number)
            steps.append("inside")
        steps.append("after")
    assert steps == ["inside"]


def test_without_a_signal_nothing_happens_and_handlers_are_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_held():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_error_of_the_block_is_not_lost() -> None:
    with pytest.raises(InterruptedRunError) as caught, signals_as_errors(), signals_held():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("inside")
    assert isinstance(caught.value.__context__, ValueError)


def test_children_started_inside_can_be_ended() -> None:
    with signals_held():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    child.terminate()
    assert child.wait(timeout=30) == -signal.SIGTERM
