"""What a WAL segment tells of tables: who unlinked, truncated, deleted, and what became of names.

Values only; ``codec.wal_knowledge`` makes them from records, the WAL index stores them. A file is
``(tablespace, database, number)``, where number is PostgreSQL's relfilenode; a place is ``(block,
offset)`` of a row in its catalog. LSNs are of the first byte of a record, unless they say ``end``;
times are microseconds since 2000-01-01 UTC. LIGHT.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any, Self

VERSION = 1

PG_CLASS = 1259
PG_DATABASE = 1262
PG_NAMESPACE = 2615

INSERT = "insert"
UPDATE = "update"
DELETE = "delete"

COMMITTED = "committed"
OPEN = "open"

#: Parts of which a segment may hold more than its index lists: ``SegmentKnowledge.more``.
UNLINKINGS = "unlinkings"
CATALOGS = "catalogs"
DELETIONS = "deletions"

MAXIMUM_UNLINKINGS = 500
MAXIMUM_CATALOG_EVENTS = 500
MAXIMUM_FILES = 1000
MAXIMUM_SUBTRANSACTIONS = 200
MAXIMUM_DELETIONS = 256
FEWEST_DELETED = 10
"""Fewer rows of one table are not listed when their transaction ended in the same segment."""
ROW_BYTES = 120
"""So much of a row of pg_class holds everything up to its relkind, in every version."""

File = tuple[int, int, int]
Place = tuple[int, int]


class Item:
    """A plain record, equal by its fields. (A named tuple costs each push a third of a ms.)"""

    __slots__: tuple[str, ...] = ()

    def replaced(self, **changes: Any) -> Self:
        """A copy with other values."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return type(self)(**{**fields, **changes})

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__slots__))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"


class Unlinking(Item):
    """A commit that removes files of relations: DROP, TRUNCATE, VACUUM FULL, ALTER TABLE.

    ``dropped`` are ``(database, oid)`` of relations whose statistics it drops: on 15 and later
    these are the ones that were dropped, on 13 and 14 the list is empty. ``has_more``: files,
    oids or subtransactions beyond the bound were left out. ``is_prepared``: of a transaction that
    was prepared before, and that still holds its locks where recovery stops just before this.
    """

    __slots__ = (  # noqa: RUF023 - the order of fields
        "lsn",
        "end_lsn",
        "xid",
        "time",
        "subtransactions",
        "files",
        "dropped",
        "has_more",
        "is_prepared",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - a record
        self,
        lsn: int,
        end_lsn: int,
        xid: int,
        time: int,
        subtransactions: tuple[int, ...],
        files: tuple[File, ...],
        dropped: tuple[tuple[int, int], ...],
        has_more: bool,
        is_prepared: bool = False,
    ) -> None:
        self.lsn = lsn
        self.end_lsn = end_lsn
        self.xid = xid
        self.time = time
        self.subtransactions = subtransactions
        self.files = files
        self.dropped = dropped
        self.has_more = has_more
        self.is_prepared = is_prepared


class CatalogCommit(Item):
    """A commit that changed a catalog; changes of other transactions never happened."""

    __slots__ = (  # noqa: RUF023 - the order of fields
        "lsn",
        "xid",
        "subtransactions",
    )

    def __init__(
        self,
        lsn: int,
        xid: int,
        subtransactions: tuple[int, ...],
    ) -> None:
        self.lsn = lsn
        self.xid = xid
        self.subtransactions = subtransactions


class CatalogChange(Item):
    """A row of pg_class, pg_namespace or pg_database (``catalog``) written or deleted.

    ``data`` are bytes of the new row from ``skip`` on, up to ROW_BYTES of the row; what is before
    or behind them equals the row at ``old``. Empty where WAL does not tell.
    """

    __slots__ = (  # noqa: RUF023 - the order of fields
        "lsn",
        "xid",
        "catalog",
        "kind",
        "database",
        "old",
        "new",
        "skip",
        "data",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - a record
        self,
        lsn: int,
        xid: int,
        catalog: int,
        kind: str,
        database: int,
        old: Place | None,
        new: Place | None,
        skip: int,
        data: bytes,
    ) -> None:
        self.lsn = lsn
        self.xid = xid
        self.catalog = catalog
        self.kind = kind
        self.database = database
        self.old = old
        self.new = new
        self.skip = skip
        self.data = data


class FileTruncation(Item):
    """A relation's main fork cut down to ``blocks``; VACUUM does so too, and then xid is 0."""

    __slots__ = (  # noqa: RUF023 - the order of fields
        "lsn",
        "xid",
        "file",
        "blocks",
    )

    def __init__(
        self,
        lsn: int,
        xid: int,
        file: File,
        blocks: int,
    ) -> None:
        self.lsn = lsn
        self.xid = xid
        self.file = file
        self.blocks = blocks


class TableTruncation(Item):
    """TRUNCATE, by table oids; written at wal_level = logical only."""

    __slots__ = (  # noqa: RUF023 - the order of fields
        "lsn",
        "xid",
        "database",
        "oids",
    )

    def __init__(
        self,
        lsn: int,
        xid: int,
        database: int,
        oids: tuple[int, ...],
    ) -> None:
        self.lsn = lsn
        self.xid = xid
        self.database = database
        self.oids = oids


class DatabaseDrop(Item):
    """The record of DROP DATABASE that removes the files; it is not undone by an abort."""

    __slots__ = (  # noqa: RUF023 - the order of fields
        "lsn",
        "end_lsn",
        "xid",
        "database",
    )

    def __init__(
        self,
        lsn: int,
        end_lsn: int,
        xid: int,
        database: int,
    ) -> None:
        self.lsn = lsn
        self.end_lsn = end_lsn
        self.xid = xid
        self.database = database


class DatabaseMark(Item):
    """A database made unusable, in place: DROP DATABASE does so before anything else."""

    __slots__ = (  # noqa: RUF023 - the order of fields
        "lsn",
        "xid",
        "database",
    )

    def __init__(
        self,
        lsn: int,
        xid: int,
        database: int,
    ) -> None:
        self.lsn = lsn
        self.xid = xid
        self.database = database


class CatalogMove(Item):
    """pg_class of a database (0: none, only shared catalogs) got other files, by VACUUM FULL."""

    __slots__ = (  # noqa: RUF023 - the order of fields
        "lsn",
        "database",
        "class_file",
    )

    def __init__(
        self,
        lsn: int,
        database: int,
        class_file: int,
    ) -> None:
        self.lsn = lsn
        self.database = database
        self.class_file = class_file


class Deletions(Item):
    """Rows that a transaction deleted from one relation, in one segment.

    ``state`` is COMMITTED when it ended here, else OPEN; of a subtransaction that committed with
    its parent here, ``xid`` is the parent's. Rows of transactions that aborted here are left out.
    """

    __slots__ = (  # noqa: RUF023 - the order of fields
        "first_lsn",
        "xid",
        "database",
        "file",
        "rows",
        "state",
    )

    def __init__(
        self,
        first_lsn: int,
        xid: int,
        database: int,
        file: int,
        rows: int,
        state: str,
    ) -> None:
        self.first_lsn = first_lsn
        self.xid = xid
        self.database = database
        self.file = file
        self.rows = rows
        self.state = state


class SegmentKnowledge(Item):
    """Everything of one segment, each list in WAL order; ``more`` names lists that are cut off."""

    __slots__ = (  # noqa: RUF023 - the order of fields
        "unlinkings",
        "commits",
        "changes",
        "file_truncations",
        "table_truncations",
        "database_drops",
        "database_marks",
        "moves",
        "deletions",
        "more",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - a record
        self,
        unlinkings: tuple[Unlinking, ...] = (),
        commits: tuple[CatalogCommit, ...] = (),
        changes: tuple[CatalogChange, ...] = (),
        file_truncations: tuple[FileTruncation, ...] = (),
        table_truncations: tuple[TableTruncation, ...] = (),
        database_drops: tuple[DatabaseDrop, ...] = (),
        database_marks: tuple[DatabaseMark, ...] = (),
        moves: tuple[CatalogMove, ...] = (),
        deletions: tuple[Deletions, ...] = (),
        more: tuple[str, ...] = (),
    ) -> None:
        self.unlinkings = unlinkings
        self.commits = commits
        self.changes = changes
        self.file_truncations = file_truncations
        self.table_truncations = table_truncations
        self.database_drops = database_drops
        self.database_marks = database_marks
        self.moves = moves
        self.deletions = deletions
        self.more = more

    def to_json(self, start: int) -> dict[str, Any]:
        """As stored: LSNs as offsets from ``start``, data as base64, empty lists left out."""
        record: dict[str, Any] = {"v": VERSION}
        for name in self.__slots__:
            items = getattr(self, name)
            if items and name != "more":
                record[name] = [_packed(item, start) for item in items]
        if self.more:
            record["more"] = list(self.more)
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any], start: int) -> SegmentKnowledge | None:
        """Read what ``to_json`` wrote; None for a newer version, of which nothing is known.

        Raises ValueError, KeyError, TypeError or IndexError when it does not parse.
        """
        if record["v"] != VERSION:
            return None
        lists = {
            name: tuple(_unpacked(kind, item, start) for item in record.get(name, ()))
            for name, kind in _KINDS.items()
        }
        return cls(**lists, more=tuple(str(name) for name in record.get("more", ())))


_KINDS: dict[str, Any] = {
    "unlinkings": Unlinking,
    "commits": CatalogCommit,
    "changes": CatalogChange,
    "file_truncations": FileTruncation,
    "table_truncations": TableTruncation,
    "database_drops": DatabaseDrop,
    "database_marks": DatabaseMark,
    "moves": CatalogMove,
    "deletions": Deletions,
}
_POSITIONS = frozenset(("lsn", "end_lsn", "first_lsn"))


def _packed(item: Any, start: int) -> list[Any]:
    values = []
    for name in item.__slots__:
        value = getattr(item, name)
        if name in _POSITIONS:
            values.append(value - start)
        elif isinstance(value, bytes):
            values.append(b64encode(value).decode("ascii"))
        else:
            values.append(value)
    return values


def _unpacked(kind: Any, values: list[Any], start: int) -> Any:
    fields = []
    for name, value in zip(kind.__slots__, values, strict=False):
        if name in _POSITIONS:
            fields.append(value + start)
        elif name == "data":
            fields.append(b64decode(value, validate=True))
        else:
            fields.append(_as_tuple(value))
    return kind(*fields)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(part) for part in value) if isinstance(value, list) else value
