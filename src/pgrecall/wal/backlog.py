"""How far archiving is behind, how fast that changes, and what went wrong last. Thread-safe."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pgrecall.errors import PgrecallError, StoreError
from pgrecall.model.wal_files import SEGMENT, WalFile
from pgrecall.repository.records import format_time

_WINDOW_SECONDS = 60.0

Fact = str | int | float | bool | None


class _Failure:
    __slots__ = ("count", "error", "name", "seen_at", "since")

    def __init__(self, name: str, error: PgrecallError) -> None:
        self.name = name
        self.error = error
        self.count = 1
        self.since = datetime.now(UTC)
        self.seen_at = time.monotonic()


class Backlog:
    """What waits in one pg_wal."""

    def __init__(self, pgdata: str) -> None:
        self._pgdata = pgdata
        self._lock = threading.Lock()
        # Each file with the monotonic clock when it was first seen to wait.
        self._waiting: dict[str, float] = {}
        self._segment_bytes = 0
        self._pushed = 0
        self._pushed_bytes = 0
        self._failure: _Failure | None = None
        self._failures = 0
        # (clock, bytes of ready segments, highest position seen) of the last minute.
        self._samples: deque[tuple[float, int, int]] = deque()

    @property
    def segments(self) -> int:
        """How many ready segments are not durable yet."""
        return len(self._waiting)

    @property
    def bytes(self) -> int:
        """How much WAL they hold."""
        return len(self._waiting) * self._segment_bytes

    def look(self, waiting: Sequence[str], ready: Sequence[str], segment_bytes: int) -> None:
        """Take note of what waits, of all that PostgreSQL still calls ready, and of the time."""
        files = {name for name in waiting if WalFile(name).kind == SEGMENT}
        kept = [file for file in map(WalFile, ready) if file.kind == SEGMENT]
        highest = max((file.start(segment_bytes) + segment_bytes for file in kept), default=0)
        with self._lock:
            now = time.monotonic()
            self._waiting = {name: self._waiting.get(name, now) for name in files}
            self._segment_bytes = segment_bytes
            if self._samples:
                highest = max(highest, self._samples[-1][2])
            self._samples.append((now, len(kept) * segment_bytes, highest))
            while now - self._samples[0][0] > _WINDOW_SECONDS:
                self._samples.popleft()

    def stored(self, name: str, raw_bytes: int) -> None:
        """A file is durable in every required repository; whatever failed is over."""
        with self._lock:
            self._waiting.pop(name, None)
            self._pushed += 1
            self._pushed_bytes += raw_bytes
            self._failure = None

    def failed(self, name: str, error: PgrecallError) -> None:
        """A file could not be stored."""
        with self._lock:
            self._failures += 1
            known = self._failure
            if known is None:
                self._failure = _Failure(name, error)
            else:
                known.name, known.error = name, error
                known.count += 1
                known.seen_at = time.monotonic()

    def store_failure(self, within_seconds: float) -> StoreError | None:
        """The failure of a store that was seen so lately, if it is not over."""
        with self._lock:
            failure = self._failure
            if failure is None or time.monotonic() - failure.seen_at > within_seconds:
                return None
            return failure.error if isinstance(failure.error, StoreError) else None

    def facts(self) -> Mapping[str, Fact]:
        """Names as documented in docs/pushing.md; sizes in bytes, times in seconds."""
        with self._lock:
            oldest, failure = min(self._waiting, default=""), self._failure
            seen_at = self._waiting.get(oldest, 0.0)
            growth, rate = self._rates()
            facts: dict[str, Fact] = {
                # Before the first look nothing is known, which is not "nothing waits".
                "lag_segments": self.segments if self._samples else None,
                "lag_bytes": self.bytes if self._samples else None,
                "oldest_unarchived": oldest or None,
                "pushed_total": self._pushed,
                "pushed_bytes_total": self._pushed_bytes,
                "failures_total": self._failures,
                "failing": failure is not None,
                "failure_code": failure.error.code if failure else None,
                "failure_message": failure.error.message if failure else None,
                "failure_file": (failure.name or None) if failure else None,
                "failing_since": format_time(failure.since) if failure else None,
            }
        free = _free_bytes(f"{self._pgdata}/pg_wal")
        is_filling = free is not None and growth > 0
        facts["lag_seconds"] = self._age_of(oldest, seen_at) if self._samples else None
        facts["wal_bytes_per_second"] = round(rate, 1)
        facts["pg_wal_free_bytes"] = free
        facts["pg_wal_full_in_seconds"] = round(free / growth, 1) if is_filling and free else None
        return facts

    def _rates(self) -> tuple[float, float]:
        """Growth of what is ready, and of WAL as a whole, in bytes a second over a minute."""
        if len(self._samples) < 2:
            return 0.0, 0.0
        first, last = self._samples[0], self._samples[-1]
        seconds = last[0] - first[0]
        if seconds <= 0:
            return 0.0, 0.0
        written = last[2] - first[2] if first[2] else 0
        return (last[1] - first[1]) / seconds, written / seconds

    def _age_of(self, name: str, seen_at: float) -> float:
        """How long the oldest file has been ready; 0 when none waits.

        By its time, and not less than since it was first seen: after the clock was
        set back, the time of the file lies in the future.
        """
        if not name:
            return 0.0
        try:
            found = os.stat(f"{self._pgdata}/pg_wal/archive_status/{name}.ready")
        except OSError:
            return 0.0  # archived since we looked
        return round(max(time.monotonic() - seen_at, time.time() - found.st_mtime), 3)


def _free_bytes(directory: str) -> int | None:
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
