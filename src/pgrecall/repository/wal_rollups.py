"""All WAL indexes of one log directory in one object: 256 small reads become one (fact 37).

A roll-up only repeats what the segments' own objects say. Whether a segment is there is
told by the listing alone, and an index is taken from a roll-up only where the listed object
has the size that it had then and is not newer than the roll-up: what is missing, or was put
there again, cannot hide behind it. Whatever it does not serve is read from the segment.

Index bytes are opaque here. docs/format-wal.md describes the object.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import accumulate

import msgspec
import numpy as np

from pgrecall.errors import CorruptObjectError, ObjectMissingError
from pgrecall.model.findings import Finding
from pgrecall.model.wal_files import SEGMENT, WalFile
from pgrecall.repository import layout
from pgrecall.repository.documents import decode_document, encode_document
from pgrecall.repository.identity import Generation
from pgrecall.repository.segment_rows import Points, Row, row_from
from pgrecall.repository.wal_objects import read_header, read_index
from pgrecall.store.base import ObjectInfo, Store

KIND = "wal-rollup"
_READERS = 16
# A roll-up of 256 segments takes some hundred KB; recovery plans go through them in order.
_KEPT = 16
# With so many log directories behind it, one counts as finished.
_LATER = 2

log = logging.getLogger(__name__)


class RolledSegment(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One segment in a roll-up: name, size of its object, keyed raw digest (hex), index length.

    ``row`` and ``points`` are what the ranges need of the index (segment_rows.py); a roll-up
    that an older version made has none.
    """

    name: str
    stored_bytes: int
    raw_digest: str
    index_bytes: int
    row: Row | None = None
    points: Points = ()


_TABLES = msgspec.json.Decoder(list[RolledSegment])


class RollUp:
    """A roll-up in memory: ``parts`` are the numbers of its segments within the log, ascending."""

    def __init__(
        self, stored_at: datetime, entries: Sequence[RolledSegment], indexes: memoryview
    ) -> None:
        self.stored_at = stored_at
        self.entries = entries
        self.parts = np.array([int(entry.name[16:], 16) for entry in entries], np.uint64)
        self.stored_bytes = np.array([entry.stored_bytes for entry in entries], np.int64)
        self._indexes = indexes
        self._ends: Sequence[int] = ()

    def index(self, at: int) -> memoryview:
        """The index of entry ``at``, as it is stored."""
        if not self._ends:
            self._ends = list(accumulate(entry.index_bytes for entry in self.entries))
        return self._indexes[self._ends[at] - self.entries[at].index_bytes : self._ends[at]]


class WrittenRollUp(msgspec.Struct, frozen=True, kw_only=True):
    """A roll-up that was stored: ``log`` is the directory's name, sizes in bytes."""

    timeline: int
    log: str
    segments: int
    stored_bytes: int


class RollUps:
    """Reads the roll-ups of one generation. Thread-safe."""

    def __init__(self, store: Store, server: str, generation: int) -> None:
        self._store = store
        self._server = server
        self._generation = generation
        self._lock = threading.Lock()
        self._stored_at: dict[int, dict[str, datetime]] = {}
        self._loaded: dict[tuple[int, str], Mapping[str, tuple[int, bytes]]] = {}

    def index_of(self, name: str, size: int, stored_at: datetime) -> bytes | None:
        """The index bytes of a segment as its roll-up has them; None: read the segment's own.

        ``size`` and ``stored_at`` are the listed object's. Raises StoreError. A
        roll-up that is damaged serves nothing, which the log says.
        """
        timeline, directory = int(name[:8], 16), name[8:16]
        with self._lock:
            made_at = self._known(timeline).get(directory)
            if made_at is None or stored_at > made_at:
                return None
            found = self._content(timeline, directory).get(name)
        return found[1] if found is not None and found[0] == size else None

    def whole(self, timeline: int, directory: str) -> RollUp | None:
        """The roll-up of a log directory; None: there is none that can be read.

        To be believed as ``index_of`` does. Read anew with each call. Raises StoreError.
        """
        with self._lock:
            made_at = self._known(timeline).get(directory)
        if made_at is None:
            return None
        try:
            found = _read(self._store, self._server, self._generation, timeline, directory)
        except (CorruptObjectError, ObjectMissingError) as error:
            log.warning("a roll-up of WAL indexes is not used", extra={"cause": error.message})
            return None
        return RollUp(made_at, *found) if found[0] else None

    def has_loaded(self, name: str) -> bool:
        """Whether the roll-up of a segment's directory is in memory."""
        return (int(name[:8], 16), name[8:16]) in self._loaded

    def _known(self, timeline: int) -> dict[str, datetime]:
        if timeline not in self._stored_at:
            prefix = layout.rollups_prefix(self._server, self._generation, timeline)
            self._stored_at[timeline] = {
                info.key.rpartition("/")[2]: info.stored_at for info in self._store.list(prefix)
            }
        return self._stored_at[timeline]

    def _content(self, timeline: int, directory: str) -> Mapping[str, tuple[int, bytes]]:
        place = (timeline, directory)
        if place not in self._loaded:
            self._loaded[place] = self._indexes(timeline, directory)
            if len(self._loaded) > _KEPT:
                self._loaded.pop(next(iter(self._loaded)))
        return self._loaded[place]

    def _indexes(self, timeline: int, directory: str) -> Mapping[str, tuple[int, bytes]]:
        try:
            entries = read_rollup(self._store, self._server, self._generation, timeline, directory)
        except (CorruptObjectError, ObjectMissingError) as error:
            log.warning("a roll-up of WAL indexes is not used", extra={"cause": error.message})
            return {}
        return {entry.name: (entry.stored_bytes, index) for entry, index in entries}


def read_rollup(
    store: Store, server: str, generation: int, timeline: int, directory: str
) -> list[tuple[RolledSegment, bytes]]:
    """The segments of a roll-up with their index bytes, every digest checked.

    Raises ObjectMissingError, CorruptObjectError, StoreError.
    """
    entries, indexes = _read(store, server, generation, timeline, directory)
    found, at = [], 0
    for entry in entries:
        found.append((entry, bytes(indexes[at : at + entry.index_bytes])))
        at += entry.index_bytes
    return found


def _read(
    store: Store, server: str, generation: int, timeline: int, directory: str
) -> tuple[list[RolledSegment], memoryview]:
    """The entries of a roll-up by name, and their indexes one after the other."""
    key = layout.rollup_key(server, generation, timeline, directory)
    body = bytes(decode_document(key, KIND, store.read(key)))
    end = body.find(b"\n")
    indexes = memoryview(body)[end + 1 :]
    try:
        entries = _TABLES.decode(memoryview(body)[: max(end, 0)])
    except msgspec.DecodeError as error:
        raise CorruptObjectError(f"the object {key} does not parse: {error}") from error
    if sum(entry.index_bytes for entry in entries) != len(indexes):
        raise CorruptObjectError(f"the object {key} does not hold the indexes that it lists")
    place = f"{timeline:08X}{directory}"
    names = [entry.name for entry in entries]
    if any(name[:16] != place for name in names) or sorted(set(names)) != names:
        raise CorruptObjectError(f"the object {key} lists segments of another directory")
    return entries, indexes


def write_rollups(
    store: Store, server: str, generation: Generation, repository_id: str
) -> tuple[list[WrittenRollUp], list[Finding]]:
    """Store what is missing: a roll-up for each log directory that is finished.

    Finished is one with all its segments, or with two later ones behind it on its
    timeline or a younger one: then what it lacks will hardly come, and is read from the
    segment if it does. May be called at any time, by several at once: what exists stays. Each is
    durable when the next is begun. A directory with a damaged segment becomes a
    finding and gets none. Raises StoreError, RepositoryError.
    """
    written: list[WrittenRollUp] = []
    findings: list[Finding] = []
    for timeline, directory, infos in _unrolled(store, server, generation):
        try:
            entries = _entries(store, infos)
        except (CorruptObjectError, ObjectMissingError) as error:
            findings.append(
                Finding(
                    severity="fail",
                    code=error.code,
                    subject=f"{timeline:08X}/{directory}",
                    message=f"its indexes are not rolled up: {error.message}",
                    hint=error.hint,
                )
            )
            continue
        data = encode_rollup(entries, repository_id)
        key = layout.rollup_key(server, generation.number, timeline, directory)
        if store.put(key, [data]):
            written.append(
                WrittenRollUp(
                    timeline=timeline,
                    log=directory,
                    segments=len(entries),
                    stored_bytes=len(data),
                )
            )
    return written, findings


def encode_rollup(entries: Sequence[tuple[RolledSegment, bytes]], repository_id: str) -> bytes:
    """The object that holds these segments, in WAL order, with their indexes."""
    body = msgspec.json.encode([entry for entry, _ in entries]) + b"\n"
    return encode_document(KIND, repository_id, body + b"".join(index for _, index in entries))


def unrolled(store: Store, server: str, generation: Generation) -> list[str]:
    """What ``write_rollups`` would write now, as ``timeline/log``; raises StoreError."""
    return [f"{timeline:08X}/{log}" for timeline, log, _ in _unrolled(store, server, generation)]


def check_rollup(
    store: Store, server: str, generation: int, timeline: int, directory: str
) -> list[Finding]:
    """Compare a roll-up with the headers and indexes of the segments that are there.

    A finding for each segment that reads otherwise than the roll-up says. Raises
    ObjectMissingError, CorruptObjectError (the roll-up itself), StoreError.
    """
    rolled = {
        entry.name: (entry, index)
        for entry, index in read_rollup(store, server, generation, timeline, directory)
    }
    prefix = layout.wal_prefix(server, generation, timeline, int(directory, 16))
    infos = [info for info in _segments(store, prefix) if info.key[-24:] in rolled]
    findings = []
    for entry, index in _entries(store, infos):
        told, rolled_index = rolled[entry.name]
        # One that an older version made has no rows.
        bare = msgspec.structs.replace(entry, row=None, points=())
        if (told, rolled_index) not in ((entry, index), (bare, index)):
            findings.append(
                Finding(
                    severity="fail",
                    code="rollup-differs",
                    subject=entry.name,
                    message=f"{entry.name} is not the segment that the roll-up of {directory}"
                    " was made of",
                    hint="remove the roll-up below wal-rollups/: the segments' own indexes count",
                )
            )
    return findings


def _unrolled(
    store: Store, server: str, generation: Generation
) -> Iterator[tuple[int, str, list[ObjectInfo]]]:
    """Finished log directories without a roll-up, with their segments as listed."""
    per_log = (1 << 32) // generation.segment_bytes
    prefix = layout.wal_prefix(server, generation.number)
    logs: dict[int, list[str]] = {}
    for child in store.children(prefix):
        timeline = layout.timeline_of_directory(child)
        if timeline is not None:
            names = store.children(prefix + child)
            logs[timeline] = [name.rstrip("/") for name in names if name.endswith("/")]
    later: set[str] = set()
    for timeline in sorted(logs, reverse=True):
        later.update(logs[timeline])
        done = set(store.children(layout.rollups_prefix(server, generation.number, timeline)))
        for directory in logs[timeline]:
            if directory in done:
                continue
            infos = list(_segments(store, f"{prefix}{timeline:08X}/{directory}/"))
            is_finished = sum(log > directory for log in later) >= _LATER
            if infos and (len(infos) == per_log or is_finished):
                yield timeline, directory, infos


def _segments(store: Store, prefix: str) -> Iterator[ObjectInfo]:
    return (
        info for info in store.list(prefix) if layout.parse_wal_key(info.key)[2].kind == SEGMENT
    )


def _entries(store: Store, infos: list[ObjectInfo]) -> list[tuple[RolledSegment, bytes]]:
    with ThreadPoolExecutor(_READERS, thread_name_prefix="wal-rollup") as pool:
        return list(pool.map(lambda info: _entry(store, info), infos))


def _entry(store: Store, info: ObjectInfo) -> tuple[RolledSegment, bytes]:
    name = WalFile(info.key.rpartition("/")[2]).name
    header = read_header(store, info.key)
    if header.name != name:
        raise CorruptObjectError(
            f"{info.key} in {store.name} holds {header.name}",
            hint="the object was moved; look for the right one",
        )
    index = read_index(store, info.key, info.size)
    # What is not plain is judged by whoever asks for it.
    row, points = row_from(index, WalFile(name).start(header.segment_bytes)) or (None, ())
    entry = RolledSegment(
        name=name,
        stored_bytes=info.size,
        raw_digest=header.raw_digest.hex(),
        index_bytes=len(index),
        row=row,
        points=points,
    )
    return entry, index
