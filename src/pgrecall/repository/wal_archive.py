"""The WAL archive as backup, restore and check read it: names, histories, indexes, gaps.

One object for one generation of one server. Listings and indexes are kept only
where what they tell cannot change: objects are immutable, absence is not. A
method that may be called from several threads says so.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from functools import partial
from itertools import islice
from typing import TypeVar

import msgspec

from pgrecall.errors import (
    CorruptObjectError,
    ObjectMissingError,
    StoreError,
    WalMissingError,
)
from pgrecall.model.catalog_items import WalSpan, merged_spans
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import HISTORY, SEGMENT, WalFile, history_name, segment_name
from pgrecall.model.wal_index import WalIndex
from pgrecall.repository import layout
from pgrecall.repository.identity import Generation, RepositoryIdentity, open_repository
from pgrecall.repository.wal_objects import WalObjectReader, read_index
from pgrecall.repository.wal_rollups import RollUp, RollUps
from pgrecall.repository.wal_tails import (
    StoredTail,
    find_tail,
    segments_with_tails,
    tail_frames,
    tail_index,
    timelines_with_tails,
)
from pgrecall.store.base import Store

_INDEX_THREADS = 16
_INDEXES_AHEAD = 64
# A terabyte of WAL has 65,536 segments; their indexes together would take hundreds of MB.
_INDEXES_KEPT = 4096
# A receiver stores a longer tail every few seconds; what is read here takes less.
_MAXIMUM_TRIES = 5
_HEX = frozenset("0123456789ABCDEF")

_Read = TypeVar("_Read")


class StoredSegment(msgspec.Struct, frozen=True):
    """A whole segment in the archive; ``stored_bytes`` is the size of its object."""

    name: str
    stored_bytes: int


class WalArchive:
    """Reads the archive of one generation. Thread-safe except where said."""

    def __init__(self, store: Store, server: str, generation: Generation) -> None:
        self.store = store
        self.server = server
        self.generation = generation
        self.segment_bytes = generation.segment_bytes
        self._identity: RepositoryIdentity | None = None
        self._sizes: dict[str, int] = {}
        self._stored_at: dict[str, datetime] = {}
        self._rollups = RollUps(store, server, generation.number)
        self._indexes: dict[str, WalIndex] = {}
        self._lock = threading.Lock()
        self._tails: dict[str, StoredTail] = {}
        self._hidden: dict[int, list[tuple[int, int]]] = {}
        #: What ``hide`` was told.
        self.hidden: tuple[WalSpan, ...] = ()

    def hide(self, spans: Iterable[WalSpan]) -> None:
        """Leave segments whose bytes lie in ``spans`` out of what is listed: they have expired."""
        self._hidden = {}
        self.hidden = tuple(spans)
        for span in merged_spans(self.hidden):
            if span.generation == self.generation.number:
                self._hidden.setdefault(span.timeline, []).append((span.start, span.end))

    # --- files -----------------------------------------------------------------

    def has(self, name: str) -> bool:
        """True when the file is archived; False only when it is proven absent."""
        return self.store.head(self._key(name)) is not None

    def read(self, name: str) -> bytes:
        """The raw file, every digest checked; in memory at once.

        Raises WalMissingError when it is proven absent, CorruptObjectError, StoreError.
        """
        return self._whole_or_tail(name, partial(self._read_whole, name), self._read_tail)

    def tail_end(self, name: str) -> Lsn | None:
        """Where the last whole record ends in the tail of a segment; None: there is no tail.

        From then on ``read`` and ``index`` give the tail, with zeros behind, as long
        as the segment itself is absent: that is what archive recovery is given.
        """
        for _ in range(_MAXIMUM_TRIES):
            tail = find_tail(self.store, self.server, self.generation, name)
            if tail is None:
                return None
            try:
                index = self._tail_index(tail)
            except ObjectMissingError:
                continue  # a longer one took its place
            self._tails[name] = tail
            end = min(tail.end, index.end_lsn)
            return Lsn(end) if end > index.start_lsn else None
        raise StoreError(
            f"the tail of {name} in {self.store.name} changes while it is read",
            hint="a receiver is at work on this server. Ask again",
        )

    def tails(self, timeline: int) -> list[str]:
        """Names of the segments of a timeline that have a tail, in WAL order, whole ones too."""
        return segments_with_tails(self.store, self.server, self.generation, timeline)

    def writer(self, name: str) -> str | None:
        """The restore id of the copy that pushed the file; None: the original server.

        Raises WalMissingError when it is proven absent, CorruptObjectError, StoreError.
        """
        identity = open_repository(self.store)
        key = self._key(name)
        try:
            with WalObjectReader(self.store, key, identity.raw_key(), reads_frames=False) as stored:
                return stored.header.writer
        except ObjectMissingError as error:
            raise self._missing(name) from error

    # --- timelines ---------------------------------------------------------------

    def timelines(self) -> list[int]:
        """Numbers of all timelines of which anything is archived; their order means nothing."""
        names = self.store.children(layout.wal_prefix(self.server, self.generation.number))
        others = {f"{layout.TAILS}/", f"{layout.GAPS}/"}
        return sorted(_directory_number(name) for name in names if name not in others)

    def timelines_with_tails(self) -> list[int]:
        """Numbers of all timelines of which a tail is stored; their order means nothing."""
        return timelines_with_tails(self.store, self.server, self.generation)

    def histories(self) -> dict[int, TimelineHistory]:
        """Every archived history by timeline; timeline 1 is among them always.

        A timeline above 1 whose history file is not archived is left out: its
        ancestors are not known.
        """
        found = {1: TimelineHistory(1)}
        for timeline in self.timelines():
            if timeline == 1:
                continue
            try:
                found[timeline] = self.history(timeline)
            except WalMissingError:
                continue
        return found

    def history(self, timeline: int) -> TimelineHistory:
        """The history of one timeline; raises WalMissingError when it is not archived."""
        if timeline == 1:
            return TimelineHistory(1)
        content = self.read(history_name(timeline))
        return TimelineHistory.parse(timeline, content.decode("utf-8", "surrogateescape"))

    # --- segments ------------------------------------------------------------------

    def segments(
        self, timeline: int, first: str | None = None, last: str | None = None
    ) -> Iterator[StoredSegment]:
        """Whole segments in the directory of ``timeline`` in WAL order, both bounds included.

        Bounds are names of segments; of another timeline, their position counts.
        """
        low = WalFile(first).segment[8:] if first else ""
        high = WalFile(last).segment[8:] if last else "~"
        prefix = layout.wal_prefix(self.server, self.generation.number, timeline)
        for child in self.store.children(prefix):
            log = child.rstrip("/")
            if not child.endswith("/") or not low[:8] <= log <= high[:8]:
                continue
            yield from self._segments_of_log(prefix + child, low, high)

    def newest(self, timeline: int) -> StoredSegment | None:
        """The whole segment with the highest position on a timeline; None for none."""
        prefix = layout.wal_prefix(self.server, self.generation.number, timeline)
        logs = [child for child in self.store.children(prefix) if child.endswith("/")]
        for log in reversed(logs):
            found = list(self._segments_of_log(prefix + log, "", "~"))
            if found:
                return found[-1]
        return None

    def newest_segments(self) -> dict[int, StoredSegment]:
        """``newest`` of every timeline that has segments."""
        found = ((timeline, self.newest(timeline)) for timeline in self.timelines())
        return {timeline: segment for timeline, segment in found if segment is not None}

    def _segments_of_log(self, prefix: str, low: str, high: str) -> Iterator[StoredSegment]:
        place = f"{prefix[-18:-10]}{prefix[-9:-1]}"
        for info in self.store.list(prefix):
            name = info.key[len(prefix) :]
            # A million are listed: what is plainly a segment of this place is not taken apart.
            if len(name) != 24 or name[:16] != place or not _HEX.issuperset(name):
                name = _segment_of(info.key)
            if name and low <= name[8:] <= high and not self._hides(name):
                self._sizes[name] = info.size
                self._stored_at[name] = info.stored_at
                yield StoredSegment(name, info.size)

    def _hides(self, name: str) -> bool:
        hidden = self._hidden.get(int(name[:8], 16)) if self._hidden else None
        if hidden is None:
            return False
        start = WalFile(name).start(self.segment_bytes)
        at = bisect_right(hidden, (start, 1 << 64)) - 1
        return at >= 0 and start + self.segment_bytes <= hidden[at][1]

    # --- paths -----------------------------------------------------------------------

    def path(self, history: TimelineHistory, from_lsn: int) -> Iterator[str]:
        """Names of the segments that recovery along ``history`` asks for, without an end.

        The segment in which a timeline begins is the child's: it holds the
        parent's bytes up to the switch as well (fact 1).
        """
        start = from_lsn - from_lsn % self.segment_bytes
        while True:
            yield self.candidates(history, start)[0]
            start += self.segment_bytes

    def candidates(self, history: TimelineHistory, lsn: int) -> list[str]:
        """Names under which the segment with ``lsn`` may be found, in PostgreSQL's order.

        Newest timeline first, those that begin in a later segment left out
        (XLogFileReadAnyTLI in xlogrecovery.c).
        """
        segment_end = lsn - lsn % self.segment_bytes + self.segment_bytes
        begins = [Lsn(0), *(switch.end for switch in history.switches)]
        timelines = [*(switch.timeline for switch in history.switches), history.timeline]
        usable = [
            timeline
            for timeline, begin in zip(timelines, begins, strict=True)
            if begin < segment_end
        ]
        return [segment_name(timeline, lsn, self.segment_bytes) for timeline in reversed(usable)]

    def first_gap(self, history: TimelineHistory, from_lsn: int, to_lsn: int) -> str | None:
        """The first segment that is missing for the bytes from ``from_lsn`` up to ``to_lsn``.

        None when every byte of that range is archived along ``history``. A parent's
        segment serves in place of a missing child's only for bytes before the switch.
        Lists each timeline's segments in the range once.
        """
        have: dict[int, set[str]] = {}
        lowest = segment_name(1, from_lsn, self.segment_bytes)
        highest = segment_name(1, max(from_lsn, to_lsn - 1), self.segment_bytes)
        for name in self.path(history, from_lsn):
            start = WalFile(name).start(self.segment_bytes)
            if start >= to_lsn:
                return None
            needed_end = min(to_lsn, start + self.segment_bytes)
            if not any(
                self._is_listed(have, candidate, (lowest, highest))
                for candidate in self.candidates(history, start)
                if self._reaches(history, candidate, needed_end)
            ):
                return name
        return None

    def _reaches(self, history: TimelineHistory, name: str, end: int) -> bool:
        """Whether the path follows that segment's timeline up to ``end`` (exclusive)."""
        left_at = history.end_of(WalFile(name).timeline)
        return left_at is None or end <= left_at

    def _is_listed(self, have: dict[int, set[str]], name: str, bounds: tuple[str, str]) -> bool:
        timeline = WalFile(name).timeline
        if timeline not in have:
            have[timeline] = {segment.name for segment in self.segments(timeline, *bounds)}
        return name in have[timeline]

    # --- indexes ---------------------------------------------------------------------

    def index(self, name: str) -> WalIndex:
        """The index of a segment: one small read of its end, or its directory's roll-up.

        The last 4,096 are kept.

        Raises WalMissingError when the segment is proven absent,
        CorruptObjectError, StoreError.
        """
        known = self._indexes.get(name)
        if known is not None:
            return known
        return self._whole_or_tail(name, partial(self._whole_index, name), self._tail_index)

    def _whole_index(self, name: str) -> WalIndex:
        key = self._key(name)
        try:
            data = self._rolled_up(name)
            if data is None:
                data = read_index(self.store, key, self._sizes.get(name))
            index = WalIndex.from_bytes(data)
        except CorruptObjectError as error:
            if key in error.message:
                raise
            raise CorruptObjectError(
                f"{key} in {self.store.name}: {error.message}", hint=error.hint
            ) from error
        expected = WalFile(name).start(self.segment_bytes)
        if index.start_lsn != expected:
            raise CorruptObjectError(
                f"the index of {key} in {self.store.name} is of LSN {index.start_lsn}, "
                f"not {expected}",
                hint="the object was moved; look for the right one",
            )
        with self._lock:
            self._indexes[name] = index
            if len(self._indexes) > _INDEXES_KEPT:
                del self._indexes[next(iter(self._indexes))]
        return index

    def indexes(self, names: Iterable[str]) -> Iterator[tuple[str, WalIndex]]:
        """Name and index of each, in the order of ``names``; read by 16 threads, 64 ahead.

        Raises as ``index``. What is not consumed is not read (beyond those ahead).
        """
        with ThreadPoolExecutor(_INDEX_THREADS, thread_name_prefix="wal-index") as pool:
            rest = iter(names)
            pending: deque[tuple[str, Future[WalIndex] | None]] = deque()

            def begin(name: str) -> None:
                # What is in memory with its directory's roll-up costs less than a thread's turn.
                is_here = self._rollups.has_loaded(name)
                pending.append((name, None if is_here else pool.submit(self.index, name)))

            try:
                for name in islice(rest, _INDEXES_AHEAD):
                    begin(name)
                while pending:
                    name, future = pending.popleft()
                    index = future.result() if future is not None else self.index(name)
                    for following in islice(rest, 1):
                        begin(following)
                    yield name, index
            finally:
                for _, future in pending:
                    if future is not None:
                        future.cancel()

    def note_listed(self, segments: Iterable[tuple[str, int, datetime]]) -> None:
        """Names, sizes and times of objects as a listing found them, for ``indexes`` of them."""
        for name, stored_bytes, stored_at in segments:
            self._sizes[name] = stored_bytes
            self._stored_at[name] = stored_at

    def rolled_up(self, timeline: int, log: str) -> RollUp | None:
        """As RollUps.whole."""
        return self._rollups.whole(timeline, log)

    def _rolled_up(self, name: str) -> bytes | None:
        """The index from its directory's roll-up; None when the segment's own must be read."""
        stored_at = self._stored_at.get(name)
        if stored_at is None:
            return None  # it was never listed: only its own object tells that it is there
        return self._rollups.index_of(name, self._sizes[name], stored_at)

    # --- the segment, or its tail -------------------------------------------------------

    def _whole_or_tail(
        self, name: str, whole: Callable[[], _Read], of_tail: Callable[[StoredTail], _Read]
    ) -> _Read:
        """The segment's, or else that of its tail, if ``tail_end`` was asked for it.

        Meanwhile a longer tail may take the place of this one, or the segment that of both.
        """
        for _ in range(_MAXIMUM_TRIES):
            try:
                return whole()
            except ObjectMissingError as error:
                if name not in self._tails:
                    raise self._missing(name) from error
            try:
                return of_tail(self._tails[name])
            except ObjectMissingError:
                longer = find_tail(self.store, self.server, self.generation, name)
                if longer is not None:
                    self._tails[name] = longer
        raise self._missing(name)

    def _read_whole(self, name: str) -> bytes:
        with WalObjectReader(self.store, self._key(name), self._raw_key()) as stored:
            if stored.header.name != name:
                raise CorruptObjectError(
                    f"{self._key(name)} in {self.store.name} holds {stored.header.name}",
                    hint="the object was moved; look for the right one",
                )
            return stored.read()

    def _read_tail(self, tail: StoredTail) -> bytes:
        whose = (self.server, self.generation)
        return b"".join(tail_frames(self.store, self._raw_key(), whose, tail))

    def _tail_index(self, tail: StoredTail) -> WalIndex:
        return tail_index(self.store, self.server, self.generation, tail)

    def _raw_key(self) -> bytes:
        identity = self._identity
        if identity is None:
            identity = self._identity = open_repository(self.store)
        return identity.raw_key()

    # --- names -----------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return layout.wal_key(self.server, self.generation.number, WalFile(name))

    def _missing(self, name: str) -> WalMissingError:
        what = "history file" if WalFile(name).kind == HISTORY else "WAL file"
        return WalMissingError(
            f"the {what} {name} of {self.server!r} is not in {self.store.name}",
            hint="look for it in the server's pg_wal and push it, or in another repository",
        )


def _segment_of(key: str) -> str:
    """The name of a segment's key; empty for another file; RepositoryError for what is none."""
    file = layout.parse_wal_key(key)[2]
    return file.name if file.kind == SEGMENT else ""


def _directory_number(name: str) -> int:
    """The timeline of a directory's name; raises WalFormatError for any other name."""
    stem = name.rstrip("/")
    return WalFile(f"{stem}.history").timeline
