"""Name maps: which file belongs to which table, in every database, at one position of WAL.

Stored records (docs/format-wal.md); fields that later formats add have defaults.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.model.lsn import Lsn

FORMAT_VERSION = 1


class NamedRelation(msgspec.Struct, frozen=True, array_like=True):
    """A relation: its oid, the number of its file (0: it has none), and its name.

    ``written_file`` and ``tablespace`` are as in its row of pg_class, 0 where that says 0.
    ``rows`` is the planner's estimate to two digits, -1 where it has none. The row of pg_class
    itself lies at (``block``, ``offset``).
    """

    oid: int
    file: int
    written_file: int
    tablespace: int
    schema_oid: int
    schema: str
    name: str
    kind: str
    rows: int
    block: int
    offset: int


class DatabaseNames(msgspec.Struct, frozen=True):
    """The relations of one database by oid; ``class_file`` is the number of pg_class's own file."""

    oid: int
    class_file: int
    relations: tuple[NamedRelation, ...]


class DatabaseEntry(msgspec.Struct, frozen=True):
    """A database in a record: the ``digest`` of its map, or the ``problem`` why it has none."""

    oid: int
    name: str
    digest: str = ""
    relations: int = 0
    problem: str = ""


class NameRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All databases of a server at one position: everything committed before ``lsn`` is in it.

    What was committed while it was read may be in it, too. ``taken_at`` is of the server's clock.
    """

    format: int = FORMAT_VERSION
    record_id: str
    server: str
    generation: int
    taken_at: datetime
    timeline: int
    lsn: str
    databases: tuple[DatabaseEntry, ...]


class FoundDatabase(msgspec.Struct, frozen=True):
    """One database: its names, or the ``problem`` that kept them from being read."""

    oid: int
    name: str
    names: DatabaseNames | None
    problem: str = ""


class FoundNames(msgspec.Struct, frozen=True):
    """All databases; everything committed before ``lsn`` is in them."""

    taken_at: datetime
    timeline: int
    lsn: Lsn
    databases: tuple[FoundDatabase, ...]
