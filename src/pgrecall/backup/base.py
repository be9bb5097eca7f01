"""The backup that an incremental one goes on from: what of it can be told from a file's path.

A pack stays whole as long as any backup refers to it. So what lies in packs of which little is
needed any more, of backups that have expired, is stored afresh: the base then says of those
blocks that they have changed. Nothing is deleted or written over for that; the old packs go when
the older backups that refer to them have expired.
"""

from __future__ import annotations

import struct
import threading
from array import array
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator

import numpy as np

from pgrecall.backup.units import PIECE_BYTES
from pgrecall.codec.block_digests import BLOCK_BYTES, KIND, RECORD_BYTES, Records, block_count
from pgrecall.errors import CorruptObjectError, ObjectMissingError
from pgrecall.model.file_table import FILE, FileTable
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import (
    Completion,
    DigestsEntry,
    DigestSpan,
    FileEntry,
    PackEntry,
)
from pgrecall.repository.block_digests import DigestReader
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.manifests import ManifestReader
from pgrecall.repository.overlay import overlap, visible

_SPAN = struct.Struct("<IIII")
_ABSENT = -1
# Storing afresh what a pack holds must take no more than this share of it.
_AFRESH_SHARE = 0.2
_DIGEST_BYTES = 16


class BasePiece:
    """The digests of a piece (64 MiB) of a file as the base has it, or of a whole smaller file.

    ``length`` in bytes; ``span`` is the base's own.
    """

    __slots__ = ("length", "records", "span")

    def __init__(self, span: DigestSpan, length: int, records: Records) -> None:
        self.span = span
        self.length = length
        self.records = records


class Base:
    """A complete backup of the same system, its files found by their index in a table.

    A million files take about 40 MB.
    """

    def __init__(self, catalog: Catalog, completion: Completion) -> None:
        """Open its manifest; raises StoreError, CorruptObjectError, ObjectMissingError."""
        self.completion = completion
        self.manifest: ManifestReader = catalog.manifest(completion)
        kind, _, seed = self.manifest.root.block_digest.partition(":")
        self.has_digests = kind == KIND
        self.seed = int(seed, 16) if self.has_digests else 0
        backup_id = completion.backup_id
        self.packs = [_owned_pack(entry, backup_id) for entry in self.manifest.packs()]
        self.digests = [_owned_digests(entry, backup_id) for entry in self.manifest.digests()]
        self._reader = DigestReader(catalog.store, catalog.server, backup_id, self.digests)
        self._sizes = array("q")
        self._first = array("Q")
        self._spans = bytearray()
        self._spoilt: set[int] = set()
        self._sparse: set[int] = set()
        self._afresh: dict[int, list[tuple[int, int]]] = {}
        self._lock = threading.Lock()
        self._damaged: set[str] = set()

    def store_afresh(self, gone: Collection[str]) -> tuple[int, int]:
        """From the next ``match`` on, have what little is needed of packs of ``gone`` stored again.

        ``gone``: ids of backups that have expired. How many packs that are, and at most how many
        bytes are stored for it. Reads the manifest if any such pack is referred to.
        """
        held = {
            number: pack.stored_bytes
            for number, pack in enumerate(self.packs)
            if pack.owner in gone
        }
        if not held:
            return 0, 0
        costs: Counter[int] = Counter()
        for entry in self._files():
            for pack, begin, end in self._places(entry, held):
                costs[pack] += end - begin
        # Raw bytes against stored ones: stored, they are fewer still.
        self._sparse = {
            number for number, cost in costs.items() if cost <= held[number] * _AFRESH_SHARE
        }
        return len(self._sparse), sum(costs[number] for number in self._sparse)

    def match(self, table: FileTable) -> None:
        """Find every file of ``table`` (as a scan made it) in the manifest, by path."""
        self._sizes = array("q", [_ABSENT]) * len(table)
        self._first = array("Q", bytes(8)) * len(table)
        self._spans = bytearray()
        self._spoilt = set()
        self._afresh = {}
        for index, entry in self.matched(table):
            self._sizes[index] = entry.size
            self._first[index] = len(self._spans) // _SPAN.size
            for span in entry.digests:
                self._spans += _SPAN.pack(span.source, span.first, span.count, span.crc32c)
            if not entry.digests and entry.size:
                self._sizes[index] = _ABSENT
            if entry.bad_blocks:
                self._spoilt.add(index)
            afresh = self._sparse and [place[1:] for place in self._places(entry, self._sparse)]
            if afresh:
                self._spoilt.add(index)
                self._afresh[index] = afresh

    def all_files(self) -> FileTable:
        """A table of all files that the base has, matched: what is said of an index is of it."""
        table = FileTable()
        for entry in self._files():
            table.add(entry.path_bytes(), FILE, entry.size, (entry.mode, 0, 0, entry.modified_at))
        self.match(table)
        return table

    def matched(self, table: FileTable) -> Iterator[tuple[int, FileEntry]]:
        """Index and entry of each file that both have. Both are in the order of a walk."""
        entries = self._files()
        entry = next(entries, None)
        for index in table.files():
            parts = table.path(index).split(b"/")
            while entry is not None and entry.path_bytes().split(b"/") < parts:
                entry = next(entries, None)
            if entry is None:
                return
            if entry.path_bytes().split(b"/") == parts:
                yield index, entry

    def has(self, file: int) -> bool:
        """Whether the base has the file at this index of the table, with digests."""
        return file < len(self._sizes) and self._sizes[file] != _ABSENT

    def is_spoilt(self, file: int) -> bool:
        """Whether the file must be read, whatever is known of changes.

        It had corrupt pages, and may have them no more; or some of it is stored afresh.
        """
        return file in self._spoilt

    def span(self, file: int, offset: int) -> tuple[DigestSpan, int] | None:
        """The digests of the piece at ``offset``, a multiple of PIECE_BYTES, and its length.

        None where the base has none. Nothing is read. What is stored afresh is in it, too.
        """
        if not self.has(file) or offset >= self._sizes[file]:
            return None
        number = self._first[file] + offset // PIECE_BYTES
        span = DigestSpan(*_SPAN.unpack_from(self._spans, number * _SPAN.size))
        length = min(PIECE_BYTES, self._sizes[file] - offset)
        return (span, length) if span.count == block_count(length) else None

    def piece(self, file: int, offset: int) -> BasePiece | None:
        """The same, with the records; None also when they are damaged (see ``findings``).

        Those of blocks that are to be stored afresh equal nothing. Raises StoreError.
        """
        known = self.span(file, offset)
        if known is None:
            return None
        span, length = known
        try:
            records = self._reader.span(span.source, span.first, span.count)
        except (CorruptObjectError, ObjectMissingError) as error:
            with self._lock:
                self._damaged.add(error.message)
            return None
        if file in self._afresh:
            records = unequal(records, self._afresh[file], offset, length)
        return BasePiece(span, length, records)

    def findings(self) -> list[Finding]:
        """What was noticed on the way."""
        return [
            Finding(
                severity="warn",
                code="digests-damaged",
                subject=self.completion.backup_id,
                message=f"{said}: the blocks that it tells of were stored anew",
                hint="'pgrecall verify' shows what else is damaged in the repository",
            )
            for said in sorted(self._damaged)
        ]

    def _places(self, entry: FileEntry, packs: Container[int]) -> Iterator[tuple[int, int, int]]:
        """What of a file is seen in these packs: the pack, from and to which byte, whole blocks."""
        runs = entry.runs
        if not any(run.pack in packs for run in runs):
            return
        found: Iterable[tuple[int, int, int]]
        if overlap(runs, entry.size):
            shown = visible(runs, entry.size, self.manifest.root.server.block_bytes)
            found = zip(shown.run.tolist(), shown.file_offset.tolist(), shown.length.tolist(),
                        strict=True)  # fmt: skip
        else:
            found = ((number, run.file_offset, run.length) for number, run in enumerate(runs))
        for number, offset, length in found:
            if runs[number].pack in packs:
                end = offset + length
                whole = end + -end % BLOCK_BYTES
                yield runs[number].pack, offset - offset % BLOCK_BYTES, min(entry.size, whole)

    def _files(self) -> Iterator[FileEntry]:
        # WAL that came with a backup is listed behind everything else, and belongs to it alone.
        return (
            entry
            for entry in self.manifest.files()
            if entry.kind == "f" and not entry.path.startswith("pg_wal/")
        )


def unequal(records: Records, places: list[tuple[int, int]], offset: int, length: int) -> Records:
    """A copy, with other digests for the blocks of the piece at ``offset`` that lie in places."""
    chosen = np.zeros(len(records), bool)
    for begin, end in places:
        first = max(0, begin - offset) // BLOCK_BYTES
        behind = block_count(max(0, min(end - offset, length)))
        chosen[first:behind] = True
    changed = records.copy()
    octets = changed.view(np.uint8).reshape(len(changed), RECORD_BYTES)
    octets[chosen, :_DIGEST_BYTES] ^= 0xFF
    return changed


def _owned_pack(entry: PackEntry, backup_id: str) -> PackEntry:
    owner = entry.owner or backup_id
    return PackEntry(entry.number, entry.stored_bytes, entry.footer_digest, owner)


def _owned_digests(entry: DigestsEntry, backup_id: str) -> DigestsEntry:
    owner = entry.owner or backup_id
    return DigestsEntry(entry.number, entry.stored_bytes, entry.digest, entry.records, owner)
