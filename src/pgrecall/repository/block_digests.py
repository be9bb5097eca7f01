"""Objects of block digests: written by the workers of a backup, read by whoever compares.

An object is a document (docs/format.md) of kind ``block-digests`` whose body is
records of codec.block_digests, of many files one behind the other; the
manifest says which are whose. Later backups refer to them as they do to packs.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from pgrecall.codec.block_digests import RECORD_BYTES, Records, as_records
from pgrecall.codec.digests import stored_digest
from pgrecall.errors import CorruptObjectError
from pgrecall.model.manifest import DigestsEntry
from pgrecall.repository import layout
from pgrecall.repository.documents import decode_document, encode_document
from pgrecall.repository.manifests import put_or_find
from pgrecall.store.base import Store

KIND = "block-digests"
OBJECT_RECORDS = 1 << 16
"""Records in an object that is full: 1.25 MiB, the blocks of 4 GiB."""

# Digests do not compress: the level that tries least.
_LEVEL = 1
_KEPT_OBJECTS = 16


class DigestStore:
    """Numbers and stores the digest objects of one backup; shared by all workers."""

    def __init__(self, store: Store, server: str, backup_id: str, repository_id: str) -> None:
        self._store = store
        self._server = server
        self._backup_id = backup_id
        self._repository_id = repository_id
        self._lock = threading.Lock()
        self._count = 0
        self._entries: dict[int, DigestsEntry] = {}

    def reserve(self) -> int:
        """The number of the next object."""
        with self._lock:
            self._count += 1
            return self._count - 1

    def put(self, number: int, records: bytearray) -> None:
        """Store an object under a number that was reserved; durable when it returns."""
        data = encode_document(KIND, self._repository_id, records, _LEVEL)
        key = layout.digests_key(self._server, self._backup_id, number)
        put_or_find(self._store, key, data)
        entry = DigestsEntry(
            number, len(data), stored_digest(data).hex(), len(records) // RECORD_BYTES
        )
        with self._lock:
            self._entries[number] = entry

    def entries(self) -> list[DigestsEntry]:
        """What was stored, by number: every number that was reserved, once all workers are done."""
        with self._lock:
            return [self._entries[number] for number in sorted(self._entries)]

    @property
    def stored_bytes(self) -> int:
        """Bytes of everything stored so far."""
        return sum(entry.stored_bytes for entry in self.entries())

    @property
    def created_keys(self) -> tuple[str, ...]:
        """Keys of what was stored so far."""
        with self._lock:
            numbers = sorted(self._entries)
        return tuple(layout.digests_key(self._server, self._backup_id, one) for one in numbers)


class DigestSink:
    """One worker's way into digest objects; for one thread."""

    def __init__(self, store: DigestStore) -> None:
        self._store = store
        self._number = -1
        self._records = bytearray()

    def add(self, records: bytes | bytearray | memoryview) -> tuple[int, int]:
        """Add the records of blocks that follow each other; returns (object number, first)."""
        if self._number < 0:
            self._number = self._store.reserve()
        first = len(self._records) // RECORD_BYTES
        self._records += records
        place = self._number, first
        if len(self._records) >= OBJECT_RECORDS * RECORD_BYTES:
            self.finish()
        return place

    def finish(self) -> None:
        """Store what is there, if anything is."""
        number, records = self._number, self._records
        self._number, self._records = -1, bytearray()
        if number >= 0:
            self._store.put(number, records)


class DigestReader:
    """Reads the digests of one backup's files; a few objects are kept. From any thread."""

    def __init__(
        self, store: Store, server: str, backup_id: str, objects: Sequence[DigestsEntry]
    ) -> None:
        """``objects``: the manifest's list, in its order."""
        self._store = store
        self._server = server
        self._backup_id = backup_id
        self.objects = objects
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Records] = OrderedDict()

    def key(self, index: int) -> str:
        """The key of the object at ``index`` of the list."""
        entry = self.objects[index]
        return layout.digests_key(self._server, entry.owner or self._backup_id, entry.number)

    def span(self, source: int, first: int, count: int) -> Records:
        """The records of a DigestSpan.

        Raises CorruptObjectError (damaged, or a span that leads out of it),
        ObjectMissingError and StoreError.
        """
        if not 0 <= source < len(self.objects):
            raise CorruptObjectError(f"backup {self._backup_id} has no digest object {source}")
        records = self._object(source)
        if first + count > len(records):
            raise CorruptObjectError(f"{self.key(source)} ends before a span that refers to it")
        return records[first : first + count]

    def _object(self, index: int) -> Records:
        with self._lock:
            known = self._kept.get(index)
            if known is not None:
                self._kept.move_to_end(index)
                return known
        records = self.read(index)
        with self._lock:
            self._kept[index] = records
            if len(self._kept) > _KEPT_OBJECTS:
                self._kept.popitem(last=False)
        return records

    def read(self, index: int) -> Records:
        """The whole object at ``index``, checked; raises as ``span`` does."""
        key, entry = self.key(index), self.objects[index]
        body = decode_document(key, KIND, self._store.read(key), digest=entry.digest)
        if len(body) != entry.records * RECORD_BYTES:
            raise CorruptObjectError(f"{key} does not hold {entry.records} records")
        return as_records(body)
