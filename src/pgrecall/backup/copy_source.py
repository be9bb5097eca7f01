"""What the workers of a copy work with, and what each of them did."""

from __future__ import annotations

import threading
from typing import NamedTuple

from pgrecall.backup.base import Base
from pgrecall.backup.changes import PageShares
from pgrecall.backup.digest_log import DigestLog
from pgrecall.backup.leftover import Leftover
from pgrecall.backup.page_check import BadPage, PageInspector
from pgrecall.backup.run_log import RunLog
from pgrecall.backup.summaries import Changes
from pgrecall.codec.block_digests import RECORD_BYTES
from pgrecall.model.file_table import FileTable
from pgrecall.repository.block_digests import DigestSink
from pgrecall.system.throttle import Throttle


class PageShape(NamedTuple):
    """Bytes of a page, and how many of them a whole relation file (1 GiB) has."""

    page_bytes: int
    relation_blocks: int


class Comparison(NamedTuple):
    """What an incremental backup goes by.

    ``changes``: what the WAL summaries tell, None where they are not used. ``is_exact``: a page of
    which they do not tell, and whose LSN lies before ``start_lsn``, is byte for byte the base's;
    else only a digest can tell, because hint bits change without WAL.
    """

    base: Base
    changes: Changes | None = None
    start_lsn: int = 0
    is_exact: bool = False


class CopySource:
    """What the workers copy from.

    ``seed``: of the block digests, that of the base where there is a ``comparison``. ``stopped`` is
    set when the copy has failed: workers then end at the next frame. ``throttle``: what is read.
    ``leftover``: what an unfinished backup has stored, or None.
    """

    def __init__(
        self,
        root: bytes,
        table: FileTable,
        inspector: PageInspector | None,
        pages: PageShape,
        *,
        seed: int,
        comparison: Comparison | None = None,
    ) -> None:
        self.throttle = Throttle(0)
        self.leftover: Leftover | None = None
        self.stopped = threading.Event()
        self.seed = seed
        self.comparison = comparison
        self.root = root
        self.table = table
        self.inspector = inspector
        self.page_bytes = pages.page_bytes
        self.relation_blocks = pages.relation_blocks


class WorkerResult:
    """What one worker did: runs, digests, files that were gone, pages checked and those bad.

    ``bytes`` were read, ``new_bytes`` of them went into packs.
    """

    def __init__(self, digests: DigestSink, page_bytes: int) -> None:
        self.runs = RunLog(page_bytes)
        self.digests = DigestLog(digests)
        self.vanished: set[int] = set()
        self.bad: dict[int, list[BadPage]] = {}
        self.odd_sizes: set[int] = set()
        self.pages_checked = 0
        self.bytes = 0
        self.new_bytes = 0


class OpenFile(NamedTuple):
    """A file that is open for reading: its number in the table, its path below PGDATA."""

    descriptor: int
    number: int
    path: bytes


class Kept(NamedTuple):
    """Bytes of a file that go into the backup: behind others in the buffer, or from a leftover."""

    file: int
    offset: int
    length: int
    place: tuple[int, int, int] | None = None


class ChangedPiece:
    """A piece of which some blocks are read; ``offset``: where it begins in the file.

    ``records``: of all its blocks, as the base has them, and ``is_same`` while none was put in
    that differs. ``waiting``: offset and length of what was read and not looked at yet.
    """

    def __init__(
        self, file: OpenFile, offset: int, records: bytearray, shares: PageShares | None
    ) -> None:
        """``shares`` None: the WAL summaries tell of blocks only."""
        self.file = file
        self.offset = offset
        self.records = records
        self.shares = shares
        self.is_same = True
        self.waiting: list[tuple[int, int]] = []
        self.waiting_bytes = 0

    def wait(self, offset: int, length: int) -> None:
        """So many bytes more were read."""
        self.waiting.append((offset, length))
        self.waiting_bytes += length

    def put(self, block: int, found: bytearray) -> None:
        """Take in what blocks have now."""
        first = block * RECORD_BYTES
        self.is_same &= self.records[first : first + len(found)] == found
        self.records[first : first + len(found)] = found
