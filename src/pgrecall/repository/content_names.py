"""Objects that are named by what they hold, so that equal ones are there once.

In an encrypted repository the name is keyed: a plain digest would tell whoever
sees the names which contents are equal to some that they know.
"""

from __future__ import annotations

from typing import cast

from pgrecall.codec.digests import raw_digest
from pgrecall.store.base import SUITE_NONE, NamingStore, Store


def names_alike(one: Store, other: Store) -> bool:
    """Whether both call the same content by the same name."""
    return one.suite == other.suite == SUITE_NONE


def content_name(store: Store, digest: str) -> str:
    """The part of a key for content with this digest (hex): as it is, or keyed."""
    if store.suite == SUITE_NONE:
        return digest
    return raw_digest(cast(NamingStore, store).name_key(), bytes.fromhex(digest)).hex()
