"""What a backup that failed has stored, and its removal."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pgrecall.errors import StoreError
from pgrecall.store.base import Store
from pgrecall.system.held_signals import signals_held

log = logging.getLogger(__name__)

_DELETERS = 4


def remove_own_objects(store: Store, keys: Sequence[str]) -> None:
    """Delete objects that a failed run has created itself; best effort, raises no StoreError.

    For a run that never tried to write its completion record: without one nobody
    reads them. What cannot be deleted stays, is said in the log, and is found by
    ``check`` a day later.
    """
    if not keys:
        return
    with ThreadPoolExecutor(_DELETERS, thread_name_prefix="remove") as pool:
        with signals_held():
            removals = [pool.submit(_removed, store, key) for key in keys]
        left = sum(not removal.result() for removal in removals)
    if left:
        log.warning(
            "objects of the failed backup stay; nothing reads them",
            extra={"objects": left, "store": store.name},
        )


def _removed(store: Store, key: str) -> bool:
    try:
        store.delete(key)
    except StoreError as error:
        log.debug("cannot delete %s: %s", key, error)
        return False
    return True
