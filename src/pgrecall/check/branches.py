"""Two servers that archive beside each other on branches of one history."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import combinations

import msgspec

from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, history_name
from pgrecall.repository import layout
from pgrecall.repository.wal_archive import WalArchive

_RECENT = timedelta(days=1)
_FIRST = datetime(1, 1, 1, tzinfo=UTC)


class Branch(msgspec.Struct, frozen=True):
    """A timeline as the archive has it; times are the store's.

    ``born_at``: when its history file was stored (timeline 1 has none: long ago).
    ``newest`` is its segment of the highest position, which begins at ``newest_start``.
    """

    history: TimelineHistory
    born_at: datetime
    newest: str
    newest_start: Lsn
    newest_at: datetime


def read_branches(archive: WalArchive) -> list[Branch]:
    """Every timeline that has a history and a segment; raises StoreError, CorruptObjectError."""
    newest = archive.newest_segments()
    found = []
    for timeline, history in archive.histories().items():
        if timeline not in newest:
            continue
        name = newest[timeline].name
        stored = _stored_at(archive, name)
        born = _FIRST if timeline == 1 else _stored_at(archive, history_name(timeline))
        if stored is None or born is None:
            continue  # gone since it was listed: an expiry, no split brain
        start = Lsn(WalFile(name).start(archive.segment_bytes))
        found.append(Branch(history, born, name, start, stored))
    return found


def side_by_side(branches: list[Branch], subject: str, now: datetime) -> Iterator[Finding]:
    """A warning for two timelines that grew at the same time, neither leading to the other.

    After a recovery the branch that was left ends before the new one begins. One that
    still gets segments after that is a server that nobody stopped. Both must have grown within
    a day: what was sorted out long ago is history.
    """
    for one, two in combinations(branches, 2):
        older, younger = sorted((one, two), key=lambda branch: branch.born_at)
        left_at = younger.history.end_of(older.history.timeline)
        if left_at is not None and older.newest_start < left_at:
            continue  # it went on into the younger one, and no further
        if left_at is None and older.history.end_of(younger.history.timeline) is not None:
            continue  # stored in an odd order: the younger one is its ancestor
        overlaps = older.newest_at > younger.born_at
        is_recent = now - min(older.newest_at, younger.newest_at) < _RECENT
        if overlaps and is_recent:
            yield _finding(older, younger, subject)


def _finding(older: Branch, younger: Branch, subject: str) -> Finding:
    first, second = older.history.timeline, younger.history.timeline
    return Finding(
        severity="warn",
        code="timelines-side-by-side",
        subject=subject,
        message=f"timelines {first} and {second} both grow, and neither continues the other: "
        f"{older.newest} was stored at {_shown(older.newest_at)}, after timeline {second} had "
        f"begun ({_shown(younger.born_at)}), and {younger.newest} at {_shown(younger.newest_at)}",
        hint="two servers run as this one (a clone that archives, an old primary that came back): "
        "find out which is right, stop the other, and restore with --timeline",
    )


def _shown(at: datetime) -> str:
    return at.isoformat(sep=" ", timespec="seconds")


def _stored_at(archive: WalArchive, name: str) -> datetime | None:
    key = layout.wal_key(archive.server, archive.generation.number, WalFile(name))
    info = archive.store.head(key)
    return info.stored_at if info is not None else None
