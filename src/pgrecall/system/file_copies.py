"""Copies of directory trees that share their blocks with the original where that can be had."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Sequence

# linux/fs.h: _IOW(0x94, 9, int)
_FICLONE = 0x40049409
_PIECE_BYTES = 64 << 20
_NOT_HERE = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY)
_WITH_REFLINKS = frozenset({"btrfs", "xfs", "bcachefs", "ocfs2"})


def copy_tree(source: str, target: str, names: Sequence[str]) -> None:
    """Copy entries of ``source`` into ``target``, which exists, with modes, owners and times.

    Links are copied as links, sockets and the like are left out. Nothing is durable yet.
    Raises OSError.
    """
    for name in names:
        here, there = os.path.join(source, name), os.path.join(target, name)
        facts = os.lstat(here)
        if stat.S_ISLNK(facts.st_mode):
            os.symlink(os.readlink(here), there)
        elif stat.S_ISDIR(facts.st_mode):
            os.mkdir(there, 0o700)
            copy_tree(here, there, os.listdir(here))
            shutil.copystat(here, there)
        elif stat.S_ISREG(facts.st_mode):
            copy_file(here, there)
        else:
            continue
        if os.geteuid() == 0:
            os.lchown(there, facts.st_uid, facts.st_gid)


def copy_file(source: str, target: str) -> None:
    """Copy one file, by sharing its blocks where the file system can; raises OSError."""
    with open(source, "rb") as here, open(target, "xb") as there:
        os.fchmod(there.fileno(), 0o600)
        try:
            fcntl.ioctl(there.fileno(), _FICLONE, here.fileno())
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            _copy_bytes(here.fileno(), there.fileno())
    shutil.copystat(source, target)


def has_reflinks(directory: str) -> bool:
    """Whether the file system of ``directory`` is of a kind that shares blocks between files."""
    found, kind = "", ""
    path = os.path.realpath(directory)
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file]
    except FileNotFoundError:
        return False
    for mount in mounts:
        place = mount[1].encode().decode("unicode_escape")
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(found):
            found, kind = place, mount[2]
    return kind in _WITH_REFLINKS


def _copy_bytes(source: int, target: int) -> None:
    while True:
        try:
            count = os.copy_file_range(source, target, _PIECE_BYTES)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            break
        if count == 0:
            return
    with open(os.dup(source), "rb") as here, open(os.dup(target), "wb") as there:
        shutil.copyfileobj(here, there, 1 << 20)


def tree_bytes(directory: str, names: Sequence[str]) -> int:
    """Bytes of all files below entries of a directory; raises OSError."""
    total = 0
    for name in names:
        path = os.path.join(directory, name)
        if os.path.isdir(path) and not os.path.islink(path):
            total += tree_bytes(path, os.listdir(path))
        else:
            total += os.lstat(path).st_size
    return total
