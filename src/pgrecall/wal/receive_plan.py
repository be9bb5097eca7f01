"""Where receiving goes on, and when it must not: decided from facts alone."""

from __future__ import annotations

from typing import NamedTuple

from pgrecall.errors import WalDivergedError
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, segment_start


class Position(NamedTuple):
    """A place in the WAL: ``lsn`` is the next byte, on ``timeline``."""

    timeline: int
    lsn: Lsn


class SpoolDiverged(Exception):
    """The server sent other bytes for ``segment``, at ``lsn``, than are in the spool."""

    def __init__(self, segment: str, lsn: Lsn) -> None:
        super().__init__(segment, lsn)
        self.segment = segment
        self.lsn = lsn


class Server(NamedTuple):
    """The server at this moment: ``at`` is what it has flushed, ``history`` its timeline's."""

    name: str
    at: Position
    history: TimelineHistory


def check_lineage(held: Position, server: Server) -> None:
    """Raise WalDivergedError unless the server's WAL continues what is held.

    Timelines are compared by the history file alone, never by number.
    """
    history = server.history
    if not history.is_ancestor_or_self(held.timeline):
        raise WalDivergedError(
            f"what was received ends on timeline {held.timeline} at {held.lsn}; the timeline"
            f" {history.timeline} of {server.name} does not descend from it. Nothing was"
            " overwritten",
            hint="is this the right server? If it was promoted from another branch and that is"
            " the right one, say --accept-divergence once",
        )
    left_at = history.end_of(held.timeline)
    if left_at is not None and held.lsn > left_at:
        raise WalDivergedError(
            f"what was received reaches {held.lsn} on timeline {held.timeline};"
            f" {server.name} left that timeline at {left_at}: {held.lsn - left_at} bytes are not"
            f" part of its timeline {history.timeline}. Nothing was overwritten",
            hint="commits in these bytes are lost on this server, and kept in the archive on"
            f" timeline {held.timeline}: restore with --timeline {held.timeline} reaches them. To"
            " go on with this server say --accept-divergence once",
        )
    if left_at is None and held.lsn > server.at.lsn:
        raise WalDivergedError(
            f"what was received reaches {held.lsn} on timeline {held.timeline}; {server.name}"
            f" has only written up to {server.at.lsn}. Nothing was overwritten",
            hint="the server was set back to an earlier state (a snapshot, a copied data"
            " directory, fsync = off), and writes other WAL under the same names: promote it to a"
            " new timeline and take a backup",
        )


def is_on_other_branch(held: Position, history: TimelineHistory) -> bool:
    """True when going on with the server overwrites nothing: it writes under other names."""
    return history.timeline != held.timeline


def start_of(
    held: Position | None, server: Server, slot_restart: Lsn | None, segment_bytes: int
) -> Position:
    """Where to start streaming: always at the beginning of a segment.

    With something held: its segment again, so that every byte that is there can be
    compared. Otherwise as far back as the slot keeps WAL, or where the server is.
    """
    if held is not None:
        return Position(held.timeline, segment_start(held.lsn, segment_bytes))
    lsn = segment_start(min(slot_restart or server.at.lsn, server.at.lsn), segment_bytes)
    return Position(server.history.timeline_at(lsn), lsn)


def after_timeline(timeline: int, begins_at: Lsn, segment_bytes: int) -> Position:
    """Where the next timeline starts: its first segment holds the old one's bytes as well."""
    return Position(timeline, segment_start(begins_at, segment_bytes))


def branch_start(held: Position, history: TimelineHistory, segment_bytes: int) -> Position | None:
    """Where to go on after an accepted divergence; None: as if nothing was held."""
    left_at = history.end_of(held.timeline)
    if left_at is None:
        return None
    lsn = segment_start(left_at, segment_bytes)
    return Position(history.timeline_at(left_at), lsn)


def archived_end(
    newest: dict[int, str], history: TimelineHistory, segment_bytes: int
) -> Position | None:
    """The end of what is archived along ``history``; ``newest``: last segment by timeline."""
    for timeline in (history.timeline, *(s.timeline for s in reversed(history.switches))):
        name = newest.get(timeline)
        if name is None:
            continue
        start = WalFile(name).start(segment_bytes)
        left_at = history.end_of(timeline)
        if left_at is not None and start >= left_at:
            continue  # of another branch
        end = Lsn(start + segment_bytes)
        return Position(timeline, end if left_at is None else min(end, left_at))
    return None
