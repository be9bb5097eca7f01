"""What lies in one directory of a store, with sizes and times.

Light: imported for every WAL segment that PostgreSQL archives.
"""

from __future__ import annotations

import os
import stat

from pgrecall.codec.native import HAS_NATIVE
from pgrecall.store.keys import is_key_part

if HAS_NATIVE:
    from pgrecall.codec import _native


def list_directory(directory: int, beginning: str) -> list[tuple[str, int, float]]:
    """Names, sizes in bytes, and seconds since 1970 of what an open directory holds; unsorted.

    Only what can be a part of a key and begins with ``beginning``. Directories have a slash
    behind their name, and -1 for a size; what is neither a file nor a directory is left out.
    Raises OSError, with the name of the file if it was one.
    """
    if HAS_NATIVE:
        return _native.list_directory(directory, beginning)
    found = []
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        if not is_key_part(name) or not name.startswith(beginning):
            continue
        try:
            about = os.stat(name, dir_fd=directory)
        except FileNotFoundError:
            continue  # deleted since the directory was read
        if stat.S_ISDIR(about.st_mode):
            found.append((name + "/", -1, 0.0))
        elif stat.S_ISREG(about.st_mode):
            found.append((name, about.st_size, about.st_mtime))
    return found
