"""Digests: blake3, 32 bytes, of stored bytes and (keyed) of raw bytes.

Stored bytes are digested without a key: anybody can check an object against
its record. Raw bytes are digested **with** a key, so that a digest in a header
that is not encrypted tells nothing about content that is (nobody can test a
guess); in a repository without encryption the key comes from the repository's
identity and keeps nothing secret, but the format is one and the same.

The kind of a digest is written down as a number, with room for others.
"""

from __future__ import annotations

from blake3 import blake3

Buffer = bytes | bytearray | memoryview

DIGEST_BYTES = 32
DIGEST_BLAKE3 = 1

DIGEST_NAMES = {DIGEST_BLAKE3: "blake3"}

_RAW_KEY_CONTEXT = "pgrecall format 1: key of raw digests, repository without encryption"


def stored_digest(data: Buffer) -> bytes:
    """32 bytes of blake3 over bytes as they are stored."""
    return blake3(data).digest()


def raw_digest(key: bytes, data: Buffer) -> bytes:
    """32 bytes of keyed blake3 over raw bytes; ``key`` has 32 bytes."""
    return blake3(data, key=key).digest()


def plain_raw_key(repository_id: str) -> bytes:
    """The key of raw digests in a repository without encryption: 32 bytes from its identity."""
    hasher = blake3(derive_key_context=_RAW_KEY_CONTEXT)
    hasher.update(repository_id.encode("utf-8"))
    return hasher.digest()


class RunningDigest:
    """A digest of bytes that come in pieces; with ``key`` (32 bytes) a keyed one."""

    __slots__ = ("_hasher",)

    def __init__(self, key: bytes | None = None) -> None:
        self._hasher = blake3() if key is None else blake3(key=key)

    def update(self, data: Buffer) -> None:
        """Add bytes."""
        self._hasher.update(data)

    def digest(self) -> bytes:
        """32 bytes over everything added so far."""
        return self._hasher.digest()
