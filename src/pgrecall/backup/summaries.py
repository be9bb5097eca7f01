"""What the server's WAL summaries say of the time since the base: pages changed in main forks.

They tell of nothing else that may be relied upon: not of the visibility map, nor of any
other fork or file. What they do not vouch for is read.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pgrecall.codec.wal_summary import Blocks, read_summary
from pgrecall.errors import CorruptObjectError
from pgrecall.model.lsn import Lsn
from pgrecall.model.relation_files import RELATION_FILE

DIRECTORY = "pg_wal/summaries"

_NAME = re.compile(r"^([0-9A-F]{8})([0-9A-F]{16})([0-9A-F]{16})\.summary\Z")
_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 0.25
_DEFAULT_SPACE, _GLOBAL_SPACE = 1663, 1664
_MAIN_FORK = 0

_GLOBAL = re.compile(rb"^global\Z")
_BASE = re.compile(rb"^base/(\d+)\Z")
_SPACE = re.compile(rb"^pg_tblspc/(\d+)/PG_[^/]+/(\d+)\Z")

Relation = tuple[int, int, int]
"""OID of the tablespace, OID of the database, relfilenode."""


class Window(NamedTuple):
    """The WAL from ``start`` up to ``end``, of one timeline."""

    timeline: int
    start: Lsn
    end: Lsn


class SummaryGapError(Exception):
    """The summaries do not cover a window; the text says what is missing. Stays in this room."""


class _Summary(NamedTuple):
    start: int
    end: int
    name: str


class FileChanges(NamedTuple):
    """Of one file of a main fork: its pages that were changed, sorted, and from where on all are.

    Counted from the file's beginning. ``limit``: None, or the page from which on nothing is known.
    """

    pages: Blocks
    limit: int | None


class Changes:
    """Changed pages of all relations since the base."""

    def __init__(self, relation_blocks: int) -> None:
        """``relation_blocks``: pages in a whole relation file (1 GiB)."""
        self._relation_blocks = relation_blocks
        self._blocks: dict[Relation, list[Blocks]] = {}
        self._limits: dict[Relation, int] = {}
        self._databases: set[tuple[int, int]] = set()

    def add(self, name: str, data: bytes) -> None:
        """Take in a summary file; raises CorruptObjectError."""
        for entry in read_summary(name, data):
            if entry.relation == 0:
                self._databases.add((entry.tablespace, entry.database))
                continue
            if entry.fork != _MAIN_FORK:
                continue
            relation = entry.tablespace, entry.database, entry.relation
            self._limits[relation] = min(
                entry.limit_block, self._limits.get(relation, entry.limit_block)
            )
            self._blocks.setdefault(relation, []).append(entry.blocks)

    def of(self, path: bytes) -> FileChanges | None:
        """What is known of the file at ``path`` (relative to PGDATA); None: nothing is."""
        found = _relation(path)
        if found is None:
            return None
        relation, segment = found
        if relation[:2] in self._databases:
            return None
        first = segment * self._relation_blocks
        limit = self._limits.get(relation)
        if limit is not None and limit <= first:
            return None  # made anew, or emptied, in the meantime
        parts = self._blocks.get(relation, [])
        blocks = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        inside = blocks[(blocks >= first) & (blocks < first + self._relation_blocks)] - first
        inside.sort()
        inside = inside[np.diff(inside, prepend=-1) > 0]  # np.unique would load numpy.ma: 30 ms
        if limit is None or limit >= first + self._relation_blocks:
            return FileChanges(inside, None)
        return FileChanges(inside, limit - first)


def _relation(path: bytes) -> tuple[Relation, int] | None:
    """The relation and the file's number, for a file of a main fork; else None."""
    directory, _, name = path.rpartition(b"/")
    match = RELATION_FILE.match(name)
    if match is None or match.group(3) is not None:
        return None
    node, segment = int(match.group(1)), int(match.group(5) or 0)
    if _GLOBAL.match(directory):
        return (_GLOBAL_SPACE, 0, node), segment
    if (base := _BASE.match(directory)) is not None:
        return (_DEFAULT_SPACE, int(base.group(1)), node), segment
    if (space := _SPACE.match(directory)) is not None:
        return (int(space.group(1)), int(space.group(2)), node), segment
    return None


def read_changes(
    data_directory: str,
    window: Window,
    relation_blocks: int,
    *,
    progress: Callable[[], int],
    patience_seconds: float,
) -> Changes:
    """Changed pages of the window, from the summaries in ``data_directory``.

    Waits for the summarizer while ``progress`` (an LSN up to which it has read) moves on,
    up to ``patience_seconds`` at one place. Raises SummaryGapError: what is missing, or damaged.
    """
    summaries = _await(data_directory, window, progress, patience_seconds)
    changes = Changes(relation_blocks)
    for summary in summaries:
        try:
            with open(os.path.join(data_directory, DIRECTORY, summary.name), "rb") as file:
                changes.add(summary.name, file.read())
        except OSError as error:
            raise SummaryGapError(f"{summary.name} cannot be read: {error.strerror}") from error
        except CorruptObjectError as error:
            raise SummaryGapError(error.message) from error
    return changes


def _await(
    data_directory: str, window: Window, progress: Callable[[], int], patience_seconds: float
) -> list[_Summary]:
    pause = _PAUSE_SECONDS
    seen = -1
    deadline = time.monotonic() + patience_seconds
    while True:
        summaries = _listed(data_directory, window)
        reached = covered(summaries, window)
        if reached >= window.end:
            return summaries
        if any(summary.start > reached for summary in summaries):
            raise SummaryGapError(f"there is no WAL summary of {Lsn(reached)}, and newer ones are")
        if pause > _PAUSE_SECONDS and (now := progress()) != seen:
            seen, deadline = now, time.monotonic() + patience_seconds
        elif time.monotonic() >= deadline:
            raise SummaryGapError(
                f"the WAL summaries end at {Lsn(reached)}, and {window.end} is needed"
            )
        time.sleep(pause)  # nothing tells of a new summary but the directory
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _listed(data_directory: str, window: Window) -> list[_Summary]:
    """The summaries of the window's timeline that tell of any of it, by where they begin."""
    try:
        names = os.listdir(os.path.join(data_directory, DIRECTORY))
    except OSError as error:
        raise SummaryGapError(f"{DIRECTORY} cannot be read: {error.strerror}") from error
    found = []
    for name in names:
        match = _NAME.match(name)
        if match is None:
            continue
        timeline, start, end = (int(part, 16) for part in match.groups())
        if timeline == window.timeline and start < window.end and end > window.start:
            found.append(_Summary(start, end, name))
    return sorted(found)


def covered(summaries: list[_Summary], window: Window) -> int:
    """The LSN up to which the summaries cover the window from its start without a gap."""
    reached = int(window.start)
    for summary in summaries:
        if summary.start > reached:
            break
        reached = max(reached, summary.end)
    return reached
