"""Push and fetch when processes are killed, stores fail, and two push at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pgrecall
from pgrecall.errors import CorruptObjectError, PgrecallError
from pgrecall.repository.wal_objects import WalObjectReader
from pgrecall.settings import RepositorySettings
from pgrecall.store.base import Store
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.memory import MemoryStore
from pgrecall.wal import archives
from pgrecall.wal.push import ALREADY_STORED, CREATED
from tests.support.wal_scene import Scene, build_segments

SOURCE = str(Path(pgrecall.__file__).parents[1])
PROGRAM = "import sys; from pgrecall.cli.entry import main; sys.exit(main())"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    (tmp_path / "pgrecall.toml").write_text(
        f'[servers.main]\ndata_directory = "{scene.pgdata}"\n'
        f'[repositories.one]\nstore = "local"\npath = "{tmp_path / "one"}"\n'
    )
    return scene


def start(scene: Scene, *words: str, fault: str = "") -> subprocess.Popen[bytes]:
    environment = {"PYTHONPATH": SOURCE, "PATH": os.environ["PATH"]}
    if fault:
        environment["PGRECALL_FAULT_KILL"] = fault
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--config", str(scene.path / "pgrecall.toml"), *words],
        cwd=scene.pgdata,
        env=environment,
    )


@pytest.mark.parametrize(
    "fault",
    [
        *("push.checked", "push.put", "push.stored"),
        *("wal-object.piece", "wal-object.piece:2", "wal-object.piece:3", "wal-object.commit"),
    ],
)
def test_a_push_that_is_killed_is_pushed_again(scene: Scene, fault: str) -> None:
    ((name, content),) = build_segments(1).items()
    scene.write(name, content)
    assert start(scene, "wal", "push", f"pg_wal/{name}", fault=fault).wait(60) == -signal.SIGKILL
    # Nothing, or all of it.
    is_stored = fault == "push.stored"
    assert scene.object_path(name).exists() == is_stored
    assert (scene.fetch(name) is not None) == is_stored
    result = scene.push(scene.pgdata / "pg_wal" / name)
    assert result.outcome == (ALREADY_STORED if is_stored else CREATED)
    assert scene.fetched(name) == content


def test_a_fetch_that_is_killed_leaves_no_segment(scene: Scene) -> None:
    ((name, content),) = build_segments(1).items()
    scene.push_new(name, content)
    words = ("wal", "fetch", name, "pg_wal/RECOVERYXLOG")
    assert start(scene, *words, fault="fetch.written").wait(60) == -signal.SIGKILL
    assert not (scene.pgdata / "pg_wal" / "RECOVERYXLOG").exists()
    assert start(scene, *words).wait(60) == 0
    assert (scene.pgdata / "pg_wal" / "RECOVERYXLOG").read_bytes() == content
    absent = ("wal", "fetch", "0000000100000000000000FF", "pg_wal/RECOVERYXLOG")
    assert start(scene, *absent).wait(60) == 64
    (scene.path / "one").rename(scene.path / "away")
    assert start(scene, *absent).wait(60) not in (0, 1, 64)


def test_two_pushes_at_once(scene: Scene) -> None:
    """Both succeed, one object is there, and it is whole."""
    ((name, content),) = build_segments(1).items()
    scene.write(name, content)
    for _ in range(3):
        racing = [start(scene, "wal", "push", f"pg_wal/{name}") for _ in range(3)]
        assert [process.wait(60) for process in racing] == [0, 0, 0]
        assert scene.fetched(name) == content
        assert [found.name for found in scene.archive().segments(1)] == [name]
        assert list(scene.store().leftovers()) == []
        scene.object_path(name).unlink()


def test_two_pushes_of_other_content_at_once(scene: Scene) -> None:
    ((name, content),) = build_segments(1).items()
    ((_, other),) = build_segments(1, salt=1).items()
    second = scene.make_pgdata("second")
    paths = [scene.write(name, content), scene.write(name, other, second)]
    racing = [start(scene, "wal", "push", str(path)) for path in paths]
    statuses = [process.wait(60) for process in racing]
    assert sorted(statuses) == [0, 32]
    assert scene.fetched(name) == (content if statuses[0] == 0 else other)


class Stores:
    """Opens faulty stores over what is kept, in memory or in a directory."""

    def __init__(self, scene: Scene, *, in_memory: bool) -> None:
        self.inner: Store = scene.store()
        if in_memory:
            memory = MemoryStore()
            for info in scene.store().list(""):
                memory.put(info.key, [scene.store().read(info.key)])
            self.inner = memory
        self.plan: list[Fault] = []
        self.opened = FaultyStore(self.inner)

    def open(self, settings: RepositorySettings, environment: object, **options: object) -> Store:
        self.opened = FaultyStore(self.inner, self.plan)
        return self.opened


def attempt(scene: Scene, path: Path) -> bool:
    try:
        scene.push(path)
    except PgrecallError:
        return False
    return True


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", ["before", "after", "torn", "corrupt"])
@pytest.mark.parametrize("is_stored", [True, False])
def test_each_call_fails_in_turn(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    in_memory: bool,
    kind: str,
    is_stored: bool,
) -> None:
    """Success is never said unless the segment can be read back; an error can be tried again."""
    ((name, content),) = build_segments(1).items()
    path = scene.write(name, content)
    number, outcomes = 0, set()
    while True:
        number += 1
        stores = Stores(scene, in_memory=in_memory)
        monkeypatch.setattr(archives, "open_store", stores.open)
        if is_stored:
            scene.push(path)
        fault = Fault(kind, at=number)  # type: ignore[arg-type]
        stores.plan = [fault]
        is_said = attempt(scene, path)
        outcomes.add(is_said)
        stores.plan = []
        if is_said:
            assert scene.fetched(name) == content
        if not attempt(scene, path):
            # Only where the store has kept half of an object under the name: never taken for ours.
            assert kind == "torn" and in_memory and not is_stored
            with pytest.raises(CorruptObjectError):
                scene.push(path)
        else:
            assert scene.fetched(name) == content
        if not in_memory:
            scene.object_path(name).unlink(missing_ok=True)
        if not fault.reached.is_set():
            break
    assert number > 4
    assert outcomes == {True, False}


@pytest.mark.parametrize("kind", ["before", "after", "corrupt"])
def test_each_call_of_a_fetch_fails_in_turn(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A failure is neither absence nor a wrong segment."""
    ((name, content),) = build_segments(1).items()
    scene.push_new(name, content)
    target = scene.pgdata / "pg_wal" / "RECOVERYXLOG"
    for wanted in (name, "0000000100000000000000FF"):
        number = 0
        while True:
            number += 1
            stores = Stores(scene, in_memory=False)
            fault = Fault(kind, at=number)  # type: ignore[arg-type]
            stores.plan = [fault]
            monkeypatch.setattr(archives, "open_store", stores.open)
            target.unlink(missing_ok=True)
            try:
                result = scene.fetch(wanted)
            except PgrecallError:
                assert not target.exists()
            else:
                assert (result is not None) == (wanted == name)
                assert not target.exists() or target.read_bytes() == content
                assert result is None or target.exists()
            if not fault.reached.is_set():
                break
        assert number > 3
    monkeypatch.undo()
    with WalObjectReader(
        scene.store(), str(scene.object_path(name).relative_to(scene.path / "one")), bytes(32)
    ) as stored:
        assert stored.header.name == name
