"""A primary that goes on writing its timeline beyond where a newer one has left it. Light.

That is a former primary that came back after a failover, or one beside which a
standby was promoted by mistake: two servers take writes. What it writes beyond the
fork is refused, so that PostgreSQL's own log and statistics say so, until the
operator records which branch is right (repository/branches.py). Only a server that
writes the timeline itself is judged, by its own pg_control: what a standby or a
receiver hands on, and what is left of a timeline that the server has since left, is not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from pgrecall.errors import FormerPrimaryError, ObjectMissingError
from pgrecall.model.forks import Fork, first_passed, forks_of
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import SEGMENT
from pgrecall.repository.branches import (
    BranchRecord,
    allowed_forks,
    archived_timelines,
    branch_numbers,
    read_branch,
)
from pgrecall.repository.records import format_time
from pgrecall.wal.archives import Archive, dated_history
from pgrecall.wal.source import Source


class _Known:
    """What the archive said of one timeline."""

    __slots__ = ("allowed", "forks", "timeline")

    def __init__(self, timeline: int, forks: Sequence[Fork], allowed: Collection[Fork]) -> None:
        self.timeline = timeline
        self.forks = forks
        self.allowed = allowed


class Forks:
    """Where the timeline of an archive's primary was left, kept from proof to proof. Thread-safe.

    Histories and branch records are read once, they never change; which there are
    is asked each time.
    """

    __slots__ = ("_archive", "_branches", "_generation", "_histories", "_known", "_server")

    def __init__(self, archive: Archive, server: str, generation: int) -> None:
        """Nothing is asked yet."""
        self._archive = archive
        self._server = server
        self._generation = generation
        self._histories: dict[int, tuple[TimelineHistory, datetime | None]] = {}
        self._branches: dict[int, BranchRecord] = {}
        self._known: _Known | None = None

    def ask(self, timeline: int | None, listed: Sequence[int] | None = None) -> None:
        """Ask where ``timeline`` was left; None: forget what was known.

        ``listed``: what archived_timelines said just now. One listing, and a second one
        only where the timeline was left. Raises StoreError, CorruptObjectError.
        """
        self._known = None if timeline is None else self._asked(timeline, listed)

    def passed_by(self, source: Source) -> Fork | None:
        """The fork beyond which the server of ``source`` has written the file, or None.

        Raises StoreError, CorruptObjectError when it has to be asked and cannot be told.
        """
        timeline = judged_timeline(source)
        if timeline is None or source.index is None:
            return None
        known = self._known
        if known is None or known.timeline != timeline:
            known = self._known = self._asked(timeline, None)
        return first_passed(known.forks, source.index, known.allowed)

    def refusal(self, source: Source, fork: Fork) -> FormerPrimaryError:
        """The error to raise for a file that goes beyond ``fork``."""
        known = self._histories.get(fork.left_by)
        pushed_at = known[1] if known is not None else None
        when = f" (its history was archived at {format_time(pushed_at)})" if pushed_at else ""
        return FormerPrimaryError(
            f"{source.file.name} goes beyond {fork.at}, where timeline {fork.left_by} left "
            f"timeline {fork.timeline}{when}, and {source.pgdata} still writes timeline "
            f"{fork.timeline} as a primary. Nothing was stored in {self._archive.store.name}.",
            hint="two servers may take writes now. If this is the former primary, stop it and "
            "rebuild it as a standby (pg_rewind, or a new copy). If this one is right and the "
            "promotion was an accident, stop the other one and say "
            f"`pgrecall wal allow-branch {fork.timeline}`",
        )

    def _asked(self, timeline: int, listed: Sequence[int] | None) -> _Known:
        if listed is None:
            listed = archived_timelines(self._archive.store, self._server, self._generation)
        # A child's number is always the greater one.
        newer = [number for number in listed if number > timeline and self._has_history(number)]
        forks = forks_of((self._histories[number][0] for number in newer), timeline)
        return _Known(timeline, forks, self._allowed() if forks else ())

    def _has_history(self, timeline: int) -> bool:
        """Whether the history of ``timeline`` is archived; it is read when it was not yet."""
        if timeline not in self._histories:
            try:
                found = dated_history(self._archive, self._server, self._generation, timeline)
            except ObjectMissingError:
                return False  # nobody knows yet from where it comes
            self._histories[timeline] = found
        return True

    def _allowed(self) -> Collection[Fork]:
        store = self._archive.store
        numbers = branch_numbers(store, self._server, self._generation)
        for number in numbers:
            if number not in self._branches:
                self._branches[number] = read_branch(store, self._server, self._generation, number)
        return allowed_forks(self._branches[number] for number in numbers)


def judged_timeline(source: Source) -> int | None:
    """The timeline of a segment that its server writes as a primary; None for any other file."""
    control, file = source.control, source.file
    if control is None or file.kind != SEGMENT or control.primary_timeline != file.timeline:
        return None
    return file.timeline
