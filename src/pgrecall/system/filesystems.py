"""Whole file systems: making everything on one durable, and how much room there is."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable


def sync_filesystems(directories: Iterable[str]) -> None:
    """Make everything written below the directories durable, one call for each file system.

    syncfs(2): one journal commit in place of one for each of a million files.
    Linux reports write errors through it since 5.8. Raises OSError.
    """
    done: set[int] = set()
    for directory in directories:
        device = os.stat(directory).st_dev
        if device in done:
            continue
        done.add(device)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _syncfs(descriptor)
        finally:
            os.close(descriptor)


def _syncfs(descriptor: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):
        os.sync()
        return
    if library.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def free_bytes(directory: str) -> int:
    """What an ordinary user may still write on the file system of the nearest existing parent."""
    path = os.path.abspath(directory)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def device_of(directory: str) -> int:
    """The device of the nearest existing parent: equal numbers share their free space."""
    path = os.path.abspath(directory)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.stat(path).st_dev
