"""A store in memory: for tests, and the plainest reading of the contract in base.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from pgrecall.errors import CorruptObjectError, ObjectMissingError
from pgrecall.store.base import SUITE_NONE, Buffer, ObjectInfo
from pgrecall.store.buffered import BufferedWriter
from pgrecall.store.keys import check_key, check_parent, check_prefix


class MemoryStore:
    """Objects in a dictionary; nothing outlives the process.

    ``objects`` maps key to (bytes, stored_at) and is open to tests, which
    damage or age an object through it. ``now`` is its clock.
    """

    suite = SUITE_NONE

    def __init__(
        self,
        name: str = "memory:",
        pack_bytes: int = 1 << 20,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = name
        self.pack_bytes = pack_bytes
        self.reads_whole = False
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self._now = now
        self._lock = threading.Lock()

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        check_key(key)
        content = b"".join(parts)
        with self._lock:
            if key in self.objects:
                return False
            self.objects[key] = (content, self._now())
            return True

    def writer(self, key: str) -> BufferedWriter:
        return BufferedWriter(self.put, check_key(key))

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        content = self._content(key)
        return content[start:] if length is None else content[start : start + length]

    def reader(self, key: str) -> MemoryReader:
        return MemoryReader(f"{self.name}/{key}", self._content(key))

    def head(self, key: str) -> ObjectInfo | None:
        check_key(key)
        with self._lock:
            found = self.objects.get(key)
        return None if found is None else ObjectInfo(key, len(found[0]), found[1])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            found = sorted(
                (key, item) for key, item in self.objects.items() if key.startswith(prefix)
            )
        return iter([ObjectInfo(key, len(content), at) for key, (content, at) in found])

    def children(self, prefix: str) -> Sequence[str]:
        check_parent(prefix)
        names = set()
        with self._lock:
            for key in self.objects:
                if key.startswith(prefix):
                    head, slash, _ = key[len(prefix) :].partition("/")
                    names.add(head + slash)
        return sorted(names)

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            self.objects.pop(key, None)

    def _content(self, key: str) -> bytes:
        check_key(key)
        with self._lock:
            found = self.objects.get(key)
        if found is None:
            raise ObjectMissingError(f"no object {key} in {self.name}")
        return found[0]


class MemoryReader:
    """Random access to bytes in memory."""

    def __init__(self, what: str, content: bytes) -> None:
        self.size = len(content)
        self._what = what
        self._content = content

    def read(self, start: int, length: int) -> Buffer:
        if start + length > self.size:
            raise CorruptObjectError(
                f"{self._what} ends at byte {self.size}, {length} bytes at {start} were expected"
            )
        return self._content[start : start + length]

    def read_into(self, start: int, buffer: bytearray | memoryview) -> None:
        buffer[:] = self.read(start, len(buffer))

    def close(self) -> None:
        self._content = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
