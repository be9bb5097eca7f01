"""The encrypted form of an object: a header, then chunks of AES-256-GCM.

Layout (docs/format.md)::

    header, 128 bytes:
      "PGRCRYP1"  u8 version  u8 suite  u16 zero  32 bytes key id  32 salt  32 commitment  20 zero
    chunks: 64 KiB of plain bytes and a tag of 16 bytes each; the last one may be shorter

Each object has a key of its own: HKDF-SHA256 (RFC 5869) of the data key and the
random salt, 64 bytes, of which the first half is the key and the second the
commitment. GCM alone does not commit to its key: with the commitment, one object
cannot be opened by two keys, and a wrong key is told from damage.

The nonce of a chunk is its number (11 bytes, big endian) and a byte that is 1 for
the last chunk, so that cutting off, reordering and repeating are found out (as in
STREAM, Hoang et al. 2015). Associated data: header, repository id and name, so that
an object that was moved or swapped does not open.

Sizes follow from each other: no object has to be read to know how large its plain
form is. Loaded only for repositories that are encrypted.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pgrecall.errors import CorruptObjectError

MAGIC = b"PGRCRYP1"
VERSION = 1
SUITE_NUMBER = 1
KEY_BYTES = 32
HEADER_BYTES = 128
CHUNK_BYTES = 64 << 10
TAG_BYTES = 16
SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES

_HEADER = struct.Struct("<8sBBH32s32s32s20s")
_OBJECT_INFO = b"pgrecall object 1"
_PADDING = bytes(20)
_NONCE_BYTES = 12

Bytes = bytes | bytearray | memoryview


class DataKey:
    """A data key: ``key_id`` as in repository/layout.py, ``secret`` its 32 bytes."""

    __slots__ = ("key_id", "secret")

    def __init__(self, key_id: str, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a data key has {KEY_BYTES} bytes, not {len(secret)}")
        self.key_id = key_id
        self.secret = secret

    def __repr__(self) -> str:
        return f"DataKey({self.key_id!r})"


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF with SHA-256 (RFC 5869): ``length`` bytes derived from ``secret``."""
    pseudorandom = hmac.digest(salt or bytes(32), secret, "sha256")
    found = block = b""
    number = 1
    while len(found) < length:
        block = hmac.digest(pseudorandom, block + info + bytes([number]), "sha256")
        found += block
        number += 1
    return found[:length]


def sealed_size(plain_bytes: int) -> int:
    """The size of the encrypted form of ``plain_bytes`` bytes; an empty object has one chunk."""
    chunks = max(1, -(-plain_bytes // CHUNK_BYTES))
    return HEADER_BYTES + plain_bytes + chunks * TAG_BYTES


def plain_size(sealed_bytes: int) -> int | None:
    """The plain size of an encrypted object of that size; None: no object has it."""
    body = sealed_bytes - HEADER_BYTES
    if body < TAG_BYTES:
        return None
    chunks = -(-body // SEALED_CHUNK_BYTES)
    last = body - (chunks - 1) * SEALED_CHUNK_BYTES
    if last < TAG_BYTES or (last == TAG_BYTES and chunks > 1):
        return None
    return body - chunks * TAG_BYTES


class ObjectCipher:
    """Seals or opens the chunks of one object; opening from any number of threads."""

    __slots__ = ("_aead", "_context", "_where", "header")

    def __init__(self, object_key: bytes, header: bytes, context: bytes, where: str) -> None:
        """See ``new_cipher`` and ``cipher_of``."""
        self.header = header
        self._aead = AESGCM(object_key)
        self._context = header + context
        self._where = where

    def seal(self, number: int, is_last: bool, plain: Bytes, out: memoryview) -> None:
        """Encrypt chunk ``number`` into ``out``, which is TAG_BYTES longer than ``plain``."""
        self._aead.encrypt_into(_nonce(number, is_last), plain, self._context, out)

    def open(self, number: int, is_last: bool, sealed: Bytes, out: memoryview) -> None:
        """Decrypt chunk ``number`` into ``out``, which is TAG_BYTES shorter than ``sealed``.

        Raises CorruptObjectError; nothing of the chunk may be believed then.
        """
        try:
            self._aead.decrypt_into(_nonce(number, is_last), sealed, self._context, out)
        except InvalidTag as error:
            raise corrupt(
                self._where,
                f"chunk {number + 1} of its encrypted bytes is not what was stored under this "
                "name (changed, cut off, or put in another place)",
            ) from error

    def seal_all(self, plain: Bytes) -> bytearray:
        """Header and chunks of a whole object."""
        view = memoryview(plain)
        found = bytearray(sealed_size(len(view)))
        found[:HEADER_BYTES] = self.header
        out = memoryview(found)[HEADER_BYTES:]
        last = max(0, len(view) - 1) // CHUNK_BYTES
        for number in range(last + 1):
            piece = view[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            start = number * SEALED_CHUNK_BYTES
            self.seal(number, number == last, piece, out[start : start + len(piece) + TAG_BYTES])
        return found

    def open_chunks(self, first: int, sealed: Bytes, *, is_end: bool) -> bytearray:
        """The plain bytes of consecutive chunks from number ``first``; at least one.

        ``is_end``: the last of them is the object's last. Raises CorruptObjectError.
        """
        view = memoryview(sealed)
        pieces = list(_pieces(view))
        if len(pieces[-1]) < TAG_BYTES:
            raise corrupt(self._where, "its encrypted bytes are cut off")
        found = bytearray(len(view) - TAG_BYTES * len(pieces))
        out = memoryview(found)
        at = 0
        for place, piece in enumerate(pieces):
            is_last = is_end and place == len(pieces) - 1
            length = len(piece) - TAG_BYTES
            self.open(first + place, is_last, piece, out[at : at + length])
            at += length
        return found


def new_cipher(key: DataKey, context: bytes, where: str) -> ObjectCipher:
    """For a new object; ``context`` by object_context, ``where`` names it in messages."""
    salt = os.urandom(32)
    object_key, commitment = _derive(key, salt)
    key_id = key.key_id.encode("ascii")
    if len(key_id) > KEY_BYTES:
        raise ValueError(f"the key id {key.key_id!r} is too long")
    header = _HEADER.pack(MAGIC, VERSION, SUITE_NUMBER, 0, key_id, salt, commitment, _PADDING)
    return ObjectCipher(object_key, header, context, where)


def key_id_of(header: Bytes, where: str) -> str:
    """The id of the data key that an object's header names.

    Raises CorruptObjectError for what is no header of this version and suite.
    """
    if len(header) < HEADER_BYTES or bytes(header[: len(MAGIC)]) != MAGIC:
        raise corrupt(where, "it does not begin as an encrypted object")
    _, version, suite, zero, key_id, _, _, padding = _HEADER.unpack(header[:HEADER_BYTES])
    if (version, suite) != (VERSION, SUITE_NUMBER):
        # No newer pgrecall writes such into a repository that this one could open.
        raise corrupt(where, f"its header says version {version}, suite {suite}")
    try:
        text = bytes(key_id).rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise corrupt(where, "its header names no key") from error
    if zero or padding != _PADDING or not text:
        raise corrupt(where, "its header is not one that pgrecall writes")
    return text


def cipher_of(key: DataKey, header: Bytes, context: bytes, where: str) -> ObjectCipher:
    """For an object that is stored, whose header names ``key``.

    Raises CorruptObjectError unless the header was made with this key.
    """
    _, _, _, _, _, salt, commitment, _ = _HEADER.unpack(header[:HEADER_BYTES])
    object_key, expected = _derive(key, salt)
    if not hmac.compare_digest(commitment, expected):
        raise corrupt(where, f"its header was not made with the key {key.key_id}")
    return ObjectCipher(object_key, bytes(header[:HEADER_BYTES]), context, where)


def object_context(repository_id: str, name: str) -> bytes:
    """What every chunk is bound to besides the header."""
    return repository_id.encode("ascii") + b"\0" + name.encode("ascii")


def seal_small(secret: bytes, plain: bytes, context: bytes) -> bytes:
    """A few bytes encrypted under ``secret`` (32 bytes) with a random nonce, which comes first."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(secret).encrypt(nonce, plain, context)


def open_small(secret: bytes, sealed: bytes, context: bytes) -> bytes | None:
    """What ``seal_small`` was given; None: another secret or context, or damaged bytes."""
    try:
        return AESGCM(secret).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
    except (InvalidTag, ValueError):
        return None


def corrupt(where: str, what: str) -> CorruptObjectError:
    """The error for an encrypted object that is not as it was stored."""
    return CorruptObjectError(
        f"{where} is damaged: {what}",
        hint="another repository may hold a good copy; keep the damaged object for a look at it",
    )


def _derive(key: DataKey, salt: bytes) -> tuple[bytes, bytes]:
    found = hkdf(key.secret, salt, _OBJECT_INFO, 2 * KEY_BYTES)
    return found[:KEY_BYTES], found[KEY_BYTES:]


def _nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\1" if is_last else b"\0")


def _pieces(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(view), SEALED_CHUNK_BYTES):
        yield view[start : start + SEALED_CHUNK_BYTES]
