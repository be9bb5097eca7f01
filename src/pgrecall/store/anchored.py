"""Absence is proven only where the store is proven to be ours.

A directory whose mount has gone, a bucket that was deleted or a mistyped prefix
look like a store that holds nothing. Whoever believes that ends a recovery too
early, or archives WAL below a mount point (invariant 13). A repository always
holds one object, the anchor; where it cannot be found, nothing else is absent:
it is unknown. Light.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pgrecall.errors import ObjectMissingError, StoreAbsentError
from pgrecall.store.base import Buffer, ObjectInfo, ObjectReader, ObjectWriter, Store


class AnchoredStore:
    """Passes everything on to ``inner``, and asks for the anchor before it calls anything absent.

    ``guards_writes``: ask before each put too. Right for directories, where it
    costs microseconds and a vanished mount would take the write in silence; an
    object store refuses a put into a missing bucket by itself.

    The anchor itself may be absent and may be put: that is how a repository begins.
    """

    def __init__(self, inner: Store, anchor: str, *, guards_writes: bool) -> None:
        self.name = inner.name
        self.pack_bytes = inner.pack_bytes
        self.reads_whole = inner.reads_whole
        self.suite = inner.suite
        self._inner = inner
        self._anchor = anchor
        self._guards_writes = guards_writes

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        if self._guards_writes:
            self._prove(key)
        return self._inner.put(key, parts)

    def writer(self, key: str) -> ObjectWriter:
        if self._guards_writes:
            self._prove(key)
        return self._inner.writer(key)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        try:
            return self._inner.read(key, start, length)
        except ObjectMissingError:
            self._prove(key)
            raise

    def reader(self, key: str) -> ObjectReader:
        try:
            return self._inner.reader(key)
        except ObjectMissingError:
            self._prove(key)
            raise

    def head(self, key: str) -> ObjectInfo | None:
        found = self._inner.head(key)
        if found is None:
            self._prove(key)
        return found

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        is_empty = True
        for info in self._inner.list(prefix):
            is_empty = False
            yield info
        if is_empty:
            self._prove("")

    def children(self, prefix: str) -> Sequence[str]:
        names = self._inner.children(prefix)
        if not names:
            self._prove("")
        return names

    def delete(self, key: str) -> None:
        self._prove(key)
        self._inner.delete(key)

    def _prove(self, key: str) -> None:
        if key == self._anchor or self._inner.head(self._anchor) is not None:
            return
        raise StoreAbsentError(
            f"{self.name} holds no {self._anchor}: not our repository, or not mounted",
            hint="see that it is mounted and that path, bucket and prefix are right; "
            "a new repository is made by `pgrecall init`",
        )
