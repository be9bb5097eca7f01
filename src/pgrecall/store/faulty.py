"""A store that fails on command: for tests of what happens then. Deterministic."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar

from pgrecall.errors import StoreError
from pgrecall.store.base import Buffer, ObjectInfo, ObjectReader, ObjectWriter, Store
from pgrecall.store.buffered import BufferedWriter

T = TypeVar("T")

Kind = Literal["before", "after", "torn", "lie", "hang", "corrupt"]


class Fault:
    """One misdeed: at the ``at``-th call (from 1) of ``method``, or of any where that is empty.

    - ``before``: raise ``error``, nothing was done,
    - ``after``: do it, then raise ``error`` (an answer that was lost),
    - ``torn``: store the first half of what is written, then raise ``error``,
    - ``lie``: report success and store nothing (put, commit, delete),
    - ``hang``: wait for ``released``, then go on,
    - ``corrupt``: flip the lowest bit of byte ``byte`` of what is read.

    ``is_lasting``: at every later matching call too, as in an outage. Methods are
    those of Store, and ``write``, ``commit`` of a writer, ``reader.read`` of a reader.
    ``reached`` is set when the fault strikes.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        at: int = 1,
        method: str = "",
        is_lasting: bool = False,
        error: Callable[[], Exception] = lambda: StoreError("a fault was injected"),
        byte: int = 0,
    ) -> None:
        self.kind = kind
        self.at = at
        self.method = method
        self.is_lasting = is_lasting
        self.error = error
        self.byte = byte
        self.reached = threading.Event()
        self.released = threading.Event()

    def strikes(self, method: str, call: int, call_of_method: int) -> bool:
        """Whether this is the call; both numbers count from 1."""
        if self.method and self.method != method:
            return False
        number = call_of_method if self.method else call
        return number == self.at or (self.is_lasting and number > self.at)


class FaultyStore:
    """Passes calls on to ``inner`` unless a fault of ``plan`` strikes.

    ``calls`` lists (method, key) in order, so that a test can run once without
    faults and then let each call fail in turn.
    """

    def __init__(self, inner: Store, plan: Sequence[Fault] = ()) -> None:
        self.name = inner.name
        self.pack_bytes = inner.pack_bytes
        self.reads_whole = inner.reads_whole
        self.suite = inner.suite
        self.calls: list[tuple[str, str]] = []
        self.plan = list(plan)
        self._inner = inner
        self._lock = threading.Lock()

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        return self._store("put", key, parts)

    def writer(self, key: str) -> ObjectWriter:
        writer = self._opened("writer", key, self._inner.writer, lambda lost: lost.discard())
        if isinstance(writer, BufferedWriter):
            return BufferedWriter(lambda key, parts: self._store("commit", key, parts), key)
        return FaultyWriter(self, writer, key)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return self.call("read", key, lambda: self._inner.read(key, start, length))

    def reader(self, key: str) -> ObjectReader:
        reader = self._opened("reader", key, self._inner.reader, lambda lost: lost.close())
        return FaultyReader(self, reader, key)

    def head(self, key: str) -> ObjectInfo | None:
        return self.call("head", key, lambda: self._inner.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = list(self._inner.list(prefix))
        # ``after`` fails in the middle: half the listing has been handed out by then.
        fault = self.next_fault("list", prefix)
        self.before(fault)
        yield from found[: len(found) // 2]
        self.after(fault)
        yield from found[len(found) // 2 :]

    def children(self, prefix: str) -> Sequence[str]:
        return self.call("children", prefix, lambda: self._inner.children(prefix))

    def delete(self, key: str) -> None:
        fault = self.next_fault("delete", key)
        self.before(fault)
        if fault is None or fault.kind != "lie":
            self._inner.delete(key)
        self.after(fault)

    # --- for the writer and the reader of this room ------------------------------

    def call(self, method: str, key: str, action: Callable[[], T]) -> T:
        """Count, and carry out ``action`` as the plan has it."""
        fault = self.next_fault(method, key)
        self.before(fault)
        result = action()
        self.after(fault)
        if fault is not None and fault.kind == "corrupt" and isinstance(result, Buffer):
            return damaged(result, fault.byte)  # type: ignore[return-value]  # bytes for bytes
        return result

    def next_fault(self, method: str, key: str) -> Fault | None:
        """Count a call; the fault that strikes it, if any."""
        with self._lock:
            self.calls.append((method, key))
            of_method = sum(1 for name, _ in self.calls if name == method)
            found = [f for f in self.plan if f.strikes(method, len(self.calls), of_method)]
        if not found:
            return None
        found[0].reached.set()
        return found[0]

    def before(self, fault: Fault | None) -> None:
        """What a fault does before the call takes effect."""
        if fault is not None and fault.kind == "before":
            raise fault.error()
        if fault is not None and fault.kind == "hang":
            fault.released.wait()

    def after(self, fault: Fault | None) -> None:
        """What a fault does once the call has taken effect."""
        if fault is not None and fault.kind in {"after", "torn"}:
            raise fault.error()

    def _opened(
        self, method: str, key: str, action: Callable[[str], T], drop: Callable[[T], None]
    ) -> T:
        """What ``action`` opens; where its answer is lost, nobody but us can drop it."""
        fault = self.next_fault(method, key)
        self.before(fault)
        opened = action(key)
        try:
            self.after(fault)
        except BaseException:
            drop(opened)
            raise
        return opened

    def _store(self, method: str, key: str, parts: Sequence[Buffer]) -> bool:
        fault = self.next_fault(method, key)
        self.before(fault)
        if fault is not None and fault.kind == "lie":
            return True
        if fault is not None and fault.kind == "torn":
            content = b"".join(parts)
            parts = [content[: len(content) // 2]]
        created = self._inner.put(key, parts)
        self.after(fault)
        return created


class FaultyWriter:
    """A streaming writer whose writes and commit are counted, and fail, with its store's."""

    def __init__(self, store: FaultyStore, inner: ObjectWriter, key: str) -> None:
        self.size = inner.size
        self._store = store
        self._inner = inner
        self._key = key

    def write(self, data: Buffer) -> None:
        fault = self._store.next_fault("write", self._key)
        self._store.before(fault)
        if fault is not None and fault.kind == "torn":
            data = memoryview(data)[: len(data) // 2]
        self._inner.write(data)
        self.size = self._inner.size
        self._store.after(fault)

    def commit(self) -> bool:
        fault = self._store.next_fault("commit", self._key)
        self._store.before(fault)
        if fault is not None and fault.kind == "lie":
            self._inner.discard()
            return True
        created = self._inner.commit()
        self._store.after(fault)
        return created

    def discard(self) -> None:
        self._inner.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()


class FaultyReader:
    """A reader whose reads are counted, and fail, with its store's, as ``reader.read``."""

    def __init__(self, store: FaultyStore, inner: ObjectReader, key: str) -> None:
        self.size = inner.size
        self._store = store
        self._inner = inner
        self._key = key

    def read(self, start: int, length: int) -> Buffer:
        return self._store.call("reader.read", self._key, lambda: self._inner.read(start, length))

    def read_into(self, start: int, buffer: bytearray | memoryview) -> None:
        buffer[:] = self.read(start, len(buffer))

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


def damaged(content: Buffer, byte: int) -> bytes:
    """``content`` with the lowest bit of one byte flipped (the last one where it is shorter)."""
    changed = bytearray(content)
    if changed:
        changed[min(byte, len(changed) - 1)] ^= 1
    return bytes(changed)
