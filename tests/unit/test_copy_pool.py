"""The pool of copy workers, when a signal comes while it is started."""

from __future__ import annotations

import os
import signal
import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pgrecall.backup.copy import CopyPool
from pgrecall.backup.copy_source import CopySource, PageShape
from pgrecall.backup.units import cut_into_units
from pgrecall.errors import InterruptedRunError
from pgrecall.model.file_table import FILE, FileTable
from pgrecall.repository.block_digests import DigestStore
from pgrecall.repository.pack_sink import PackFactory, PackSink
from pgrecall.repository.packs import FRAME_BYTES, PackHeader
from pgrecall.store.memory import MemoryStore
from pgrecall.system.progress import NoProgress
from pgrecall.system.signals import signals_as_errors
from tests.support.backup_scene import our_threads, wait_until

FILES = 4
WORKERS = 3


class Scene:
    """Files of one frame each, and units that last until the copy is told to stop."""

    def __init__(self, root: Path) -> None:
        table = FileTable()
        for number in range(FILES):
            (root / str(number)).write_bytes(os.urandom(FRAME_BYTES))
            table.add(str(number).encode(), FILE, FRAME_BYTES, (0o600, 0, 0, 0))
        self.source = CopySource(os.fsencode(root), table, None, PageShape(8192, 131072), seed=7)
        header = PackHeader(repository_id="r", server="main", backup_id="b-1", number=0)
        store = MemoryStore(pack_bytes=64 << 20)
        self.factory = PackFactory(store, header, codec="none", level=0, committers=1)
        self.digests = DigestStore(store, "main", "b-1", "r")
        self.units = cut_into_units(array("I", table.files()), table.sizes, FRAME_BYTES)
        self.begun = threading.Event()
        self.were_stopped: list[bool] = []

    def run(self) -> None:
        """Copy everything."""
        CopyPool(
            self.source,
            self.factory,
            self.digests,
            workers=WORKERS,
            progress=Lasting(self),
            watch=lambda: None,
        ).run(self.units)


class Lasting(NoProgress):
    """Holds each worker after a unit until it is told to stop, or nobody tells it."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def advance(self, done_bytes: int) -> None:
        """Wait, and note whether it was told."""
        self._scene.begun.set()
        self._scene.were_stopped.append(self._scene.source.stopped.wait(3))


def copying() -> list[str]:
    """The workers that still run; threads that commit belong to the factory."""
    return [name for name in our_threads() if name.startswith("copy")]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.source.stopped.set()
    scene.factory.close()
    wait_until(lambda: our_threads() == [], "the workers have ended")


def test_a_signal_among_the_starts_of_the_threads(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops those that have been started, instead of waiting for the whole copy."""
    real = ThreadPoolExecutor.submit

    def submit(pool: ThreadPoolExecutor, *arguments: Any) -> Future[Any]:
        future = real(pool, *arguments)
        if threading.current_thread() is threading.main_thread():
            assert scene.begun.wait(30)
            signal.raise_signal(signal.SIGTERM)
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    with pytest.raises(InterruptedRunError, match="SIGTERM"), signals_as_errors():
        scene.run()
    assert scene.were_stopped
    assert all(scene.were_stopped)
    assert copying() == []


def test_a_signal_in_the_start_of_a_thread(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that the pool does not know yet would be waited for by nobody."""
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        real(thread)
        if thread.name.startswith("copy"):
            assert scene.begun.wait(30)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(InterruptedRunError, match="SIGTERM"), signals_as_errors():
        scene.run()
    assert copying() == []


def test_a_signal_in_the_start_of_a_thread_that_commits(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last pack is handed over by the main thread: the pool must know what it has started."""
    real = threading.Thread.start
    entered, release = threading.Event(), threading.Event()

    def start(thread: threading.Thread) -> None:
        real(thread)
        if thread.name.startswith("commit"):
            assert entered.wait(30)
            signal.raise_signal(signal.SIGTERM)

    def publish(factory: PackFactory, *arguments: Any) -> None:
        entered.set()
        assert release.wait(30)
        really(factory, *arguments)

    really = PackFactory._publish_one
    monkeypatch.setattr(PackFactory, "_publish_one", publish)
    monkeypatch.setattr(threading.Thread, "start", start)
    sink = PackSink(scene.factory)
    sink.add(b"one frame", [(b"a", 0, 9)])
    try:
        with pytest.raises(InterruptedRunError, match="SIGTERM"), signals_as_errors():
            sink.finish_pack()
        assert len(scene.factory._pool._threads) == 1
    finally:
        release.set()
    scene.factory.close()
    assert our_threads() == []
