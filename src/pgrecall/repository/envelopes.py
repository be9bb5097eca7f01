"""Key envelopes: numbered immutable records, each one data key wrapped by one secret.

``keys/<key id>/<NNNN>.json``. All envelopes of a key that are there open it, the
newest is tried first: after a rewrap the old secret goes on working until the older
envelopes are removed. ``check`` proves that what came out is the key; ``introduced``
that a key was added by somebody who had the repository's first one, because a
wrapped key can be planted by whoever can write into the store (age recipients are
no secret).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from datetime import datetime

from pgrecall.codec.aead import DataKey, hkdf
from pgrecall.errors import CorruptObjectError, RepositoryError, UsageError
from pgrecall.model.ids import DATA_KEY, check_id
from pgrecall.repository import layout
from pgrecall.repository.records import (
    Record,
    decode_record,
    encode_record,
    format_time,
    parse_time,
)
from pgrecall.repository.wrapping import Fields, KeyContext, Unopened, Wrapping
from pgrecall.store.base import SUITE_AES, Store

FORMAT = 1

_CHECK_INFO = b"pgrecall key check 1"
_INTRODUCTION_INFO = b"pgrecall key introduction 1"
_MOST_TRIES = 100


class Envelope:
    """One stored envelope; ``introduced`` is empty for the repository's first key."""

    __slots__ = (
        "check", "created_at", "introduced", "key_id", "method", "number", "repository_id",
        "wrapped",
    )  # fmt: skip

    def __init__(self, fields: Record) -> None:
        """``fields`` as they are stored; raises KeyError, TypeError, ValueError otherwise."""
        self.key_id = str(fields["key_id"])
        self.number = int(fields["number"])
        self.repository_id = str(fields["repository_id"])
        self.created_at = parse_time(fields["created_at"])
        self.method = str(fields["method"])
        self.check = bytes.fromhex(fields["check"])
        self.introduced = bytes.fromhex(fields["introduced"])
        self.wrapped: Fields = dict(fields["wrapped"])


class Introduction:
    """What a key's envelopes say besides the wrapped key: that it belongs to the repository."""

    __slots__ = ("key", "mark", "repository_id")

    def __init__(self, repository_id: str, key: DataKey, root: DataKey | None) -> None:
        """``root`` introduces ``key``; None: it is the root itself."""
        self.repository_id = repository_id
        self.key = key
        self.mark = b"" if root is None else _mark(root, repository_id, key.key_id, key_check(key))


def key_check(key: DataKey) -> bytes:
    """32 bytes that tell a data key from others and nothing about it."""
    return hkdf(key.secret, b"", _CHECK_INFO, 32)


def is_introduced(envelope: Envelope, root: DataKey) -> bool:
    """Whether the key in an envelope was added by somebody who had the root."""
    expected = _mark(root, envelope.repository_id, envelope.key_id, envelope.check)
    return hmac.compare_digest(envelope.introduced, expected)


def list_envelopes(store: Store) -> dict[str, list[int]]:
    """Numbers of the envelopes by key id, both ascending; raises RepositoryError, StoreError."""
    found: dict[str, list[int]] = {}
    for info in store.list(layout.KEYS_PREFIX):
        key_id, _, name = info.key.removeprefix(layout.KEYS_PREFIX).partition("/")
        try:
            found.setdefault(check_id(key_id, DATA_KEY), []).append(layout.record_number(name))
        except UsageError as error:
            raise RepositoryError(
                f"{info.key} in {store.name} is not the name of a key envelope",
                hint="something else wrote below keys/; move it out of the repository",
            ) from error
    return {key_id: sorted(numbers) for key_id, numbers in sorted(found.items())}


def read_envelope(store: Store, key_id: str, number: int) -> Envelope:
    """One envelope, of whatever repository it says.

    Raises CorruptObjectError, RepositoryError (newer format), StoreError.
    """
    key = layout.envelope_key(key_id, number)
    where = f"{key} in {store.name}"
    fields = decode_record(store.read(key), where)
    if (fields.get("format"), fields.get("suite")) != (FORMAT, SUITE_AES):
        raise RepositoryError(
            f"{where} has format {fields.get('format')!r}, encryption {fields.get('suite')!r}, "
            "which are not known",
            hint="use the pgrecall that wrote it, or a newer one",
        )
    try:
        envelope = Envelope(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"{where} lacks or garbles a field: {error}") from error
    if (envelope.key_id, envelope.number) != (key_id, number):
        raise CorruptObjectError(f"{where} is envelope {envelope.number} of key {envelope.key_id}")
    return envelope


def open_envelope(envelope: Envelope, wrapping: Wrapping) -> DataKey:
    """The key in an envelope.

    Raises Unopened when the secret is another, or the envelope was changed, and
    KeyUnavailableError.
    """
    if wrapping.method not in (envelope.method, "exported"):
        raise Unopened(f"it is wrapped by {envelope.method}")
    secret = wrapping.unwrap(envelope.wrapped, KeyContext(envelope.repository_id, envelope.key_id))
    try:
        key = DataKey(envelope.key_id, secret)
    except ValueError as error:
        raise Unopened(str(error)) from error
    if not hmac.compare_digest(key_check(key), envelope.check):
        raise Unopened("what came out is another key")
    return key


def add_envelope(
    store: Store, introduction: Introduction, wrapping: Wrapping, now: datetime
) -> Envelope:
    """Wrap a key and store the envelope behind those that there are; durable when it returns.

    It is read back and opened before this returns. Raises KeyRefusedError,
    KeyMissingError, StoreError.
    """
    key, repository_id = introduction.key, introduction.repository_id
    wrapped = wrapping.wrap(key.secret, KeyContext(repository_id, key.key_id))
    for _ in range(_MOST_TRIES):
        numbers = _numbers(store, key.key_id)
        number = (numbers[-1] if numbers else 0) + 1
        fields: Record = {
            "format": FORMAT,
            "key_id": key.key_id,
            "number": number,
            "repository_id": repository_id,
            "created_at": format_time(now),
            "suite": SUITE_AES,
            "method": wrapping.method,
            "check": key_check(key).hex(),
            "introduced": introduction.mark.hex(),
            "wrapped": wrapped,
        }
        if store.put(layout.envelope_key(key.key_id, number), [encode_record(fields)]):
            envelope = read_envelope(store, key.key_id, number)
            open_envelope(envelope, wrapping)
            return envelope
    raise RepositoryError(f"no number below {layout.envelopes_prefix(key.key_id)} stays free")


def remove_envelopes(store: Store, key_id: str, numbers: Iterable[int]) -> None:
    """Remove envelopes; those that are gone already are success. Raises StoreError."""
    for number in numbers:
        store.delete(layout.envelope_key(key_id, number))


def _numbers(store: Store, key_id: str) -> list[int]:
    names = store.children(layout.envelopes_prefix(key_id))
    return sorted(layout.record_number(name) for name in names)


def _mark(root: DataKey, repository_id: str, key_id: str, check: bytes) -> bytes:
    message = f"{repository_id}\0{key_id}\0".encode("ascii") + check
    return hmac.digest(hkdf(root.secret, b"", _INTRODUCTION_INFO, 32), message, "sha256")
