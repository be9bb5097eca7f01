"""The supervisor, the lock of an agent, and what systemd is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pgrecall.agent.backoff import Backoff
from pgrecall.agent.component import Facts
from pgrecall.agent.lock import agent_lock, running_agent
from pgrecall.agent.notify import Notifier
from pgrecall.agent.supervisor import ComponentStatus, Spec, Supervisor
from pgrecall.errors import AgentPlaceError, AgentRunningError, StoreError

DEADLINE_SECONDS = 10.0


class Piece:
    """A component whose work is a function; counts what happens to it."""

    def __init__(self, name: str, work: Callable[[threading.Event], None] | None = None) -> None:
        self._name = name
        self._work = work or (lambda stop: void(stop.wait()))
        self.runs = 0
        self.at_work = 0

    @property
    def name(self) -> str:
        return self._name

    def run(self, stop: threading.Event) -> None:
        self.runs += 1
        self.at_work += 1
        try:
            self._work(stop)
        finally:
            self.at_work -= 1

    def facts(self) -> Facts:
        return {"runs": self.runs}


def void(_: object) -> None:
    return None


def spec(piece: Piece, signature: object = 0) -> Spec:
    return Spec(piece.name, signature, lambda: piece)


def fast() -> Backoff:
    return Backoff(0.001, 0.01)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def state(supervisor: Supervisor, name: str) -> ComponentStatus:
    (found,) = (status for status in supervisor.statuses() if status.name == name)
    return found


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor(stop_seconds=5, backoff=fast)
    yield made
    made.stop()


def test_all_run_and_end(supervisor: Supervisor) -> None:
    pieces = [Piece("one"), Piece("two")]
    assert supervisor.apply([spec(piece) for piece in pieces]) == ["one", "two"]
    wait_until(lambda: all(piece.at_work for piece in pieces))
    assert {status.state for status in supervisor.statuses()} == {"running"}
    assert supervisor.stop() == []
    assert [piece.at_work for piece in pieces] == [0, 0]
    assert {status.state for status in supervisor.statuses()} == {"ended"}


def test_a_failing_one_is_run_again_and_ends_no_other(supervisor: Supervisor) -> None:
    def fail_twice(stop: threading.Event) -> None:
        if bad.runs <= 2:
            raise StoreError("the store is away", hint="wait")
        stop.wait()

    bad, good = Piece("bad", fail_twice), Piece("good")
    supervisor.apply([spec(bad), spec(good)])
    wait_until(lambda: bad.runs == 3 and state(supervisor, "bad").state == "running")
    found = state(supervisor, "bad")
    assert (found.restarts, found.last_error) == (2, "the store is away")
    assert found.failed_at is not None
    assert good.runs == 1
    assert state(supervisor, "good").restarts == 0


def test_one_that_cannot_be_made_is_made_again(supervisor: Supervisor) -> None:
    tries: list[int] = []

    def make() -> Piece:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("not yet")
        return Piece("late")

    supervisor.apply([Spec("late", 0, make)])
    wait_until(lambda: state(supervisor, "late").state == "running")
    assert state(supervisor, "late").last_error == "RuntimeError: not yet"


def test_facts_that_fail_hide_nothing(supervisor: Supervisor) -> None:
    class Broken(Piece):
        def facts(self) -> Facts:
            raise KeyError("oops")

    broken = Broken("broken")
    supervisor.apply([spec(broken), spec(Piece("good"))])
    wait_until(lambda: broken.at_work)
    assert state(supervisor, "broken").facts == {"facts_error": "KeyError: 'oops'"}
    assert len(supervisor.statuses()) == 2


def test_a_change_restarts_only_what_changed(supervisor: Supervisor) -> None:
    same, old, new, gone = Piece("same"), Piece("other"), Piece("other"), Piece("gone")
    supervisor.apply([spec(same), spec(old, "a"), spec(gone)])
    wait_until(lambda: same.at_work and old.at_work and gone.at_work)
    assert supervisor.apply([spec(same), spec(new, "b")]) == ["gone", "other"]
    wait_until(lambda: new.at_work)
    assert (old.at_work, gone.at_work, same.runs) == (0, 0, 1)
    assert [status.name for status in supervisor.statuses()] == ["same", "other"]


def test_two_of_a_name_never_work_together() -> None:
    release = threading.Event()
    supervisor = Supervisor(stop_seconds=0.05, backoff=fast)
    old, new = Piece("one", lambda stop: void(release.wait())), Piece("one")
    supervisor.apply([spec(old, "a")])
    wait_until(lambda: old.at_work)
    supervisor.apply([spec(new, "b")])
    assert (old.at_work, new.runs) == (1, 0)
    assert supervisor.stop() == ["one"]
    release.set()
    wait_until(lambda: not old.at_work)
    assert new.runs == 0  # it was asked to end before its turn came


def test_waits_double_up_to_a_bound_and_begin_anew() -> None:
    backoff = Backoff(1, 8, chance=lambda: 1.0)
    assert [backoff.after_failure(0) for _ in range(5)] == [1, 2, 4, 8, 8]
    assert backoff.after_failure(9) == 1
    assert Backoff(1, 8, chance=lambda: 0.0).after_failure(0) == 0.5


# --- the lock -----------------------------------------------------------------------


def test_a_second_agent_is_refused_and_told_who_runs(tmp_path: Path) -> None:
    directory = str(tmp_path / "below" / "main")
    assert running_agent(directory) is None
    with agent_lock(directory):
        assert running_agent(directory) == os.getpid()
        with pytest.raises(AgentRunningError, match=f"pid {os.getpid()}"), agent_lock(directory):
            pass
    assert running_agent(directory) is None
    with agent_lock(directory):
        pass


def test_a_killed_agent_leaves_no_lock(tmp_path: Path) -> None:
    directory = str(tmp_path / "main")
    code = (
        "import sys\nfrom pgrecall.agent.lock import agent_lock\n"
        f"with agent_lock({directory!r}):\n print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert running_agent(directory) == other.pid
        other.kill()
    with agent_lock(directory):
        assert running_agent(directory) == os.getpid()


def test_a_place_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir(mode=0o700)
    (tmp_path / "main").chmod(0o750)
    with pytest.raises(AgentPlaceError, match="mode 750"), agent_lock(str(tmp_path / "main")):
        pass


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AgentPlaceError, match="file"), agent_lock(str(tmp_path / "file" / "main")):
        pass


# --- systemd ------------------------------------------------------------------------


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(DEADLINE_SECONDS)
        yield receiver


def environment(path: str, **more: str) -> Mapping[str, str]:
    return {"NOTIFY_SOCKET": path, **more}


def test_systemd_is_told(systemd: socket.socket) -> None:
    notifier = Notifier(environment(systemd.getsockname(), WATCHDOG_USEC="30000000"))
    notifier.ready("archiving main")
    notifier.alive()
    notifier.stopping()
    said = [systemd.recv(1000) for _ in range(3)]
    assert said == [b"READY=1\nSTATUS=archiving main", b"WATCHDOG=1", b"STOPPING=1"]
    assert notifier.watchdog_seconds == 30


def test_an_abstract_socket_is_reached() -> None:
    name = f"pgrecall-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(DEADLINE_SECONDS)
        Notifier(environment(f"@{name}")).alive()
        assert receiver.recv(100) == b"WATCHDOG=1"


def test_without_systemd_nothing_is_said_and_nothing_fails(tmp_path: Path) -> None:
    Notifier({}).alive()
    Notifier(environment(str(tmp_path / "nobody"))).alive()


def test_a_watchdog_meant_for_another_process_is_none() -> None:
    assert Notifier({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}).watchdog_seconds == 0
