"""What a failing page checksum means while the server writes (postgres-facts 17).

A page that is being written may be read half old and half new. Such a page is
read again; if it still fails, its LSN decides: between the backup's start and
the WAL insert position the page was changed during the backup, and its
full-page image in the WAL replaces it on replay. Only what remains is corrupt.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable

from pgrecall.codec.pages import NOT_EMPTY, check_pages
from pgrecall.model.lsn import Lsn

_PAGE_LSN = struct.Struct("<II")
_REREAD_PAUSE_SECONDS = 0.005


class BadPage:
    """A page that stays bad: block within the relation fork, and why it counts as corrupt."""

    __slots__ = ("block", "reason")

    def __init__(self, block: int, reason: str) -> None:
        self.block = block
        self.reason = reason


class PageInspector:
    """Checks pages as they are read; one for all workers."""

    def __init__(
        self, page_bytes: int, start: Lsn, insert_lsn: Callable[[], Lsn], *, rereads: int
    ) -> None:
        """``insert_lsn`` asks the server; it is called under a lock, and only for bad pages."""
        self.page_bytes = page_bytes
        self._start = start
        self._insert_lsn = insert_lsn
        self._rereads = rereads
        self._lock = threading.Lock()

    def inspect(
        self, pages: memoryview, first_block: int, descriptor: int, offset: int
    ) -> list[BadPage]:
        """Check ``pages`` (whole pages, read from ``offset`` of the open file ``descriptor``).

        A page that is good when read again is replaced in ``pages``.
        """
        bad = check_pages(pages, first_block, self.page_bytes)
        found = []
        for index, _ in bad:
            start = index * self.page_bytes
            page = pages[start : start + self.page_bytes]
            verdict = self._examine(page, first_block + index, descriptor, offset + start)
            if verdict is not None:
                found.append(verdict)
        return found

    def _examine(
        self, page: memoryview, block: int, descriptor: int, offset: int
    ) -> BadPage | None:
        kind = 0
        for attempt in range(self._rereads + 1):
            if attempt:
                time.sleep(_REREAD_PAUSE_SECONDS)
            again = os.pread(descriptor, self.page_bytes, offset)
            if len(again) < self.page_bytes:
                return None  # truncated meanwhile: replay does not need it
            page[:] = again
            bad = check_pages(page, block, self.page_bytes)
            if not bad:
                return None
            kind = bad[0][1]
        high, low = _PAGE_LSN.unpack_from(page)
        lsn = Lsn(high << 32 | low)
        if lsn >= self._start:
            with self._lock:
                insert = self._insert_lsn()
            if lsn <= insert:
                return None
            return BadPage(
                block, f"its LSN {lsn} lies beyond the server's insert position {insert}"
            )
        if kind == NOT_EMPTY:
            return BadPage(block, "it is marked as never used, and is not empty")
        return BadPage(block, "its checksum does not match its content")
