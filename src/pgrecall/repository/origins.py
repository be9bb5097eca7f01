"""Where copied objects come from: a record for each repository that was copied into this one.

Packs and documents of a backup say in their headers which repository they were made
in, and are copied byte for byte, so that copies can be compared and heal each other.
A repository accepts its own id and those of its origins; any other is a stranger's.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pgrecall.repository import layout
from pgrecall.repository.identity import RepositoryIdentity
from pgrecall.repository.records import decode_record, encode_record, format_time
from pgrecall.store.base import Store


def add_origins(store: Store, origins: Iterable[str], now: datetime) -> None:
    """Record that objects of these repositories (ids) may lie in ``store``; durable then.

    Raises StoreError.
    """
    for repository_id in sorted(origins):
        key = layout.origin_key(repository_id)
        if store.head(key) is None:
            store.put(key, [origin_record(repository_id, now)])


def origin_record(repository_id: str, now: datetime) -> bytes:
    """The bytes of the record of an origin."""
    return encode_record({"repository_id": repository_id, "first_copied_at": format_time(now)})


def accepted_ids(store: Store, identity: RepositoryIdentity) -> frozenset[str]:
    """The ids that objects here may carry: the repository's own, and its origins'.

    Raises StoreError, CorruptObjectError.
    """
    found = {identity.repository_id}
    for name in store.children(layout.ORIGINS_PREFIX):
        key = layout.ORIGINS_PREFIX + name
        fields = decode_record(store.read(key), f"{key} in {store.name}")
        found.add(str(fields.get("repository_id")))
    return frozenset(found)
