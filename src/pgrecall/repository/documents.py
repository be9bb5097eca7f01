"""Documents: one record or list in one stored object, compressed and digested.

Layout (docs/format.md), little endian::

    "PGRDOC01"  u32 header length  header (JSON)  body  32 bytes digest of all before

The header says what the document is, its codec, its raw size, and has room for
encryption (suite, key). Small records that people read (completion, identity)
are plain JSON with their digest beside them: ``sealed`` and ``unsealed``.
"""

from __future__ import annotations

import struct

import msgspec

from pgrecall.codec.compression import CODEC_ZSTD, decompress, make_compressor
from pgrecall.codec.digests import DIGEST_BYTES, stored_digest
from pgrecall.errors import CorruptObjectError, RepositoryError
from pgrecall.store.base import Buffer

MAGIC = b"PGRDOC01"

FORMAT = 1
PLAIN = "none"

_LENGTH = struct.Struct("<I")
_LARGEST_RAW = 1 << 30


class DocumentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The plain beginning of a document."""

    format: int = FORMAT
    kind: str
    repository_id: str
    raw_bytes: int
    codec: int = CODEC_ZSTD
    suite: str = PLAIN
    key_id: str = ""
    digest: str = "blake3"


class _Sealed(msgspec.Struct, frozen=True):
    record: msgspec.Raw
    digest: str


_HEADERS = msgspec.json.Decoder(DocumentHeader)
_SEALED = msgspec.json.Decoder(_Sealed)


def encode_document(kind: str, repository_id: str, body: Buffer, level: int = 3) -> bytes:
    """The stored bytes of a document of ``kind`` with that body."""
    header = msgspec.json.encode(
        DocumentHeader(kind=kind, repository_id=repository_id, raw_bytes=len(body))
    )
    stored = MAGIC + _LENGTH.pack(len(header)) + header + make_compressor("zstd", level)(body)
    return stored + stored_digest(stored)


def decode_document(
    key: str, kind: str, data: bytes, *, digest: str | None = None
) -> bytes | memoryview:
    """The body of a stored document.

    ``digest`` (hex, from the record that refers to it) is that of the whole
    object. Raises CorruptObjectError naming ``key``.
    """
    if digest is not None and stored_digest(data).hex() != digest:
        raise _corrupt(key, "does not match the digest that its backup recorded")
    end = len(data) - DIGEST_BYTES
    start = len(MAGIC) + _LENGTH.size
    if end < start or data[: len(MAGIC)] != MAGIC or stored_digest(data[:end]) != data[end:]:
        raise _corrupt(key, "is damaged or cut off")
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    try:
        header = _HEADERS.decode(data[start : start + length])
        if header.format != FORMAT or header.suite != PLAIN:
            raise _too_new(key, header)
        if header.kind != kind or header.raw_bytes > _LARGEST_RAW:
            raise _corrupt(key, f"is a {header.kind!r} and not a {kind!r}")
        return decompress(header.codec, memoryview(data)[start + length : end], header.raw_bytes)
    except msgspec.DecodeError as error:
        raise _corrupt(key, f"has a damaged header: {error}") from error


def sealed(record: msgspec.Struct) -> bytes:
    """A readable JSON object: the record, and the digest of its bytes as they stand there."""
    raw = msgspec.json.encode(record)
    return b'{"record":' + raw + b',"digest":"' + stored_digest(raw).hex().encode() + b'"}\n'


def unsealed(key: str, data: bytes) -> msgspec.Raw:
    """The record's bytes inside a sealed object; raises CorruptObjectError naming ``key``."""
    try:
        envelope = _SEALED.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _corrupt(key, f"does not parse: {error}") from error
    if stored_digest(bytes(envelope.record)).hex() != envelope.digest:
        raise _corrupt(key, "does not match its own digest")
    return envelope.record


def _too_new(key: str, header: DocumentHeader) -> RepositoryError:
    return RepositoryError(
        f"the object {key} has format {header.format} and encryption {header.suite!r}:"
        " this pgrecall cannot read that",
        hint="use a newer pgrecall",
    )


def _corrupt(key: str, what: str) -> CorruptObjectError:
    error = CorruptObjectError(
        f"the object {key} {what}",
        hint="restore it from another repository, or use another backup",
    )
    error.key = key
    return error
