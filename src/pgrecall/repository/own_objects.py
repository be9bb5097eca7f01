"""What a backup or dump that failed has stored, and its removal."""

from __future__ import annotations

import logging
import threading
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
    reads them. At the first failure it gives up, because each further one would
    wait for the store as long; what stays is said in the log, and found by
    ``check`` a day later.
    """
    if not keys:
        return
    has_failed = threading.Event()

    def remove(key: str) -> bool:
        if has_failed.is_set():
            return False
        try:
            store.delete(key)
        except StoreError as error:
            has_failed.set()
            log.debug("cannot delete %s: %s", key, error)
            return False
        return True

    with ThreadPoolExecutor(_DELETERS, thread_name_prefix="remove") as pool:
        with signals_held():
            removals = [pool.submit(remove, key) for key in keys]
        left = sum(not removal.result() for removal in removals)
    if left:
        log.warning(
            "objects of the failed run stay; nothing reads them",
            extra={"objects": left, "store": store.name},
        )
