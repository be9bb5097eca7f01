"""What the archive knows of tables, segment by segment: from indexes, and where needed the WAL.

An index that was made before knowledge was collected has none; then an index made later
(``wal index``) serves, else nothing is known of that segment, and the reader says so.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pgrecall.codec.wal_records import may_matter
from pgrecall.codec.wal_scan import read_knowledge, read_transactions, scan_segment
from pgrecall.codec.wal_telling import (
    RECORD_HEADER_BYTES,
    RM_XACT,
    TELLS_NOTHING,
    TELLS_OF_A_ROW,
    first_place,
    tells,
)
from pgrecall.errors import CorruptObjectError, ObjectMissingError
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.model.wal_index import Transaction, Unfinished, WalIndex
from pgrecall.model.wal_knowledge import OPEN, Deletions, SegmentKnowledge
from pgrecall.repository import layout
from pgrecall.repository.documents import decode_document, encode_document
from pgrecall.repository.wal_archive import WalArchive

INDEX_KIND = "wal-index"

_U32 = struct.Struct("=I")


class KnownSegment(NamedTuple):
    """One segment of a path. ``knowledge`` is None when it was never indexed for it.

    ``follows_gap``: what lies before it is not archived. Only what lies before ``until`` belongs
    to the path.
    """

    name: str
    wal_index: WalIndex
    knowledge: SegmentKnowledge | None
    follows_gap: bool
    until: Lsn


def path_segments(archive: WalArchive, history: TimelineHistory) -> list[tuple[str, Lsn]]:
    """The archived segments along a history, in WAL order, and up to where each belongs to it."""
    ends = {switch.timeline: switch.end for switch in history.switches}
    found: dict[int, tuple[str, Lsn]] = {}
    for timeline in (*ends, history.timeline):
        end = ends.get(timeline)
        last = segment_name(timeline, max(0, end - 1), archive.segment_bytes) if end else None
        for segment in archive.segments(timeline, None, last):
            start = WalFile(segment.name).start(archive.segment_bytes)
            stop = Lsn(start + archive.segment_bytes)
            # A child's copy of the segment in which it begins holds the parent's bytes, too.
            found[start] = (segment.name, min(stop, end) if end is not None else stop)
    return [found[start] for start in sorted(found)]


def path_with_tails(
    archive: WalArchive, history: TimelineHistory
) -> tuple[list[tuple[str, Lsn]], frozenset[str]]:
    """As path_segments, with tails where a segment is not whole; and which are tails.

    A tail belongs to the path up to its last whole record. Of several that hold the same place
    the one is taken that a restore takes (restore/replay.py): the newest timeline's, unless an
    older one's segment is whole and goes on for longer.
    """
    found = {
        WalFile(name).start(archive.segment_bytes): (name, until)
        for name, until in path_segments(archive, history)
    }
    whole = {name for name, _ in found.values()}
    tails: set[str] = set()
    order = [*(switch.timeline for switch in history.switches), history.timeline]
    have_tails = set(archive.timelines_with_tails())
    for age, timeline in enumerate(order):
        left = history.end_of(timeline)
        for name in archive.tails(timeline) if timeline in have_tails else ():
            start = WalFile(name).start(archive.segment_bytes)
            if name in whole or (left is not None and left <= start):
                continue
            other, until = found.get(start, ("", Lsn(0)))
            if other and order.index(WalFile(other).timeline) > age:
                continue
            end = archive.tail_end(name)
            if end is None or min(end, left or end) <= until:
                continue
            found[start] = (name, min(end, left or end))
            tails -= {other}
            tails.add(name)
    return [found[start] for start in sorted(found)], frozenset(tails)


class KnowledgeReader:
    """Reads along one path; keeps the last segment that it had to read whole."""

    def __init__(self, archive: WalArchive) -> None:
        self._archive = archive
        self._read: tuple[str, bytes] = ("", b"")

    def along(self, segments: list[tuple[str, Lsn]]) -> Iterator[KnownSegment]:
        """Every segment with what is known of it; memory as archive.indexes.

        Raises WalMissingError when one has gone meanwhile, CorruptObjectError, StoreError.
        """
        before: tuple[str, WalIndex] | None = None
        carried: Unfinished | None = None
        untils = dict(segments)
        for name, stored in self._archive.indexes(name for name, _ in segments):
            index = stored
            if index.knowledge is None:
                index = later_index(self._archive, name) or stored
            follows_gap = before is not None and index.start_lsn != untils[before[0]]
            if follows_gap:
                before = carried = None
            knowledge = index.knowledge
            if knowledge is None:
                carried = None
            else:
                knowledge, carried = self._completed(name, index, before, carried)
            yield KnownSegment(name, index, knowledge, follows_gap, untils[name])
            before = (name, index)

    def transactions(self, name: str, start: Lsn) -> list[Transaction]:
        """The transactions that end in a segment, but for one whose record crosses its start."""
        return read_transactions(self.content(name), start)[0]

    def content(self, name: str) -> bytes:
        """The raw segment."""
        if self._read[0] != name:
            self._read = (name, self._archive.read(name))
        return self._read[1]

    # --- inside --------------------------------------------------------------------

    def _completed(
        self,
        name: str,
        index: WalIndex,
        before: tuple[str, WalIndex] | None,
        carried: Unfinished | None,
    ) -> tuple[SegmentKnowledge, Unfinished | None]:
        """The whole knowledge of a segment, with the record that crosses into it.

        Also that record, when it goes on into the next segment.
        """
        knowledge = index.knowledge
        assert knowledge is not None
        crossing = None
        if carried is None and before is not None:
            crossing = _crossing(before[1], index)
            if crossing is True:
                content = self.content(before[0])
                carried = read_knowledge(content, before[1].start_lsn)[2]
        if carried is None and not knowledge.more:
            if isinstance(crossing, Deletions):
                knowledge = knowledge.replaced(deletions=(crossing, *knowledge.deletions))
            return knowledge, None
        whole, _, rest = read_knowledge(self.content(name), index.start_lsn, carried)
        # A record that begins here is the next segment's affair.
        return whole, rest if rest is not None and rest.lsn < index.start_lsn else None


def _crossing(before: WalIndex, index: WalIndex) -> Deletions | bool | None:
    """What the record that crosses into this segment tells.

    None: nothing. A deleted row. True: the segments must be read to know.
    """
    unfinished = before.unfinished
    if unfinished is None or index.contrecord_bytes == 0:
        return None
    known = unfinished.head
    if len(known) == unfinished.have_bytes:
        known += index.contrecord_head
    elif len(known) == RECORD_HEADER_BYTES:
        return None  # whoever made the index saw more of it, and that it tells nothing
    if len(known) < RECORD_HEADER_BYTES:
        return True
    if known[17] == RM_XACT:
        return True if may_matter(known) and known[16] & 0x80 else None
    kind, _ = tells(known, before.magic)
    if kind == TELLS_NOTHING:
        return None
    place = first_place(known, before.magic)
    if kind == TELLS_OF_A_ROW and not isinstance(place, bool):
        xid = _U32.unpack_from(known, 4)[0]
        return Deletions(unfinished.lsn, xid, place[1], place[2], 1, OPEN)
    return True


def later_index(archive: WalArchive, name: str) -> WalIndex | None:
    """The index of a segment that ``wal index`` made, or None when there is none."""
    key = layout.wal_index_key(archive.server, archive.generation.number, WalFile(name))
    try:
        data = archive.store.read(key)
    except ObjectMissingError:
        return None
    index = WalIndex.from_bytes(bytes(decode_document(key, INDEX_KIND, data)))
    if index.start_lsn != WalFile(name).start(archive.segment_bytes):
        raise CorruptObjectError(
            f"{key} in {archive.store.name} is the index of another segment",
            hint="the object was moved; remove it and run pgrecall wal index again",
        )
    return index


def has_later_index(archive: WalArchive, name: str) -> bool:
    """Whether ``wal index`` has made an index of that segment; one small request."""
    key = layout.wal_index_key(archive.server, archive.generation.number, WalFile(name))
    return archive.store.head(key) is not None


def make_later_index(archive: WalArchive, name: str, repository_id: str) -> bool:
    """Read a segment and store the index that is made today; False: it is there already.

    Durable when it returns. Raises WalMissingError, CorruptObjectError, WalFormatError, StoreError.
    """
    start = WalFile(name).start(archive.segment_bytes)
    body = scan_segment(archive.read(name), start).index.to_bytes()
    key = layout.wal_index_key(archive.server, archive.generation.number, WalFile(name))
    return archive.store.put(key, [encode_document(INDEX_KIND, repository_id, body)])
