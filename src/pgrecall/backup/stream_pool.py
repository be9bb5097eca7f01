"""The workers of a streamed backup: units go to whoever is free, digests come back in order."""

from __future__ import annotations

import queue
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from pgrecall.backup.copy_source import WorkerResult
from pgrecall.backup.digest_log import DigestLog
from pgrecall.backup.stream_worker import (
    SliceDigests,
    StreamSource,
    StreamUnit,
    StreamWorker,
)
from pgrecall.backup.units import PIECE_BYTES
from pgrecall.repository.block_digests import DigestSink, DigestStore
from pgrecall.repository.pack_sink import PackFactory, PackSink
from pgrecall.system.faults import reached
from pgrecall.system.held_signals import signals_held
from pgrecall.system.progress import Progress

_SPARE_UNITS = 2


class StreamPool:
    """Runs the workers; used by the thread that reads the stream.

    Memory: (workers + 2) units of 8 MiB, and for each worker a frame and a pack. While all units
    are in use the stream is not read, and the server waits.
    """

    def __init__(
        self,
        source: StreamSource,
        factory: PackFactory,
        digests: DigestStore,
        *,
        workers: int,
        progress: Progress,
    ) -> None:
        self._factory = factory
        self._progress = progress
        self._workers = [StreamWorker(source, PackSink(factory), digests) for _ in range(workers)]
        self._idle: queue.LifoQueue[StreamWorker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._free: queue.LifoQueue[StreamUnit] = queue.LifoQueue()
        for _ in range(workers + _SPARE_UNITS):
            self._free.put(StreamUnit())
        self._under_way: deque[Future[list[SliceDigests]]] = deque()
        self._result = WorkerResult(DigestSink(digests), source.pages.page_bytes)
        self._log: DigestLog = self._result.digests
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="copy")
        self._has_failed = False

    def empty_unit(self) -> StreamUnit:
        """A unit to fill; waits until there is one. Raises what a worker has raised."""
        unit = self._free.get()
        self.collect()
        return unit

    def submit(self, unit: StreamUnit) -> None:
        """Have a unit copied. Raises what a worker has raised."""
        # A thread that is just being started when a signal comes would be unknown to the pool.
        with signals_held():
            self._under_way.append(self._pool.submit(self._copy, unit))
        self.collect()

    def finish(self) -> list[WorkerResult]:
        """Wait for all units; what each worker did, and the digests of all."""
        self.collect(waits=True)
        for worker in self._workers:
            worker.finish()
        self._log.finish()
        return [*(worker.result for worker in self._workers), self._result]

    def close(self) -> None:
        """End the threads; units that are not begun are dropped."""
        self._has_failed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def collect(self, *, waits: bool = False) -> None:
        """Note the digests of units that are done, in the order in which they came.

        Raises what a worker, or the commit of a pack, has raised. ``waits``: for all units.
        """
        self._factory.raise_failure()
        while self._under_way and (waits or self._under_way[0].done()):
            for one in self._under_way.popleft().result():
                if one.offset % PIECE_BYTES == 0:
                    self._log.begin(one.file, one.offset, one.base)
                self._log.add(one.length, one.records, one.crc, is_same=one.is_same)

    def _copy(self, unit: StreamUnit) -> list[SliceDigests]:
        worker = self._idle.get()
        try:
            if self._has_failed:
                return []
            done = worker.copy(unit)
            self._progress.advance(unit.used)
            reached("backup.copy")
        except BaseException:
            self._has_failed = True
            raise
        else:
            return done
        finally:
            self._idle.put(worker)
            unit.clear()
            self._free.put(unit)
