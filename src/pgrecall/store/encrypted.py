"""Encrypts whatever is put into another store, and decrypts what is read from it.

A wrapper like the others: sizes and ranges are of the plain bytes, names stay as
they are. What must be readable without a key stays plain: ``repository.json``, the
key envelopes under ``keys/``, and probes. Retries, and the look after what was put,
lie below and see encrypted bytes; whoever compares contents lies above and sees
plain ones. Loaded only for repositories that are encrypted.

Nothing is believed before it is authenticated: a range from the chunks that it
touches, the end of an object from the mark in its last chunk.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from pgrecall.codec.aead import (
    CHUNK_BYTES,
    HEADER_BYTES,
    KEY_BYTES,
    SEALED_CHUNK_BYTES,
    TAG_BYTES,
    DataKey,
    ObjectCipher,
    cipher_of,
    corrupt,
    hkdf,
    key_id_of,
    new_cipher,
    object_context,
    plain_size,
)
from pgrecall.errors import CorruptObjectError
from pgrecall.store.base import (
    SUITE_AES,
    Buffer,
    ObjectInfo,
    ObjectReader,
    ObjectWriter,
    Store,
)
from pgrecall.store.keys import check_key

_NAME_INFO = b"pgrecall names 1"
_PLAIN_KEY = "repository.json"
_PLAIN_PREFIXES = ("keys/", "probe-")
# Chunks that are sealed before they are handed on together: 1 MiB.
_BATCH_CHUNKS = 16
# A reader keeps the chunks that it opened last: the ends of ranges that lie side by side.
_KEPT_CHUNKS = 2


class KeyRing(Protocol):
    """Where the keys come from; from any number of threads."""

    def repository_id(self) -> str:
        """The identity of the repository, part of what every object is bound to."""
        ...

    def current(self) -> DataKey:
        """The key for new objects."""
        ...

    def root(self) -> DataKey:
        """The first key of the repository."""
        ...

    def find(self, key_id: str) -> DataKey | None:
        """A key by its id, looked up again if need be; None when the repository has none such."""
        ...


def is_plain(key: str) -> bool:
    """Whether an object of this name is stored as it is in an encrypted repository."""
    return key == _PLAIN_KEY or key.startswith(_PLAIN_PREFIXES)


class EncryptedStore:
    """``inner`` holds encrypted objects; ``ring`` has their keys."""

    suite = SUITE_AES

    def __init__(self, inner: Store, ring: KeyRing) -> None:
        self.name = inner.name
        self.pack_bytes = inner.pack_bytes
        self.reads_whole = inner.reads_whole
        self._inner = inner
        self._ring = ring

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        if is_plain(check_key(key)):
            return self._inner.put(key, parts)
        plain = parts[0] if len(parts) == 1 else b"".join(parts)
        return self._inner.put(key, [self._new_cipher(key).seal_all(plain)])

    def writer(self, key: str) -> ObjectWriter:
        if is_plain(check_key(key)):
            return self._inner.writer(key)
        cipher = self._new_cipher(key)
        return EncryptedWriter(self._inner.writer(key), cipher)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if is_plain(key):
            content = self._inner.read(key, start, length)
            if key == _PLAIN_KEY:
                # Whoever opens the repository learns at once whether its keys open.
                self._ring.current()
            return content
        if length is not None and length <= 0:
            return self._inner.read(key, 0, 0)  # whether it is there
        if start == 0 and length is None:
            sealed = memoryview(self._inner.read(key))
            cipher = self.cipher(key, sealed[:HEADER_BYTES])
            return bytes(self._open(key, cipher, 0, sealed[HEADER_BYTES:], is_end=True))
        return self._read_range(key, start, length)

    def reader(self, key: str) -> ObjectReader:
        inner = self._inner.reader(key)
        if is_plain(key):
            return inner
        try:
            return EncryptedReader(self, key, inner)
        except BaseException:
            inner.close()
            raise

    def head(self, key: str) -> ObjectInfo | None:
        found = self._inner.head(key)
        return None if found is None else _plain_info(found)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for info in self._inner.list(prefix):
            yield _plain_info(info)

    def children(self, prefix: str) -> Sequence[str]:
        return self._inner.children(prefix)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def name_key(self) -> bytes:
        """See NamingStore."""
        return hkdf(self._ring.root().secret, b"", _NAME_INFO, KEY_BYTES)

    def where(self, key: str) -> str:
        """How an object is named in messages."""
        return f"{key} in {self.name}"

    def cipher(self, key: str, header: Buffer) -> ObjectCipher:
        """What opens the object whose header was read; raises CorruptObjectError, StoreError."""
        where = self.where(key)
        key_id = key_id_of(header, where)
        data_key = self._ring.find(key_id)
        if data_key is None:
            raise corrupt(where, f"it names the key {key_id!a}, which the repository does not have")
        context = object_context(self._ring.repository_id(), key)
        return cipher_of(data_key, header, context, where)

    def _new_cipher(self, key: str) -> ObjectCipher:
        context = object_context(self._ring.repository_id(), key)
        return new_cipher(self._ring.current(), context, self.where(key))

    def _read_range(self, key: str, start: int, length: int | None) -> bytes:
        first = start // CHUNK_BYTES
        begin = HEADER_BYTES + first * SEALED_CHUNK_BYTES
        wanted = None
        if length is not None:
            chunks = (start + length - 1) // CHUNK_BYTES - first + 1
            wanted = chunks * SEALED_CHUNK_BYTES
        # One byte more than is wanted tells whether the object ends there.
        if first == 0:
            asked = None if wanted is None else HEADER_BYTES + wanted + 1
            sealed = memoryview(self._inner.read(key, 0, asked))
            header, body = sealed[:HEADER_BYTES], sealed[HEADER_BYTES:]
        else:
            header = memoryview(self._inner.read(key, 0, HEADER_BYTES))
            asked = None if wanted is None else wanted + 1
            body = memoryview(self._inner.read(key, begin, asked))
        cipher = self.cipher(key, header)
        if not body and first:
            return self._nothing_behind_the_end(key, start)
        is_end = wanted is None or len(body) <= wanted
        plain = self._open(key, cipher, first, body[:wanted], is_end=is_end)
        offset = start - first * CHUNK_BYTES
        return bytes(plain[offset : None if length is None else offset + length])

    def _open(
        self, key: str, cipher: ObjectCipher, first: int, sealed: memoryview, *, is_end: bool
    ) -> bytearray:
        if not len(sealed):
            raise corrupt(self.where(key), "its encrypted bytes are cut off")
        return cipher.open_chunks(first, sealed, is_end=is_end)

    def _nothing_behind_the_end(self, key: str, start: int) -> bytes:
        """Empty, after its last chunk has proven that the object ends before ``start``."""
        with self.reader(key) as reader:
            if reader.size > start:
                raise corrupt(self.where(key), "it grew while it was read")
            if reader.size:
                reader.read(reader.size - 1, 1)
        return b""


class EncryptedWriter:
    """Seals chunks as they fill; holds back up to one chunk, because the last one is marked."""

    def __init__(self, inner: ObjectWriter, cipher: ObjectCipher) -> None:
        self.size = 0
        self._inner = inner
        self._cipher = cipher
        self._pending = bytearray()
        self._number = 0
        self._out = bytearray()
        self._is_sealed = False
        self._is_over = False

    def write(self, data: Buffer) -> None:
        if self._is_over or self._is_sealed:
            raise ValueError("the writer was committed or discarded")
        view = memoryview(data).cast("B")
        self.size += len(view)
        taken = min(len(view), CHUNK_BYTES - len(self._pending))
        if self._pending or len(view) <= CHUNK_BYTES:
            self._pending += view[:taken]
            view = view[taken:]
        if not len(view):
            return
        if self._pending:
            self._seal(self._pending, 1)
            self._pending.clear()
        whole = (len(view) - 1) // CHUNK_BYTES
        for place in range(0, whole, _BATCH_CHUNKS):
            count = min(_BATCH_CHUNKS, whole - place)
            begin = place * CHUNK_BYTES
            self._seal(view[begin : begin + count * CHUNK_BYTES], count)
        self._pending += view[whole * CHUNK_BYTES :]

    def commit(self) -> bool:
        if self._is_over:
            raise ValueError("the writer was committed or discarded")
        if not self._is_sealed:
            self._begin()
            last = bytearray(len(self._pending) + TAG_BYTES)
            self._cipher.seal(self._number, True, self._pending, memoryview(last))
            self._is_sealed = True
            self._inner.write(last)
        # May be called again after an error, as long as the store below allows it.
        created = self._inner.commit()
        self._drop()
        return created

    def discard(self) -> None:
        self._inner.discard()
        self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def _seal(self, plain: Buffer, count: int) -> None:
        """Seal whole chunks and hand them on; the numbers are used up whatever happens."""
        self._begin()
        first, self._number = self._number, self._number + count
        if len(self._out) < count * SEALED_CHUNK_BYTES:
            self._out = bytearray(count * SEALED_CHUNK_BYTES)
        out = memoryview(self._out)
        with memoryview(plain) as view:
            for place in range(count):
                piece = view[place * CHUNK_BYTES : (place + 1) * CHUNK_BYTES]
                at = place * SEALED_CHUNK_BYTES
                self._cipher.seal(first + place, False, piece, out[at : at + SEALED_CHUNK_BYTES])
                piece.release()
        self._inner.write(out[: count * SEALED_CHUNK_BYTES])

    def _begin(self) -> None:
        if not self._number:
            self._inner.write(self._cipher.header)

    def _drop(self) -> None:
        self._is_over = True
        self._pending = bytearray()
        self._out = bytearray()


class EncryptedReader:
    """Ranges of one object; asks for the header with the first range that begins near it."""

    def __init__(self, store: EncryptedStore, key: str, inner: ObjectReader) -> None:
        size = plain_size(inner.size)
        if size is None:
            raise corrupt(store.where(key), f"no encrypted object has {inner.size} bytes")
        self.size = size
        self._store = store
        self._key = key
        self._inner = inner
        self._last = max(0, size - 1) // CHUNK_BYTES
        self._cipher: ObjectCipher | None = None
        self._kept: dict[int, bytearray] = {}
        self._lock = threading.Lock()
        if not size:
            self._fetch(0, 0)  # nobody will read it: that it is empty must be proven here

    def read(self, start: int, length: int) -> Buffer:
        if start < 0 or length < 0 or start + length > self.size:
            raise CorruptObjectError(
                f"{self._store.where(self._key)} ends at byte {self.size}, "
                f"{length} bytes at {start} were expected"
            )
        if not length:
            return b""
        first, last = start // CHUNK_BYTES, (start + length - 1) // CHUNK_BYTES
        with self._lock:
            kept = self._kept.get(first)
        if kept is not None and first == last:
            plain = kept
        elif kept is not None:
            plain = kept + self._fetch(first + 1, last)
        else:
            plain = self._fetch(first, last)
        offset = start - first * CHUNK_BYTES
        return memoryview(plain).toreadonly()[offset : offset + length]

    def read_into(self, start: int, buffer: bytearray | memoryview) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = self.read(start, len(view))

    def close(self) -> None:
        self._inner.close()
        with self._lock:
            self._kept.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _fetch(self, first: int, last: int) -> bytearray:
        """Read and open the chunks from ``first`` to ``last``."""
        begin = HEADER_BYTES + first * SEALED_CHUNK_BYTES
        end = min(self._inner.size, begin + (last - first + 1) * SEALED_CHUNK_BYTES)
        with self._lock:
            cipher = self._cipher
        if cipher is None and first == 0:
            sealed = memoryview(self._inner.read(0, end))
            cipher, sealed = self._open_header(sealed[:HEADER_BYTES]), sealed[HEADER_BYTES:]
        else:
            cipher = cipher or self._open_header(self._inner.read(0, HEADER_BYTES))
            sealed = memoryview(self._inner.read(begin, end - begin))
        plain = cipher.open_chunks(first, sealed, is_end=last == self._last)
        self._keep(last, plain[(last - first) * CHUNK_BYTES :])
        return plain

    def _open_header(self, header: Buffer) -> ObjectCipher:
        cipher = self._store.cipher(self._key, header)
        with self._lock:
            self._cipher = cipher
        return cipher

    def _keep(self, number: int, plain: bytearray) -> None:
        with self._lock:
            self._kept.pop(number, None)
            self._kept[number] = plain
            while len(self._kept) > _KEPT_CHUNKS:
                del self._kept[next(iter(self._kept))]


def _plain_info(found: ObjectInfo) -> ObjectInfo:
    """Size of the plain bytes; 0 where no encrypted object has the size: reading says more."""
    if is_plain(found.key):
        return found
    return ObjectInfo(found.key, plain_size(found.size) or 0, found.stored_at)
