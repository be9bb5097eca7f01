"""The pusher and the fetcher killed at every point, and stores that fail, refuse, hang and fill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pgrecall
from pgrecall.errors import PgrecallError, StoreFullError
from pgrecall.repository.gaps import read_gaps
from pgrecall.settings import RepositorySettings
from pgrecall.store.base import Store
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.wal import debts as debts_module
from pgrecall.wal import pusher as pusher_module
from tests.support.pusher_scene import PusherScene, at_work, wait_until

SOURCE = str(Path(pgrecall.__file__).parents[1])

#: An agent that pushes ahead while PostgreSQL asks for one file after the other; it prints the
#: name of each for which success was said.
PROGRAM = """
import sys, threading
from pgrecall.errors import PgrecallError
from pgrecall.settings import load_settings
from pgrecall.wal.pusher import Pusher
config, pgdata, count, *names = sys.argv[1:]
settings = load_settings(config, {})
pusher = Pusher(settings, settings.server("main"), {}, pgdata=pgdata)
stop = threading.Event()
thread = threading.Thread(target=pusher.run, args=(stop,), daemon=True)
thread.start()
while pusher.facts()["pushed_total"] + pusher.facts()["failures_total"] < int(count):
    stop.wait(0.01)
for name in names:
    pusher.push("pg_wal/" + name, pgdata)
    print(name, flush=True)
while pusher.facts()["owed_files"] and "wait" in config:
    stop.wait(0.01)
stop.set()
thread.join()
"""


def agent(
    scene: PusherScene, names: list[str], *, fault: str = "", ahead: int = 0, more: str = ""
) -> tuple[int, list[str]]:
    """Run it; the exit status and the names for which it said success."""
    config = scene.path / ("wait.toml" if more else "pgrecall.toml")
    text = (
        f'[servers.main]\ndata_directory = "{scene.pgdata}"\n[agent]\npush_workers = 3\n'
        f'directory = "{scene.path / "agent"}"\n{more}'
    )
    for repository in scene.settings.repositories.values():
        text += (
            f'[repositories.{repository.name}]\nstore = "local"\npath = "{repository.path}"\n'
            f'role = "{repository.role}"\nretries = 0\n'
        )
    config.write_text(text)
    environment = {"PYTHONPATH": SOURCE, "PATH": os.environ["PATH"]}
    if fault:
        environment["PGRECALL_FAULT_KILL"] = fault
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(config), str(scene.pgdata), str(ahead), *names],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return finished.returncode, finished.stdout.split()


def stored(scene: PusherScene, names: list[str]) -> list[bool]:
    return [scene.is_stored(name) for name in names]


@pytest.mark.parametrize(
    "fault",
    [
        *("pusher.checked:1", "pusher.checked:4", "push.put:2", "push.stored:1", "push.stored:3"),
        *("pusher.stored:1", "pusher.stored:3", "pusher.answer:1", "pusher.answer:3"),
        *("wal-object.piece:1", "wal-object.piece:8", "wal-object.commit:1", "wal-object.commit:4"),
    ],
)
def test_killed_anywhere_it_has_lied_about_nothing(tmp_path: Path, fault: str) -> None:
    scene = PusherScene(tmp_path)
    segments = scene.make_ready(6)
    names = list(segments)
    status, answered = agent(scene, names, fault=fault)
    assert status == -signal.SIGKILL
    for name in answered:
        assert scene.fetched(name) == segments[name]
    # No holes: nothing is there without what comes before it.
    assert sorted(stored(scene, names), reverse=True) == stored(scene, names)
    assert agent(scene, names) == (0, names)
    for name in names:
        assert scene.fetched(name) == segments[name]


@pytest.mark.parametrize("fault", ["pusher.owed:1", "pusher.owed:3", "pusher.paid:1"])
def test_killed_while_it_owes_or_pays_it_forgets_no_debt(tmp_path: Path, fault: str) -> None:
    scene = PusherScene(tmp_path, roles=("required", "best-effort"))
    segments = scene.make_ready(4)
    names = list(segments)
    (tmp_path / "two").rename(tmp_path / "away")
    if "owed" in fault:
        status, answered = agent(scene, names, fault=fault)
        assert status == -signal.SIGKILL
        noted = {path.name for path in (scene.state / "owed").rglob("0*") if path.is_file()}
        assert set(answered) <= noted
        assert agent(scene, names) == (0, names)
    else:
        assert agent(scene, names) == (0, names)
    (tmp_path / "away").rename(tmp_path / "two")
    for name in names:
        (scene.status / f"{name}.ready").unlink()
    waiting = "# wait\n"
    if "paid" in fault:
        assert agent(scene, [], fault=fault, more=waiting)[0] == -signal.SIGKILL
    assert agent(scene, [], more=waiting)[0] == 0
    assert all(scene.is_stored(name, "two") for name in names)


def test_killed_after_it_noted_a_gap_it_records_the_gap(tmp_path: Path) -> None:
    scene = PusherScene(tmp_path)
    names = list(scene.make_ready(4))
    (tmp_path / "one").rename(tmp_path / "away")
    drop = "drop_wal_above_bytes = 1\n"
    assert agent(scene, names[:1], fault="pusher.dropped", more=drop) == (-signal.SIGKILL, [])
    (tmp_path / "away").rename(tmp_path / "one")
    # PostgreSQL was told nothing and asks again: the file is archived after all.
    assert agent(scene, names) == (0, names)
    pusher = scene.pusher()
    with at_work(pusher):
        wait_until(lambda: read_gaps(scene.store(), "main", 1), "the gap is recorded")
    assert all(stored(scene, names))


class Stores:
    """Opens one faulty store again and again, over the directory of a repository."""

    def __init__(self, scene: PusherScene, plan: list[Fault]) -> None:
        self.opened = FaultyStore(scene.store(), plan)

    def open(self, settings: RepositorySettings, environment: object, **options: object) -> Store:
        return self.opened


@pytest.mark.parametrize("kind", ["before", "after", "corrupt"])
def test_each_call_of_the_store_fails_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Success is said only for what can be read back; a failure is over when the store is well."""
    scene = PusherScene(tmp_path)
    segments = scene.make_ready(3)
    number, outcomes = 0, set()
    while True:
        number += 1
        fault = Fault(kind, at=number)  # type: ignore[arg-type]
        monkeypatch.setattr("pgrecall.wal.archives.open_store", Stores(scene, [fault]).open)
        pusher = scene.pusher()
        for name in segments:
            try:
                pusher.push(f"pg_wal/{name}", str(scene.pgdata))
            except PgrecallError:
                outcomes.add(False)
            else:
                outcomes.add(True)
                assert (scene.object_path(name)).exists()
        is_over = fault.reached.is_set()
        monkeypatch.undo()
        again = scene.pusher()
        for name in segments:
            again.push(f"pg_wal/{name}", str(scene.pgdata))
        for name, content in segments.items():
            assert scene.fetched(name) == content
            scene.object_path(name).unlink()
        if not is_over:
            break
    assert number > 6
    assert outcomes == {True, False}


def test_a_full_store_stops_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pusher_module, "_LONGEST_PAUSE_SECONDS", 0.2)
    scene = PusherScene(tmp_path)
    names = list(scene.make_ready(5))
    is_full = threading.Event()
    is_full.set()

    class Full:
        def __init__(self, inner: Store) -> None:
            self._inner = inner

        def writer(self, key: str) -> object:
            if is_full.is_set() and names[2] in key:
                raise StoreFullError(f"no space for {key}", hint="free some")
            return self._inner.writer(key)

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

    monkeypatch.setattr(
        "pgrecall.wal.archives.open_store", lambda *given, **more: Full(scene.store())
    )
    pusher = scene.pusher()
    with at_work(pusher):
        wait_until(lambda: int(pusher.facts()["failures_total"] or 0) > 2, "it tries again")
        facts = pusher.facts()
        assert stored(scene, names) == [True, True, False, False, False]
        assert (facts["failure_code"], facts["lag_segments"]) == ("store-full", 3)
        assert facts["oldest_unarchived"] == names[2]
        assert facts["failing_since"] is not None
        is_full.clear()
        wait_until(lambda: all(stored(scene, names)), "the rest is stored")
        wait_until(lambda: pusher.facts()["failing"] is False, "the failure is over")


def test_a_best_effort_store_that_hangs_delays_only_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debts_module, "_FIRST_PAUSE_SECONDS", 60.0)
    scene = PusherScene(tmp_path, roles=("required", "best-effort"))
    names = list(scene.make_ready(4))
    may_go = threading.Event()

    class Hanging:
        def __getattr__(self, name: str) -> object:
            if name == "reads_whole":
                return False
            assert may_go.wait(30)
            raise StoreFullError("it never answered")

    def open_it(settings: RepositorySettings, *given: object, **more: object) -> object:
        return Hanging() if settings.name == "two" else scene.store("one")

    monkeypatch.setattr("pgrecall.wal.archives.open_store", open_it)
    pusher = scene.pusher()
    first = threading.Thread(target=pusher.push, args=(f"pg_wal/{names[0]}", str(scene.pgdata)))
    first.start()
    wait_until(lambda: scene.is_stored(names[0]), "the required one has it")
    may_go.set()
    first.join(30)
    may_go.clear()
    for name in names[1:]:
        assert pusher.push(f"pg_wal/{name}", str(scene.pgdata)).warnings
    assert all(stored(scene, names))
