"""Temporary files that killed writers have left in a directory store."""

from __future__ import annotations

import logging
from datetime import timedelta

from pgrecall.errors import StoreError
from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.base import ObjectInfo
from pgrecall.store.local import LocalStore

log = logging.getLogger(__name__)

#: A writer touches its file all the time: one so old belongs to nobody, on no host.
ABANDONED_AFTER = timedelta(days=1)


def abandoned_files(settings: RepositorySettings) -> list[ObjectInfo]:
    """Temporary files that nobody has written to for a day; none but in a directory store.

    A day by the clock of its file system: this host's may have jumped. Reads every directory
    of the store. ``key`` is the path below its root. Raises StoreError.
    """
    if settings.store != "local":
        return []
    store = LocalStore(settings.path)
    oldest = store.clock() - ABANDONED_AFTER
    return [info for info in store.leftovers() if info.stored_at < oldest]


def remove_abandoned_files(settings: RepositorySettings) -> int:
    """Remove abandoned_files(); returns how many. Best effort: what stays is said in the log."""
    removed = 0
    try:
        for info in abandoned_files(settings):
            LocalStore(settings.path).remove_leftover(info)
            removed += 1
    except StoreError as error:
        log.warning("temporary files of writers that were killed stay: %s", error)
    if removed:
        log.info("removed temporary files of writers that were killed", extra={"files": removed})
    return removed
