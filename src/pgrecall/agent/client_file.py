"""The client for images without Python: where it is, how it was built, and installing it."""

from __future__ import annotations

import os
import struct
from typing import Literal

from pgrecall.errors import DestinationError, ToolMissingError
from pgrecall.system.durable import write_durable

NAME = "pgrecall-client"

Kind = Literal["static", "dynamic", ""]

_MODE = 0o755
_PT_INTERP = 3
_ELF_64 = b"\x7fELF\x02"
_HEADER_BYTES = 4096


def client_path() -> str | None:
    """The program that was built with this package; None: there was no C compiler."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "client", NAME)
    return path if os.access(path, os.R_OK) else None


def client_kind() -> Kind:
    """``static``: runs in any image of its architecture; ``dynamic``: where its C library is.

    Empty when there is no client. By its program headers (System V ABI, ELF-64):
    what needs a loader names it in PT_INTERP.
    """
    path = client_path()
    if path is None:
        return ""
    with open(path, "rb") as file:
        content = file.read(_HEADER_BYTES)
    if content[:5] != _ELF_64:
        return "dynamic"  # nothing is known of it; so it is not promised to run anywhere
    order = "<" if content[5] == 1 else ">"
    (headers,) = struct.unpack_from(f"{order}Q", content, 32)
    size, count = struct.unpack_from(f"{order}HH", content, 54)
    kinds = {struct.unpack_from(f"{order}I", content, headers + size * n)[0] for n in range(count)}
    return "dynamic" if _PT_INTERP in kinds else "static"


def install_destination(path: str) -> str:
    """Where ``install_client(path)`` writes: ``path``, or the client's name in it."""
    absolute = os.path.abspath(path)
    return os.path.join(absolute, NAME) if os.path.isdir(absolute) else absolute


def install_client(path: str) -> str:
    """Copy the client to ``path`` (a file, or a directory for it) and return where it is.

    Put in place whole with mode 0755, durable when this returns; a client that
    PostgreSQL is running at that moment goes on. Raises ToolMissingError (none was
    built), DestinationError.
    """
    source = client_path()
    if source is None:
        raise ToolMissingError(
            "this installation has no client for images without Python",
            hint="install pgrecall from a wheel, or where there is a C compiler",
        )
    destination = install_destination(path)
    try:
        with open(source, "rb") as file:
            write_durable(destination, [file.read()], mode=_MODE)
    except OSError as error:
        raise DestinationError(
            f"cannot write {destination}: {error.strerror}",
            hint="name a file in a directory that exists, or the directory",
        ) from error
    return destination
