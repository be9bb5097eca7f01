"""The backup that an incremental one goes on from: what of it can be told from a file's path."""

from __future__ import annotations

import struct
import threading
from array import array
from collections.abc import Iterator

from pgrecall.backup.units import PIECE_BYTES
from pgrecall.codec.block_digests import KIND, Records, block_count
from pgrecall.errors import CorruptObjectError, ObjectMissingError
from pgrecall.model.file_table import FILE, FileTable
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import Completion, DigestsEntry, DigestSpan, FileEntry, PackEntry
from pgrecall.repository.block_digests import DigestReader
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.manifests import ManifestReader

_SPAN = struct.Struct("<IIII")
_ABSENT = -1


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
        self._lock = threading.Lock()
        self._damaged: set[str] = set()

    def match(self, table: FileTable) -> None:
        """Find every file of ``table`` (as a scan made it) in the manifest, by path."""
        self._sizes = array("q", [_ABSENT]) * len(table)
        self._first = array("Q", bytes(8)) * len(table)
        self._spans = bytearray()
        self._spoilt = set()
        for index, entry in self.matched(table):
            self._sizes[index] = entry.size
            self._first[index] = len(self._spans) // _SPAN.size
            for span in entry.digests:
                self._spans += _SPAN.pack(span.source, span.first, span.count, span.crc32c)
            if not entry.digests and entry.size:
                self._sizes[index] = _ABSENT
            if entry.bad_blocks:
                self._spoilt.add(index)

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
        """Whether the file had corrupt pages: it must be read, to see whether it still has."""
        return file in self._spoilt

    def span(self, file: int, offset: int) -> tuple[DigestSpan, int] | None:
        """The digests of the piece at ``offset``, a multiple of PIECE_BYTES, and its length.

        None where the base has none. Nothing is read.
        """
        if not self.has(file) or offset >= self._sizes[file]:
            return None
        number = self._first[file] + offset // PIECE_BYTES
        span = DigestSpan(*_SPAN.unpack_from(self._spans, number * _SPAN.size))
        length = min(PIECE_BYTES, self._sizes[file] - offset)
        return (span, length) if span.count == block_count(length) else None

    def piece(self, file: int, offset: int) -> BasePiece | None:
        """The same, with the records; None also when they are damaged (see ``findings``).

        Raises StoreError.
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

    def _files(self) -> Iterator[FileEntry]:
        # WAL that came with a backup is listed behind everything else, and belongs to it alone.
        return (
            entry
            for entry in self.manifest.files()
            if entry.kind == "f" and not entry.path.startswith("pg_wal/")
        )


def _owned_pack(entry: PackEntry, backup_id: str) -> PackEntry:
    owner = entry.owner or backup_id
    return PackEntry(entry.number, entry.stored_bytes, entry.footer_digest, owner)


def _owned_digests(entry: DigestsEntry, backup_id: str) -> DigestsEntry:
    owner = entry.owner or backup_id
    return DigestsEntry(entry.number, entry.stored_bytes, entry.digest, entry.records, owner)
