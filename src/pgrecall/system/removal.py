"""Removing directories with what is in them (light: shutil brings three compressors along)."""

from __future__ import annotations

import contextlib
import os


def remove_tree(directory: str) -> None:
    """Remove ``directory`` and what is in it; what is gone already is success.

    Links in it are removed, not followed. Raises the first OSError.
    """
    for place, directories, files in os.walk(directory, topdown=False):
        for name in directories:
            path = f"{place}/{name}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path) if os.path.islink(path) else os.rmdir(path)
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{place}/{name}")
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(directory)
