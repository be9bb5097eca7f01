"""Everything else that is stored for a server: records, indexes, name maps, tails."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError
from pgrecall.model.findings import Finding
from pgrecall.repository import layout
from pgrecall.repository.documents import MAGIC, decode_document, unsealed
from pgrecall.repository.identity import RepositoryIdentity, generation_numbers
from pgrecall.repository.records import decode_record
from pgrecall.repository.wal_objects import WalObjectReader
from pgrecall.store.base import Store

# Proven apart, by backup and by generation.
_APART = frozenset({"backups/", "wal/"})
_LENGTH = struct.Struct("<I")


def damaged_records(
    store: Store, server: str, identity: RepositoryIdentity, workers: int
) -> tuple[int, list[Finding]]:
    """How many objects were read, and which are damaged; each carries its own digest.

    Raises StoreError. Memory: one object for each worker, a few MiB at most.
    """
    keys = list(_keys(store, server))
    tails = list(_tails(store, server))

    def prove(key: str) -> Finding | None:
        return _finding(key, lambda: check_record(key, store.read(key)))

    def prove_tail(key: str) -> Finding | None:
        return _finding(key, lambda: _check_tail(store, key, identity))

    with ThreadPoolExecutor(workers, thread_name_prefix="verify-records") as pool:
        found = [*pool.map(prove, keys), *pool.map(prove_tail, tails)]
    return len(found), [finding for finding in found if finding is not None]


def check_record(key: str, data: bytes) -> None:
    """Raise CorruptObjectError unless ``data`` is a whole record or document of any kind."""
    if data.startswith(MAGIC):
        decode_document(key, _kind(key, data), data)
    elif data.startswith(b'{"record"'):
        unsealed(key, data)
    else:
        decode_record(data, f"the object {key}")


def _kind(key: str, data: bytes) -> str:
    """What a document says it is; decode_document proves the rest."""
    start = len(MAGIC) + _LENGTH.size
    try:
        (length,) = _LENGTH.unpack_from(data, len(MAGIC))
        return str(json.loads(data[start : start + length])["kind"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise CorruptObjectError(f"the object {key} has a damaged header: {error}") from error


def _check_tail(store: Store, key: str, identity: RepositoryIdentity) -> None:
    with WalObjectReader(store, key, identity.raw_key()) as stored:
        stored.verify()


def _keys(store: Store, server: str) -> Iterator[str]:
    prefix = layout.server_prefix(server)
    for child in store.children(prefix):
        if child not in _APART:
            yield from (info.key for info in store.list(prefix + child))
    for number in generation_numbers(store, server):
        yield from (info.key for info in store.list(layout.gaps_prefix(server, number)))
    yield from (info.key for info in store.list(layout.KEYS_PREFIX))


def _tails(store: Store, server: str) -> Iterator[str]:
    for number in generation_numbers(store, server):
        yield from (info.key for info in store.list(layout.tails_prefix(server, number)))


def _finding(key: str, check: Callable[[], None]) -> Finding | None:
    try:
        check()
    except ObjectMissingError:
        return None  # a tail that its segment has taken the place of, since it was listed
    except (CorruptObjectError, RepositoryError) as error:
        return Finding(
            severity="fail",
            code="record-damaged",
            subject=key,
            message=error.message,
            hint="bring the object back from another repository; nothing rewrites it",
        )
    return None
