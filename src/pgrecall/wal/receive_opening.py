"""What must be true of a server before its WAL is received, and where receiving goes on."""

from __future__ import annotations

import logging

from pgrecall.errors import (
    SlotError,
    SynchronousCommitError,
    WalDivergedError,
    WalGapError,
)
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, segment_start
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.replication import ReplicationSession, SystemFacts
from pgrecall.postgres.slots import (
    LOST,
    PHYSICAL,
    UNRESERVED,
    SlotState,
    commit_levels,
    hanging_levels,
    slot_keep_bytes,
    slot_state,
    synchronous_state,
    weaker_levels,
)
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.wal.archives import parse_history
from pgrecall.wal.receive_plan import Position, Server, archived_end

_log = logging.getLogger(__name__)


class Warnings:
    """What does not keep WAL from being received, each by its code; logged once."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def say(self, code: str, message: str) -> None:
        """Remember and, if it is new, log."""
        if self._said.get(code) != message:
            _log.warning("%s", message)
            self._said = {**self._said, code: message}

    def take_back(self, code: str) -> None:
        """It is no longer so."""
        if code in self._said:
            self._said = {key: said for key, said in self._said.items() if key != code}

    def all(self) -> dict[str, str]:
        """Messages by code; from any thread."""
        return self._said


def ready_slot(
    connection: Connection, session: ReplicationSession, name: str, warnings: Warnings
) -> SlotState:
    """The slot, made when it is missing (fact 10); raises SlotError when it cannot serve."""
    found = slot_state(connection, name)
    if found is None:
        session.create_slot(name)
        _log.info("made the replication slot %r", name)
        found = slot_state(connection, name)
    if found is None or found.kind != PHYSICAL:
        raise SlotError(
            f"the replication slot {name!r} of {connection.where} is not a physical one",
            hint="choose another name: receive.slot",
        )
    watch_slot(connection, found, warnings)
    if slot_keep_bytes(connection) is None:
        warnings.say(
            "slot-unlimited",
            "max_slot_wal_keep_size is -1: while nothing receives, the slot keeps WAL until the"
            " disk of the server is full",
        )
    return found


def watch_slot(connection: Connection, slot: SlotState, warnings: Warnings) -> None:
    """Raise SlotError when the slot has lost WAL; warn when it is about to."""
    if slot.wal_status == LOST or slot.invalidation:
        why = f" ({slot.invalidation})" if slot.invalidation else ""
        since = f" It kept WAL from {slot.restart_lsn} on." if slot.restart_lsn else ""
        raise SlotError(
            f"the replication slot {slot.name!r} of {connection.where} is lost{why}: the server"
            f" has removed WAL that was not received.{since} Without the archive_command that WAL"
            " is gone",
            hint=f"pgrecall wal slots --drop {slot.name}; the next wal receive makes it anew and"
            " names the gap, unless the archive has the WAL. Raise max_slot_wal_keep_size",
        )
    if slot.wal_status == UNRESERVED:
        warnings.say(
            "slot-unreserved",
            f"the replication slot {slot.name!r} is about to lose WAL: it keeps"
            f" {slot.retained_bytes} bytes, more than max_slot_wal_keep_size",
        )
    else:
        warnings.take_back("slot-unreserved")


def watch_commits(
    connection: Connection, walsender_pid: int, is_synchronous: bool, warnings: Warnings
) -> None:
    """Hold synchronous_commit against what a receiver can promise (fact 9).

    Raises SynchronousCommitError for remote_apply while this is a chosen
    synchronous standby: nothing is ever applied here, such commits hang.
    """
    state = synchronous_state(connection, walsender_pid)
    if state not in ("sync", "quorum"):
        warnings.take_back("commit-level")
        if is_synchronous:
            warnings.say(
                "not-chosen",
                f"the receiver is synchronous, and the server does not wait for it"
                f" ({state or 'not streaming'}): name it in synchronous_standby_names",
            )
        return
    warnings.take_back("not-chosen")
    levels = commit_levels(connection)
    hanging = hanging_levels(levels)
    if hanging:
        raise SynchronousCommitError(
            f"synchronous_commit is remote_apply for {', '.join(hanging)}, and commits wait for"
            " this receiver, which never applies anything: they hang for ever",
            hint="set synchronous_commit = on there, or take the receiver out of"
            " synchronous_standby_names, and reload",
        )
    weaker = weaker_levels(levels)
    if weaker:
        warnings.say(
            "commit-level",
            f"synchronous_commit is {', '.join(weaker)}: such commits are acknowledged before they"
            " are on the receiver's disk",
        )
    else:
        warnings.take_back("commit-level")
    if not is_synchronous:
        warnings.say(
            "not-synchronous",
            "commits wait for this receiver, and it is not synchronous: they wait up to a second"
            " longer than they need (receive.is_synchronous)",
        )


# --- where to go on -----------------------------------------------------------------------


def server_of(
    session: ReplicationSession, facts: SystemFacts
) -> tuple[Server, tuple[str, bytes] | None]:
    """The server's place and history, and the history file (None on timeline 1)."""
    file = session.timeline_history(facts.timeline) if facts.timeline > 1 else None
    history = TimelineHistory(1) if file is None else parse_history(facts.timeline, file[1])
    at = Position(facts.timeline, facts.flushed_to)
    return Server(session.where, at, history), file


def archive_frontier(archives: list[WalArchive], server: Server) -> Position | None:
    """Where the archive ends along the server's history, in the repository that has least."""
    ends = []
    for archive in archives:
        newest = {number: found.name for number, found in archive.newest_segments().items()}
        ends.append(archived_end(newest, server.history, archive.segment_bytes))
    known = [end for end in ends if end is not None]
    return min(known, key=lambda end: end.lsn) if len(known) == len(ends) else None


def bridge(
    archives: list[WalArchive], server: Server, held: Position, slot: SlotState
) -> tuple[Position, tuple[Lsn, Lsn] | None]:
    """Where to go on when the server has removed what comes after ``held``.

    The archive may have it (archive_command was at work): then behind that, and no
    gap. Otherwise where the slot begins to keep WAL, and the gap's first byte and
    the byte behind its last. Raises WalGapError when not even that is known.
    """
    size = archives[0].segment_bytes
    asked = segment_start(held.lsn, size)
    starts = []
    for archive in archives:
        missing = archive.first_gap(server.history, asked, server.at.lsn)
        there = segment_start(server.at.lsn, size)
        starts.append(WalFile(missing).start(size) if missing else there)
    reached = min(starts)
    if reached > asked:
        return Position(server.history.timeline_at(reached), reached), None
    kept_from = slot.restart
    if kept_from is None or segment_start(kept_from, size) <= asked:
        raise WalGapError(
            f"{server.name} has removed the WAL from {held.lsn} on, the archive does not have it,"
            f" and the slot {slot.name!r} keeps nothing behind it",
            hint=f"drop the slot (pgrecall wal slots --drop {slot.name}) and start again",
        )
    begin = segment_start(kept_from, size)
    return Position(server.history.timeline_at(begin), begin), (held.lsn, begin)


def gap_error(server: Server, gap: tuple[Lsn, Lsn]) -> WalGapError:
    """The gap with its size, and what to do."""
    start, end = gap
    return WalGapError(
        f"{server.name} has removed the WAL from {start} to {end} ({end - start} bytes) before it"
        " was received, and the archive does not have it: a gap",
        hint="if a standby or the server's pg_wal still has these segments, push them (pgrecall"
        " wal push). Otherwise take a backup, and say --accept-gap once: the gap is recorded in"
        " the repository",
    )


def diverged_bytes(segment: str, lsn: Lsn, where: str) -> WalDivergedError:
    """The server sends other bytes under a name that is in the spool."""
    return WalDivergedError(
        f"{where} sends other bytes for {segment}, from {lsn} on, than were received before."
        " Nothing was overwritten",
        hint="the server was set back (a snapshot, a copied data directory), or is another one:"
        " promote it to a new timeline; `pgrecall wal receive --salvage` stores what the spool"
        " holds",
    )
