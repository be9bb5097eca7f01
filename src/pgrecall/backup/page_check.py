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
        kinds = dict(check_pages(pages, first_block, self.page_bytes))
        for attempt in range(self._rereads + 1):
            if not kinds:
                return []
            if attempt:
                # One pause for all of them: a file that is bad as a whole has 131072.
                time.sleep(_REREAD_PAUSE_SECONDS)
            still = {}
            for index in kinds:
                start = index * self.page_bytes
                again = os.pread(descriptor, self.page_bytes, offset + start)
                if len(again) < self.page_bytes:
                    continue  # truncated meanwhile: replay does not need it
                pages[start : start + self.page_bytes] = again
                for _, kind in check_pages(again, first_block + index, self.page_bytes):
                    still[index] = kind
            kinds = still
        return self._judged(pages, first_block, kinds)

    def judge(self, pages: memoryview, first_block: int) -> list[BadPage]:
        """Check ``pages`` that cannot be read again: a stream, whose server has done that."""
        return self._judged(
            pages, first_block, dict(check_pages(pages, first_block, self.page_bytes))
        )

    def _judged(self, pages: memoryview, first_block: int, kinds: dict[int, int]) -> list[BadPage]:
        found = []
        for index, kind in kinds.items():
            start = index * self.page_bytes
            verdict = self._judge(pages[start : start + 8], first_block + index, kind)
            if verdict is not None:
                found.append(verdict)
        return found

    def _judge(self, page: memoryview, block: int, kind: int) -> BadPage | None:
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
