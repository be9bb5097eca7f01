"""Transactions that deleted many rows, summed over the segments that they span. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pgrecall.model.wal_index import WalIndex
from pgrecall.model.wal_knowledge import COMMITTED, Deletions
from pgrecall.wal.name_tracker import NameTracker, Table

MANY_ROWS = 1000
FEWEST_ROWS = 100
"""A tenth of a table is many, too, if it is at least so many rows."""


class Deleted(NamedTuple):
    """Rows of one relation; ``table`` is None when its name is not known."""

    first_lsn: int
    database: int
    file: int
    rows: int
    table: Table | None


class DeletionSums:
    """Adds up what segments tell, in WAL order."""

    def __init__(self, tracker: NameTracker) -> None:
        self._tracker = tracker
        self._sums: dict[int, dict[tuple[int, int], tuple[int, int]]] = {}

    def take(self, deletions: tuple[Deletions, ...]) -> list[int]:
        """Add one segment's; the transactions among them that committed in it."""
        ended = {}
        for item in deletions:
            of_transaction = self._sums.setdefault(item.xid, {})
            first, rows = of_transaction.get((item.database, item.file), (item.first_lsn, 0))
            of_transaction[item.database, item.file] = (first, rows + item.rows)
            if item.state == COMMITTED:
                ended[item.xid] = True
        return list(ended)

    def may_end_in(self, index: WalIndex) -> list[int]:
        """Transactions with many rows that may have ended in a segment, by its bounds of xids."""
        if not index.greatest_xid:
            return []
        return [
            xid
            for xid in self._sums
            if index.least_xid <= xid <= index.greatest_xid and self.is_worth_it(xid)
        ]

    def end(self, xid: int, *, is_commit: bool) -> Iterator[Deleted]:
        """A transaction ended: what it deleted of tables of which it was much."""
        sums = self._sums.pop(xid, {})
        if is_commit:
            yield from self._worth(sums)

    def still_open(self) -> Iterator[tuple[int, Deleted]]:
        """Transactions with many rows whose end was not seen, and what they deleted."""
        for xid, sums in self._sums.items():
            for deleted in self._worth(sums):
                yield xid, deleted

    def is_worth_it(self, xid: int) -> bool:
        """Whether a transaction deleted many rows, so far."""
        return any(True for _ in self._worth(self._sums[xid]))

    def _worth(self, sums: dict[tuple[int, int], tuple[int, int]]) -> Iterator[Deleted]:
        for (database, file), (first_lsn, rows) in sums.items():
            if rows < FEWEST_ROWS:
                continue
            table = self._tracker.table_of_file(database, file)
            if table is not None and table.kind not in "rpm":
                continue
            if rows >= MANY_ROWS or (table is not None and 0 < table.rows <= rows * 10):
                yield Deleted(first_lsn, database, file, rows, table)
