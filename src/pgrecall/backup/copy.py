"""The copy: units of PGDATA through a pool of workers into packs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from pgrecall.backup.copy_source import CopySource, WorkerResult
from pgrecall.backup.units import Unit
from pgrecall.backup.worker import CopyWorker
from pgrecall.repository.block_digests import DigestStore
from pgrecall.repository.pack_sink import PackFactory, PackSink
from pgrecall.system.faults import reached
from pgrecall.system.held_signals import signals_held
from pgrecall.system.progress import Progress

_WATCH_SECONDS = 1.0


class CopyPool:
    """Runs the workers, and stops all of them as soon as one fails or ``watch`` raises."""

    def __init__(
        self,
        source: CopySource,
        factory: PackFactory,
        digests: DigestStore,
        *,
        workers: int,
        progress: Progress,
        watch: Callable[[], None],
    ) -> None:
        """``watch`` is called every second from the calling thread; it raises to end the copy."""
        self._source = source
        self._factory = factory
        self._digests = digests
        self._workers = workers
        self._progress = progress
        self._watch = watch
        self._lock = threading.Lock()

    def run(self, units: list[Unit]) -> list[WorkerResult]:
        """Copy all units; returns what each worker did. Raises the first failure."""
        queue = iter(units)
        with ThreadPoolExecutor(self._workers, thread_name_prefix="copy") as pool:
            try:
                # A thread that is just being started when a signal comes would be unknown
                # to the pool, and go on copying after the run has ended.
                with signals_held():
                    futures = [pool.submit(self._work, queue) for _ in range(self._workers)]
                self._supervise(futures)
            except BaseException:
                # Inside: leaving the pool waits for its threads, so they must know first.
                self._source.stopped.set()
                raise
        return [future.result() for future in futures]

    def _supervise(self, futures: list[Future[WorkerResult]]) -> None:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_WATCH_SECONDS, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            self._watch()
            self._factory.raise_failure()

    def _work(self, queue: Iterator[Unit]) -> WorkerResult:
        worker = CopyWorker(self._source, PackSink(self._factory), self._digests)
        try:
            while not self._source.stopped.is_set():
                with self._lock:
                    unit = next(queue, None)
                if unit is None:
                    break
                self._progress.advance(worker.copy(unit))
                reached("backup.copy")
            worker.finish()
            return worker.result
        finally:
            worker.close()
