"""WAL that lies in the pg_wal of a PGDATA that is to be replaced, and in no archive (fact 27).

A view of the archive with those files added: a recovery is planned with them, before any of them
was pushed. Where both have a name, the archive's counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pgrecall.codec.wal_scan import LONG_HEADER_BYTES, read_segment_header, scan_segment
from pgrecall.errors import DestinationError, WalFormatError
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import HISTORY, SEGMENT, WalFile
from pgrecall.model.wal_index import STOPPED_AT_INVALID, WalIndex
from pgrecall.restore.replay import ArchiveView, SegmentView

_LARGEST_HISTORY = 1 << 20


class LocalSegment:
    """A segment in pg_wal; satisfies SegmentView."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class LocalWal:
    """The segments of one system in ``directories``; each file is read when it is asked for.

    Several directories: while a PGDATA is being moved, a file is in one of two.
    """

    def __init__(
        self, directories: Sequence[str], *, system_identifier: int, segment_bytes: int
    ) -> None:
        self.segment_bytes = segment_bytes
        self._directories = directories
        self._system = system_identifier
        self._indexes: dict[str, WalIndex] = {}

    def names(self) -> list[str]:
        """Segments that begin as their names say, whole or not, by timeline and position.

        Files that PostgreSQL recycled for later do not: they begin with an old page.
        """
        found = {
            name
            for directory in self._directories
            for name in _listed(directory)
            if _kind(name) == SEGMENT and self._begins(os.path.join(directory, name))
        }
        return sorted(found)

    def histories(self) -> dict[int, TimelineHistory]:
        """The histories that lie there, those that parse."""
        found = {}
        for directory in self._directories:
            for name in _listed(directory):
                if _kind(name) != HISTORY:
                    continue
                timeline = WalFile(name).timeline
                with open(os.path.join(directory, name), "rb") as file:
                    text = file.read(_LARGEST_HISTORY).decode("utf-8", "surrogateescape")
                found[timeline] = TimelineHistory.parse(timeline, text)
        return found

    def index(self, name: str) -> WalIndex:
        """The index of a segment; raises WalFormatError, DestinationError."""
        if name not in self._indexes:
            raw = self.read(name)
            start = WalFile(name).start(self.segment_bytes)
            self._indexes[name] = scan_segment(raw, start).index
        return self._indexes[name]

    def read(self, name: str) -> bytes:
        """A segment's bytes, with zeros behind where its WAL ends; raises DestinationError."""
        path = self.path(name)
        try:
            with open(path, "rb") as file:
                raw = file.read()
        except OSError as error:
            raise DestinationError(f"{path} cannot be read: {error.strerror}") from error
        start = WalFile(name).start(self.segment_bytes)
        index = scan_segment(raw, start).index
        if index.stopped_at != STOPPED_AT_INVALID:
            return raw
        end = index.end_lsn - start
        return raw[:end] + bytes(len(raw) - end)

    def is_whole(self, name: str) -> bool:
        """Whether the segment's records lead to its end."""
        return self.index(name).stopped_at != STOPPED_AT_INVALID

    def path(self, name: str) -> str:
        """Where a file is now; raises DestinationError when it is in none of the directories."""
        for directory in self._directories:
            path = os.path.join(directory, name)
            if os.path.exists(path):
                return path
        raise DestinationError(
            f"{name} is gone from {self._directories[0]} since this restore was planned",
            hint="run it again; was the server started meanwhile?",
        )

    def _begins(self, path: str) -> bool:
        try:
            with open(path, "rb", buffering=0) as file:
                header = read_segment_header(file.read(LONG_HEADER_BYTES))
                size = os.fstat(file.fileno()).st_size
            start = WalFile(os.path.basename(path)).start(self.segment_bytes)
        except WalFormatError:
            return False
        except OSError as error:
            raise DestinationError(
                f"{path} cannot be read: {error.strerror}",
                hint="it may hold the last minutes of data: run the restore as the user that owns"
                " the data directory",
            ) from error
        return (
            header.page_address == start
            and header.system_identifier == self._system
            and header.segment_bytes == self.segment_bytes == size
        )


class WithLocalWal:
    """An archive, and what ``local`` has beyond it; satisfies ArchiveView.

    ``only_here`` are the names that no plan can find in the archive: what was
    looked up so far, and is here.
    """

    def __init__(self, archive: ArchiveView, local: LocalWal) -> None:
        self.segment_bytes = archive.segment_bytes
        self._archive = archive
        self._local = local
        self._archived: dict[int, set[str]] = {}
        self._here = local.names()
        self._tails: set[str] = set()

    def only_here(self) -> list[str]:
        """Segments of which the archive lacks the whole, by timeline and position."""
        return [name for name in self._here if not self._is_archived(name)]

    def histories(self) -> dict[int, TimelineHistory]:
        """The archive's, and those that are here alone."""
        return {**self._local.histories(), **self._archive.histories()}

    def segments(self, timeline: int, first: str | None = None) -> Iterable[SegmentView]:
        """The archive's, then the whole ones that are here alone."""
        yield from self._archive.segments(timeline, first)
        low = first[8:] if first else ""
        for name in self.only_here():
            if int(name[:8], 16) == timeline and name[8:] >= low and self._local.is_whole(name):
                yield LocalSegment(name)

    def candidates(self, history: TimelineHistory, lsn: int) -> list[str]:
        """As the archive's."""
        return self._archive.candidates(history, lsn)

    def indexes(self, names: Iterable[str]) -> Iterator[tuple[str, WalIndex]]:
        """In the order of ``names``."""
        wanted = list(names)
        theirs = self._archive.indexes([name for name in wanted if not self._is_from_here(name)])
        for name in wanted:
            yield (name, self._local.index(name)) if self._is_from_here(name) else next(theirs)

    def index(self, name: str) -> WalIndex:
        """The archive's, or what is here."""
        if self._is_from_here(name):
            return self._local.index(name)
        return self._archive.index(name)

    def read(self, name: str) -> bytes:
        """The archive's, or what is here."""
        return self._local.read(name) if self._is_from_here(name) else self._archive.read(name)

    def newest_segments(self) -> Mapping[int, SegmentView]:
        """Of every timeline, whichever is the later one."""
        newest = dict(self._archive.newest_segments())
        for name in self.only_here():
            timeline = int(name[:8], 16)
            known = newest.get(timeline)
            if self._local.is_whole(name) and (known is None or known.name < name):
                newest[timeline] = LocalSegment(name)
        return newest

    def tail_end(self, name: str) -> Lsn | None:
        """Where the last whole record ends: in the archive's tail, or here if that goes further."""
        theirs = self._archive.tail_end(name)
        if name not in self._here or self._is_archived(name):
            return theirs
        index = self._local.index(name)
        ours = index.end_lsn if index.end_lsn > index.start_lsn else None
        if ours is None or (theirs is not None and theirs >= ours):
            return theirs
        self._tails.add(name)
        return ours

    def _is_from_here(self, name: str) -> bool:
        if name not in self._here or self._is_archived(name):
            return False
        return name in self._tails or self._local.is_whole(name)

    def _is_archived(self, name: str) -> bool:
        timeline = int(name[:8], 16)
        if timeline not in self._archived:
            lowest = min(own for own in self._here if int(own[:8], 16) == timeline)
            found = self._archive.segments(timeline, lowest)
            self._archived[timeline] = {segment.name for segment in found}
        return name in self._archived[timeline]


def _kind(name: str) -> str:
    try:
        return WalFile(name).kind
    except WalFormatError:
        return ""


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DestinationError(f"{directory} cannot be read: {error.strerror}") from error
