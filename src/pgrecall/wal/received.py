"""Segments that a standby received and the archive may lack (fact 4).

A standby declares nothing ready (archive_mode = on): what its primary died with
exists in its pg_wal only, and is recycled there soon after a promotion. So every
segment of which it is **proven** that all of it was received is a candidate:

- of an ancestor's timeline: what ends at or before the point where the path of
  the current timeline leaves it (that was replayed);
- of the timeline that is being received: what ends at or before a position that
  pg_control vouches for, or is followed by a segment that has begun (the receiver
  writes one after the other, and syncs one before the next).

Whatever else pg_wal holds is left alone: the unfinished segment, its ``.partial``
after a promotion, files recycled for later (their page address is an old one),
other timelines, and what the server wrote itself when it was a primary and another
one went on (that is ``.ready``; what was received is ``.done``: XLogArchiveForceDone
in walreceiver.c and xlogarchive.c). Last, the records of the segment itself must
lead to its end.
"""

from __future__ import annotations

import os
import time

from pgrecall.codec.wal_scan import LONG_HEADER_BYTES, read_segment_header, scan_segment
from pgrecall.errors import DataDirectoryError, WalFormatError
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, history_name, segment_name
from pgrecall.model.wal_index import STOPPED_AT_INVALID
from pgrecall.postgres.control import ControlData
from pgrecall.wal.archives import parse_history
from pgrecall.wal.ready import FileIdentity, histories_in, identity_of, segments_in
from pgrecall.wal.source import LARGEST_SMALL_FILE, opened

GRACE_SECONDS = 2.0
"""So long a standby leaves a segment to its primary, which archives it too if all is well."""


class Received:
    """Candidates in one data directory, across calls: what is archived is not asked for again."""

    def __init__(self, pgdata: str) -> None:
        self.is_standby = False
        self.is_recovering = False
        self._pgdata = pgdata
        self._archived: set[str] = set()
        self._first_seen: dict[str, float] = {}
        self._doubtful: dict[str, FileIdentity] = {}

    def candidates(self, control: ControlData) -> list[str]:
        """What is to be archived of what was received; sets ``is_standby`` and ``is_recovering``.

        History files and segments, in order, that were received whole and may be missing.

        Empty on a primary that was never promoted. Raises DataDirectoryError,
        WalFormatError (a damaged history file).
        """
        is_in_production = control.state == "in production"
        # A primary that is started as a standby is "in production" until it has begun to recover.
        self.is_standby = os.path.exists(f"{self._pgdata}/standby.signal")
        self.is_recovering = (
            self.is_standby
            or control.state == "in archive recovery"
            or os.path.exists(f"{self._pgdata}/recovery.signal")
        )
        timeline = control.timeline
        if self.is_standby:
            timeline = max(timeline, control.min_recovery_timeline)
        elif not is_in_production or timeline == 1:
            return []
        history = self._history(timeline)
        if history is None:
            return []
        present = segments_in(self._pgdata)
        self._forget(present)
        lineage = {history_name(switch.timeline) for switch in history.switches[1:]}
        if self.is_standby and history.switches:
            lineage.add(history_name(timeline))
        names = [name for name in histories_in(self._pgdata) if name in lineage]
        names += present
        return [
            name
            for name in names
            if name not in self._archived
            and self._is_received(name, control, history)
            and self._is_due(name)
        ]

    def note_archived(self, name: str) -> None:
        """The archive has it: it is no candidate any more."""
        self._archived.add(name)

    def is_whole(self, name: str) -> bool:
        """Whether the records of a candidate lead to its end; a segment is read for that.

        Raises DataDirectoryError, WalFormatError.
        """
        file = WalFile(name)
        if not file.segment:
            return True
        path = f"{self._pgdata}/pg_wal/{name}"
        identity = identity_of(path)
        if self._doubtful.get(name) == identity:
            return False
        with opened(path, file) as raw:
            start = file.start(len(raw))
            is_whole = scan_segment(raw, start).index.stopped_at != STOPPED_AT_INVALID
        if not is_whole:
            self._doubtful[name] = identity
        return is_whole

    @property
    def doubtful(self) -> int:
        """Segments that by their position should be whole, and whose records end before."""
        return len(self._doubtful)

    def _history(self, timeline: int) -> TimelineHistory | None:
        if timeline == 1:
            return TimelineHistory(1)
        path = f"{self._pgdata}/pg_wal/{history_name(timeline)}"
        try:
            with open(path, "rb") as file:
                return parse_history(timeline, file.read(LARGEST_SMALL_FILE))
        except FileNotFoundError:
            return None  # without it nobody knows which segments belong to the path
        except OSError as error:
            raise DataDirectoryError(f"cannot read {path}: {error.strerror}") from error

    def _forget(self, present: list[str]) -> None:
        """What was recycled is remembered no longer than it is there."""
        here = set(present)
        self._archived = {name for name in self._archived if name in here or "." in name}
        for kept in (self._first_seen, self._doubtful):
            for name in [name for name in kept if name not in here and "." not in name]:
                del kept[name]

    def _is_due(self, name: str) -> bool:
        seen = self._first_seen.setdefault(name, time.monotonic())
        return not self.is_standby or time.monotonic() - seen >= GRACE_SECONDS

    def _is_received(self, name: str, control: ControlData, history: TimelineHistory) -> bool:
        file = WalFile(name)
        if not file.segment:
            return True
        if not history.is_ancestor_or_self(file.timeline):
            return False
        end = file.start(control.segment_bytes) + control.segment_bytes
        left_at = history.end_of(file.timeline)
        if left_at is None and not self.is_standby:
            return False  # a primary's own timeline: archive_status tells
        if left_at is not None and end > left_at:
            return False
        if not os.path.exists(f"{self._pgdata}/pg_wal/archive_status/{name}.done"):
            return False
        if not self._begins(name, control):
            return False
        if left_at is not None or end <= _vouched_for(control, file.timeline):
            return True
        following = segment_name(file.timeline, end, control.segment_bytes)
        return self._begins(following, control)

    def _begins(self, name: str, control: ControlData) -> bool:
        """Whether the file's first page is the one that its name promises."""
        path = f"{self._pgdata}/pg_wal/{name}"
        try:
            with open(path, "rb", buffering=0) as file:
                header = read_segment_header(file.read(LONG_HEADER_BYTES))
                size = os.fstat(file.fileno()).st_size
        except (FileNotFoundError, WalFormatError):
            return False
        except OSError as error:
            raise DataDirectoryError(f"cannot read {path}: {error.strerror}") from error
        return (
            header.page_address == WalFile(name).start(control.segment_bytes)
            and header.system_identifier == control.system_identifier
            and header.segment_bytes == control.segment_bytes == size
        )


def _vouched_for(control: ControlData, timeline: int) -> Lsn:
    """Up to where pg_control says that the WAL of ``timeline`` was replayed."""
    positions = [Lsn(0)]
    if control.min_recovery_timeline == timeline:
        positions.append(control.min_recovery_point)
    if control.timeline == timeline:
        positions.append(control.checkpoint_lsn)
    return max(positions)
