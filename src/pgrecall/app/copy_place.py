"""Where a restored copy listens: a port and a socket directory of its own, no network address."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import socket
import stat
import tempfile
import time

import msgspec

from pgrecall.errors import DestinationError

_SOCKET_NAME_BYTES = 24
_SOCKET_PATH_BYTES = 103
_COPY = "copy"
_YOUNG_SECONDS = 86400.0


class CopyPlace(msgspec.Struct, frozen=True):
    """Port and socket directory of a copy."""

    port: int
    socket_directory: str


def choose_place(target_dir: str, port: int | None) -> CopyPlace:
    """A free port, and PGDATA itself for the socket, where its path is short and plain enough.

    Else the copy's directory in /tmp: the same one for each restore to ``target_dir``.
    Such directories of copies that are gone are removed, a day later. Raises DestinationError.
    """
    directory = target_dir
    is_long = len(os.fsencode(directory)) + _SOCKET_NAME_BYTES > _SOCKET_PATH_BYTES
    # The setting is a list: a comma or a quote in the path would make it another.
    if (
        is_long
        or any(character in directory for character in ',"')
        or directory != directory.strip()
    ):
        directory = _short_directory(target_dir)
    return CopyPlace(port if port is not None else _free_port(), directory)


def _short_directory(target_dir: str) -> str:
    """The directory of this copy, made if need be; it holds a link to the copy."""
    target = os.path.realpath(target_dir)
    prefix = os.path.join(tempfile.gettempdir(), f"pgrecall-{os.geteuid()}-")
    _remove_those_of_nothing(prefix, target)
    directory = prefix + hashlib.blake2b(os.fsencode(target), digest_size=8).hexdigest()
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        _require_own(directory)
        with contextlib.suppress(FileExistsError):
            os.symlink(target, os.path.join(directory, _COPY))
    except OSError as error:
        raise DestinationError(
            f"cannot make the directory {directory} for the copy's socket: {error.strerror}",
            hint="choose a shorter --target-dir, without commas and quotes",
        ) from error
    return directory


def _require_own(directory: str) -> None:
    """Everybody may write to /tmp: what is there already must be ours, and closed to others."""
    found = os.lstat(directory)
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not is_ours or stat.S_IMODE(found.st_mode) & 0o077:
        raise DestinationError(
            f"{directory} is somebody else's, or open to others: no place for the copy's socket",
            hint="remove it, or choose a shorter --target-dir, without commas and quotes",
        )


def _remove_those_of_nothing(prefix: str, target: str) -> None:
    for directory in glob.glob(f"{glob.escape(prefix)}*"):
        link = os.path.join(directory, _COPY)
        try:
            copy = os.readlink(link)
            if copy == target or os.path.lexists(copy) or os.listdir(directory) != [_COPY]:
                continue
            # Another restore may be about to make its copy: it looks at all of its WAL before.
            if time.time() - os.lstat(link).st_mtime < _YOUNG_SECONDS:
                continue
            os.unlink(link)
            os.rmdir(directory)
        except OSError:
            continue  # not of ours, or something is in it: left as it is


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
