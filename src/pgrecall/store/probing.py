"""Prove that a store does what pgrecall relies on, with an object of a few bytes.

Some services accept ``If-None-Match`` and overwrite all the same; on those, a
crossed archive command destroys WAL. Nobody finds that out by reading settings.
"""

from __future__ import annotations

import contextlib
import os

from pgrecall.errors import ObjectMissingError, StoreError, UnsafeStoreError
from pgrecall.store.base import Store

_HINT = "do not keep backups there: pgrecall could overwrite or lose objects"


def probe_store(store: Store, key_prefix: str) -> list[str]:
    """Write, read, list and delete one object below ``key_prefix`` (ending in ``/``, or empty).

    Returns one sentence for each thing that was proven. Raises UnsafeStoreError
    that names what the store did wrong; StoreError when it cannot be asked.
    Leaves nothing behind, unless the store refuses to delete.
    """
    key = f"{key_prefix}probe-{os.urandom(8).hex()}"
    first = os.urandom(4096)
    try:
        proven = [
            _creates(store, key, first),
            _refuses_a_second_put(store, key, first),
            _reads_ranges(store, key, first),
            _lists(store, key, len(first)),
        ]
    except StoreError:
        # The finding matters more than a probe that stays behind.
        with contextlib.suppress(StoreError):
            store.delete(key)
        raise
    proven.append(_deletes(store, key))
    return proven


def _creates(store: Store, key: str, content: bytes) -> str:
    if store.head(key) is not None:
        raise _unsafe(store, f"holds {key}, a name drawn at random, before it was written")
    if not store.put(key, [content[:1000], content[1000:]]):
        raise _unsafe(store, f"refused to create {key}, which did not exist")
    try:
        stored = store.read(key)
    except ObjectMissingError as error:
        raise _unsafe(store, "acknowledged an object and does not hold it") from error
    if stored != content:
        raise _unsafe(store, "returned other bytes than were written")
    return "an object that was written is read back equal at once"


def _refuses_a_second_put(store: Store, key: str, content: bytes) -> str:
    was_created = store.put(key, [b"a second put of a name that is taken"])
    if store.read(key) != content:
        raise _unsafe(store, "overwrote an object although it was to be created only if absent")
    if was_created:
        raise _unsafe(store, "reported success for a put under a name that is taken")
    return "a put under a name that is taken is refused, and the object stays as it was"


def _reads_ranges(store: Store, key: str, content: bytes) -> str:
    with store.reader(key) as reader:
        if reader.size != len(content):
            raise _unsafe(store, f"reports {reader.size} bytes of an object of {len(content)}")
        if bytes(reader.read(1000, 500)) != content[1000:1500]:
            raise _unsafe(store, "returned other bytes than a range was asked for")
    return "a range is read exactly"


def _lists(store: Store, key: str, size: int) -> str:
    found = [(info.key, info.size) for info in store.list(key)]
    if found != [(key, size)]:
        raise _unsafe(store, f"does not list an object that it holds: {found} for {key}")
    return "a new object is listed at once"


def _deletes(store: Store, key: str) -> str:
    store.delete(key)
    if store.head(key) is not None:
        raise _unsafe(store, f"still holds {key} after it acknowledged to delete it")
    return "an object is deleted"


def _unsafe(store: Store, what: str) -> UnsafeStoreError:
    return UnsafeStoreError(f"the store {store.name} {what}", hint=_HINT)
