"""What the workers of a backup did, put together."""

from __future__ import annotations

import os

from pgrecall.backup.copy_source import WorkerResult
from pgrecall.backup.digest_log import DigestIndex, DigestLog
from pgrecall.backup.entries import Copied
from pgrecall.backup.page_check import BadPage
from pgrecall.backup.run_log import RunIndex, RunLog
from pgrecall.model.file_table import DIRECTORY, FileTable
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import PackEntry, Totals

_BLOCKS_SHOWN = 10


class CopyResults:
    """The sum of all workers' results over one file table."""

    def __init__(self, table: FileTable) -> None:
        self.vanished: set[int] = set()
        self.bytes = 0
        self.new_bytes = 0
        self.pages_checked = 0
        self.packs: list[PackEntry] = []
        self._table = table
        self._logs: list[RunLog] = []
        self._digests: list[DigestLog] = []
        self._bad: dict[int, list[BadPage]] = {}
        self._odd_sizes: set[int] = set()

    def add(self, result: WorkerResult) -> None:
        """Add what one worker did."""
        self._logs.append(result.runs)
        self._digests.append(result.digests)
        self.vanished |= result.vanished
        self.bytes += result.bytes
        self.new_bytes += result.new_bytes
        self.pages_checked += result.pages_checked
        self._odd_sizes |= result.odd_sizes
        for index, pages in result.bad.items():
            self._bad.setdefault(index, []).extend(pages)

    def bad_blocks(self) -> dict[int, list[int]]:
        """Blocks that stay bad, by file."""
        return {
            index: [page.block for page in pages]
            for index, pages in self._bad.items()
            if index not in self.vanished
        }

    def findings(self) -> list[Finding]:
        """A finding for each file with corrupt pages or an odd size, named with its blocks."""
        findings = []
        for index in sorted(set(self._bad) - self.vanished):
            pages = sorted(self._bad[index], key=lambda page: page.block)
            shown = ", ".join(f"{page.block} ({page.reason})" for page in pages[:_BLOCKS_SHOWN])
            more = len(pages) - _BLOCKS_SHOWN
            name = os.fsdecode(self._table.path(index))
            findings.append(
                Finding(
                    severity="fail",
                    code="corrupt-pages",
                    subject=name,
                    message=f"{len(pages)} pages of {name} are corrupt: block {shown}"
                    + (f" and {more} more" if more > 0 else ""),
                    hint="the server's own data is damaged: find the table with"
                    " pg_filenode_relation(), and restore from a backup taken before",
                )
            )
        for index in sorted(self._odd_sizes - self.vanished):
            name = os.fsdecode(self._table.path(index))
            findings.append(
                Finding(
                    severity="warn",
                    code="partial-page",
                    subject=name,
                    message=f"{name} does not end on a page boundary; it was being extended",
                )
            )
        return findings

    def copied(self) -> Copied:
        """Where the bytes and digests of each file went."""
        return Copied(
            self._table,
            RunIndex(self._logs, len(self._table)),
            DigestIndex(self._digests, len(self._table)),
            vanished=self.vanished,
            bad_blocks=self.bad_blocks(),
        )

    def totals(self, raw_bytes: int, manifest_bytes: int, wal_segments: int) -> Totals:
        """Counts and bytes of the whole backup; ``raw_bytes`` is the size of all files."""
        directories = self._table.kinds.count(DIRECTORY)
        return Totals(
            files=len(self._table) - directories - len(self.vanished),
            directories=directories,
            raw_bytes=raw_bytes,
            new_bytes=self.new_bytes,
            stored_bytes=sum(pack.stored_bytes for pack in self.packs) + manifest_bytes,
            packs=len(self.packs),
            pages_checked=self.pages_checked,
            pages_failed=sum(map(len, self.bad_blocks().values())),
            files_vanished=len(self.vanished),
            wal_segments=wal_segments,
        )
