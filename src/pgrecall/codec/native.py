"""The optional C extension: present, or not (no compiler, or PGRECALL_NO_NATIVE=1).

LIGHT: imported for every WAL segment that PostgreSQL archives.
"""

from __future__ import annotations

import os

NO_NATIVE_VARIABLE = "PGRECALL_NO_NATIVE"
"""Set to 1, it makes this process use the fallbacks; read once, at import."""

if os.environ.get(NO_NATIVE_VARIABLE) == "1":
    HAS_NATIVE = False
else:
    try:
        import pgrecall.codec._native  # noqa: F401
    except ImportError:
        HAS_NATIVE = False
    else:
        HAS_NATIVE = True
