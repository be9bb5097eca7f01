"""Try again what may succeed later: bounded, with exponential back-off and full jitter.

Light: imported for every WAL segment that PostgreSQL archives.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

from pgrecall.errors import ObjectMissingError, StoreError
from pgrecall.store.base import Buffer, ObjectInfo, ObjectReader, ObjectWriter, Store
from pgrecall.store.buffered import BufferedWriter
from pgrecall.store.keys import check_key

T = TypeVar("T")

FIRST_DELAY_SECONDS = 0.2
MAX_DELAY_SECONDS = 10.0


def _random_fraction() -> float:
    # The module random takes longer to import than a local put.
    return int.from_bytes(os.urandom(4), "big") / (1 << 32)


class Backoff:
    """When to try again: at most ``retries`` times, and not beyond ``total_seconds`` in all.

    The wait before try n is a random part of ``FIRST_DELAY_SECONDS * 2**n``,
    at most ``MAX_DELAY_SECONDS`` ("full jitter": many clients that failed
    together do not come back together). ``clock`` in seconds, ``sleep`` and
    ``fraction`` (0 <= x < 1) are for tests.
    """

    def __init__(
        self,
        *,
        retries: int,
        total_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        fraction: Callable[[], float] = _random_fraction,
    ) -> None:
        self.retries = retries
        self.total_seconds = total_seconds
        self.clock = clock
        self._sleep = sleep
        self._fraction = fraction

    def wait(self, failures: int, started: float) -> bool:
        """Wait after the ``failures``-th failure; False, at once, when it is time to give up.

        ``started``: the clock when the first try began.
        """
        if failures > self.retries:
            return False
        ceiling = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** (failures - 1))
        delay = ceiling * self._fraction()
        if self.clock() + delay - started > self.total_seconds:
            return False
        self._sleep(delay)
        return True


class RetryStore:
    """Tries operations of ``inner`` again after a StoreError that is ``retryable``.

    A put that failed may have taken effect: when a later try finds the key
    taken, the stored content is compared with ours, and our own success is
    reported as such. A writer whose bytes are held in memory is tried again
    in the same way; a streaming one (directories) is not, its caller begins anew.
    """

    def __init__(self, inner: Store, backoff: Backoff) -> None:
        self.name = inner.name
        self.pack_bytes = inner.pack_bytes
        self.reads_whole = inner.reads_whole
        self.suite = inner.suite
        self._inner = inner
        self._backoff = backoff

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        failed_before = False

        def attempt() -> bool:
            nonlocal failed_before
            try:
                created = self._inner.put(key, parts)
            except StoreError:
                failed_before = True
                raise
            return created or (failed_before and self._holds(key, parts))

        return self._repeat(attempt)

    def writer(self, key: str) -> ObjectWriter:
        check_key(key)
        writer = self._repeat(lambda: self._inner.writer(key))
        return BufferedWriter(self.put, key) if isinstance(writer, BufferedWriter) else writer

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return self._repeat(lambda: self._inner.read(key, start, length))

    def reader(self, key: str) -> ObjectReader:
        return RetryReader(self._repeat(lambda: self._inner.reader(key)), self._repeat)

    def head(self, key: str) -> ObjectInfo | None:
        return self._repeat(lambda: self._inner.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        last = ""
        failures = 0
        started = self._backoff.clock()
        is_whole = False
        while not is_whole:
            try:
                for info in self._inner.list(prefix):
                    # Listings are in key order: after a failure, go on where it stopped.
                    if info.key > last:
                        yield info
                        last = info.key
                        failures = 0
                is_whole = True
            except StoreError as error:
                started = started if failures else self._backoff.clock()
                failures += 1
                if not error.retryable or not self._backoff.wait(failures, started):
                    raise

    def children(self, prefix: str) -> Sequence[str]:
        return self._repeat(lambda: self._inner.children(prefix))

    def delete(self, key: str) -> None:
        self._repeat(lambda: self._inner.delete(key))

    def _holds(self, key: str, parts: Sequence[Buffer]) -> bool:
        try:
            return self._inner.read(key) == b"".join(parts)
        except ObjectMissingError as error:
            raise StoreError(f"{key} in {self.name} was taken and then gone") from error

    def _repeat(self, attempt: Callable[[], T]) -> T:
        started = self._backoff.clock()
        failures = 0
        while True:
            try:
                return attempt()
            except StoreError as error:
                failures += 1
                if not error.retryable or not self._backoff.wait(failures, started):
                    if failures > 1:
                        seconds = self._backoff.clock() - started
                        error.message += f" (tried {failures} times in {seconds:.1f} s)"
                    raise


class RetryReader:
    """Tries reads of an open object again."""

    def __init__(
        self, inner: ObjectReader, repeat: Callable[[Callable[[], Buffer | None]], Buffer | None]
    ) -> None:
        self.size = inner.size
        self._inner = inner
        self._repeat = repeat

    def read(self, start: int, length: int) -> Buffer:
        content = self._repeat(lambda: self._inner.read(start, length))
        assert content is not None
        return content

    def read_into(self, start: int, buffer: bytearray | memoryview) -> None:
        self._repeat(lambda: self._inner.read_into(start, buffer))

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
