"""A copy must not replay CREATE TABLESPACE into a directory that somebody else uses (light).

PostgreSQL replays the creation into the very directory that the record names:
it drops what lies there under its own version's name, and links to it
(tablespace.c, create_tablespace_directories). Beside production that would be
production's own tablespace (fact 20). The plan of a restore looks for such
records; this is for those that arrive after the plan was made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from pgrecall.codec.wal_crossing import OPEN, UNREADABLE, complete_crossing
from pgrecall.codec.wal_records import creates_tablespace
from pgrecall.errors import DestinationError
from pgrecall.model.wal_index import TablespaceCreation, WalIndex


def crossing_tablespaces(earlier: WalIndex, index: WalIndex) -> list[TablespaceCreation]:
    """The creation whose record begins in the segment before and ends in that of ``index``."""
    crossing = complete_crossing([earlier, index])
    if isinstance(crossing.record, TablespaceCreation):
        return [crossing.record]
    unfinished = earlier.unfinished
    if unfinished is None or crossing.outcome not in (OPEN, UNREADABLE):
        return []
    if not creates_tablespace(unfinished.head):
        return []
    # Where is not known: that it may be anywhere is reason enough to stop.
    return [TablespaceCreation(unfinished.lsn, 0, os.sep, is_whole=False)]


def refuse_shared_tablespaces(
    pgdata: str, name: str, created: Iterable[TablespaceCreation], planned_to: int
) -> None:
    """Raise DestinationError when replaying segment ``name`` would take a directory in use.

    ``pgdata`` is the copy's, ``created`` what the segment creates. Records before
    ``planned_to`` were looked at when the restore was planned: recovery stops
    before what would do harm. A directory that the copy links to already is its
    own: recovery was begun before. One that is absent or empty harms nobody.
    """
    for made in created:
        if not made.location or made.lsn < planned_to:
            continue  # in place, which is inside of the copy; or planned for
        link = os.path.join(pgdata, "pg_tblspc", str(made.oid))
        if os.path.islink(link) and os.path.realpath(link) == os.path.realpath(made.location):
            continue
        try:
            holds = bool(os.listdir(made.location)) if made.is_whole else True
        except FileNotFoundError:
            continue
        except OSError:
            holds = True
        if holds:
            raise DestinationError(
                f"{name} creates a tablespace in {made.location} (at {made.lsn}), which is in use:"
                f" the copy {pgdata} would change the files that are there",
                hint=f"stop before it (--to-lsn {made.lsn} --exclusive), restore from a backup"
                " taken since, whose tablespaces can be mapped, or restore on another host",
            )
