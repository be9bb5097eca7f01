"""Names of the files that hold relations. Names are bytes: nothing promises that they are UTF-8.

Source: PostgreSQL documentation, "Database File Layout".
"""

from __future__ import annotations

import re
from functools import lru_cache

RELATION_FILE = re.compile(rb"^(\d+)(_(fsm|vm|init))?(\.(\d+))?\Z")
"""Groups: 1 the relfilenode, 3 the fork (None: main), 5 the number of a file after the first."""

_RELATION_DIRECTORY = re.compile(rb"^(global|base/\d+|pg_tblspc/\d+/PG_[^/]+/\d+)\Z")


def is_relation_directory(directory: bytes) -> bool:
    """True for a directory that holds relation files."""
    return _RELATION_DIRECTORY.match(directory) is not None


def relation_segment_number(directory: bytes, name: bytes) -> int | None:
    """The number of a relation file within its fork (``16384.2`` is 2); None for other files."""
    if not is_relation_directory(directory):
        return None
    match = RELATION_FILE.match(name)
    if match is None:
        return None
    return int(match.group(5) or 0)


@lru_cache(maxsize=64)
def first_block(path: bytes, relation_blocks: int) -> int | None:
    """The block number at which a relation file begins; None for other files.

    ``path`` is relative to PGDATA, ``relation_blocks`` the blocks of a whole file (1 GiB).
    """
    directory, _, name = path.rpartition(b"/")
    segment = relation_segment_number(directory, name)
    return None if segment is None else segment * relation_blocks
