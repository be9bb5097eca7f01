"""Whole file systems: making everything on one durable, and how much room there is."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

_SYNC_FILE_RANGE_WRITE = 2


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


class WriteBack:
    """Asks the kernel to write dirty pages out soon, without waiting and without dropping them.

    What is written early need not be waited for by sync_filesystems in the end.
    Linux only (sync_file_range(2)); elsewhere it does nothing.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._call = getattr(library, "sync_file_range", None)
        if self._call is not None:
            offset = ctypes.c_int64
            self._call.argtypes = (ctypes.c_int, offset, offset, ctypes.c_uint)

    def start(self, descriptor: int, offset: int, length: int) -> None:
        """Begin to write the range out; errors come up in the sync at the end."""
        if self._call is not None:
            self._call(descriptor, offset, length, _SYNC_FILE_RANGE_WRITE)


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


def mount_of(path: str) -> tuple[int, int]:
    """What two places have in common when rename(2) works between them: mount and device.

    Of the nearest existing parent. Equal devices alone are not enough (a bind mount), nor are
    equal mounts (subvolumes). Without /proc the device stands for both.
    """
    place = os.path.abspath(path)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device = os.fstat(descriptor).st_dev
        try:
            with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
                lines = [line.split() for line in file]
        except FileNotFoundError:
            return device, device
        return device, next((int(words[1]) for words in lines if words[0] == "mnt_id:"), device)
    finally:
        os.close(descriptor)


def filesystem_of(directory: str) -> tuple[str, str]:
    """Type and device (``ext4``, ``8:1``) of the file system that a directory lies on.

    Linux: from /proc/self/mountinfo; a type that cannot be told is empty. Raises OSError
    when the directory is not there.
    """
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return "", number
    # btrfs and overlays give their files another device than their mount has: then by path.
    path = os.path.realpath(directory)
    by_device = [words for words in lines if words[2] == number]
    by_path = [words for words in lines if _is_below(path, words[4])]
    found = max(by_device or by_path, key=lambda words: len(words[4]), default=None)
    return (found[found.index("-") + 1] if found is not None else ""), number


def _is_below(path: str, mount_point: str) -> bool:
    point = mount_point.encode().decode("unicode_escape").rstrip("/")
    return path == point or path.startswith(point + "/")
