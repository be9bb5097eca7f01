"""What is asked of a store: put-if-absent, get (range), head, list by prefix, delete.

Keys are ``/``-separated and relative, made of ASCII letters, digits and
``-_.=%+~``; no part is empty or begins with a dot, and no key is the beginning
of another's path (``a`` beside ``a/b``). Objects are immutable: nothing is
renamed, appended or overwritten.

Every method raises StoreError or a subclass when it cannot tell: an error
never looks like an absent object or an empty list (invariant 13). All methods
may be called from several threads at once. This module stays light: it is
imported for every WAL segment that PostgreSQL archives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self

Buffer = bytes | bytearray | memoryview

SUITE_NONE = "none"
SUITE_AES = "aes-256-gcm"


class ObjectInfo:
    """What a listing or a head tells.

    ``size`` in bytes, ``stored_at`` aware UTC by the store's clock.
    """

    __slots__ = ("_stored", "key", "size")

    def __init__(self, key: str, size: int, stored: datetime | float) -> None:
        """``stored``: aware, or seconds since 1970; a million are listed, few are asked when."""
        self.key = key
        self.size = size
        self._stored = stored

    @property
    def stored_at(self) -> datetime:
        """When it was stored, aware UTC."""
        stored = self._stored
        return stored if isinstance(stored, datetime) else datetime.fromtimestamp(stored, UTC)

    @property
    def stored_seconds(self) -> float:
        """The same in seconds since 1970."""
        stored = self._stored
        return stored.timestamp() if isinstance(stored, datetime) else stored

    def __repr__(self) -> str:
        return f"ObjectInfo({self.key!r}, {self.size})"


class ObjectReader(Protocol):
    """Random access to one object, for as long as it is open."""

    size: int

    def read(self, start: int, length: int) -> Buffer:
        """Exactly ``length`` bytes from ``start``.

        Raises StoreError; CorruptObjectError when the object ends before.
        """
        ...

    def read_into(self, start: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer`` (writable, contiguous) with the bytes from ``start``.

        Raises as ``read``; what the buffer holds after an error is undefined.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class ObjectWriter(Protocol):
    """A new object in the making; invisible until ``commit`` has returned True.

    Leaving the ``with`` block without a commit discards it.
    """

    size: int

    def write(self, data: Buffer) -> None:
        """Add bytes; the buffer may be reused by the caller as soon as this returns."""
        ...

    def commit(self) -> bool:
        """Publish durably if the key is free.

        True: created, durable (file and directory synced, or the put
        acknowledged). False: the key was taken; nothing of it was changed, and
        what holds it is durable. The writer is used up either way.
        """
        ...

    def discard(self) -> None:
        """Drop what was written; may be called at any time and more than once."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Store(Protocol):
    """Dumb bytes by key.

    ``name`` says which store in messages (``/backup``, ``s3://bucket/prefix``),
    without secrets. ``pack_bytes`` is the size of pack to aim at: a writer may
    hold that much in memory. ``reads_whole`` is True where one large read is
    much cheaper than several ranges (object storage). ``suite`` says how what
    is put is encrypted on its way: SUITE_NONE or SUITE_AES.
    """

    name: str
    pack_bytes: int
    reads_whole: bool
    suite: str

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        """Store the parts as one object if the key is free.

        Durable when it returns. True: created. False: the key was taken and
        was not touched (also when an earlier, cut-off try of ours took it:
        callers compare content); what holds the key is durable too, so that
        a caller who finds its own content there may report success.
        """
        ...

    def writer(self, key: str) -> ObjectWriter:
        """Begin a new object that is written in pieces."""
        ...

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """The bytes from ``start``: ``length`` of them or fewer at the end, None for all.

        Raises ObjectMissingError when the key is proven absent.
        """
        ...

    def reader(self, key: str) -> ObjectReader:
        """Open for random access; raises ObjectMissingError when the key is proven absent."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time; None only when the key is proven absent."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key begins with ``prefix`` (any string), in key order by bytes.

        A failure in the middle raises: a listing is whole or an error.
        """
        ...

    def children(self, prefix: str) -> Sequence[str]:
        """Sorted names directly below ``prefix`` (empty, or ending in ``/``).

        ``a/b/c`` and ``a/d`` under ``a/`` give ``["b/", "d"]``: what has more
        below it ends in a slash. Empty when there is nothing. Some object
        stores go on naming a prefix for a while after the last object below
        it was deleted: a name with a slash promises nothing about what is there.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is absent already is success."""
        ...


class NamingStore(Store, Protocol):
    """A store whose ``suite`` is not SUITE_NONE."""

    def name_key(self) -> bytes:
        """32 secret bytes for names that are made of contents; the same for all time."""
        ...
