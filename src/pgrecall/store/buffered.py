"""A writer that holds the object in memory and stores it with one put.

For stores whose put is one request: memory and object storage. Light.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from pgrecall.store.base import Buffer

Put = Callable[[str, Sequence[Buffer]], bool]


class BufferedWriter:
    """Collects up to a pack of bytes; ``commit`` hands them to ``put`` as one part.

    A commit that raised may be called again: the bytes are kept until one
    returns, or until ``discard``.
    """

    def __init__(self, put: Put, key: str) -> None:
        self.size = 0
        self._put = put
        self._key = key
        self._content: bytearray | None = bytearray()

    def write(self, data: Buffer) -> None:
        if self._content is None:
            raise ValueError("the writer was committed or discarded")
        # One growing buffer, not a list of parts: the put needs it contiguous.
        self._content += data
        self.size = len(self._content)

    def commit(self) -> bool:
        if self._content is None:
            raise ValueError("the writer was committed or discarded")
        created = self._put(self._key, [self._content])
        self._content = None
        return created

    def discard(self) -> None:
        self._content = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()
