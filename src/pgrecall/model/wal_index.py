"""What a WAL segment holds, small enough to be stored with it.

The index answers, without reading the segment: which moments, transactions
and restore points can be reached in it, and what it asks of a server that
replays it. It is made by ``codec.wal_scan`` and stored as compact JSON.

Times are microseconds since 2000-01-01 00:00:00 UTC, as PostgreSQL's
timestamptz has them; the ``*_at`` properties give aware datetimes. A record's
LSN is that of its first byte; its ``end_lsn`` is the (8-byte aligned) position
after it, which is where the next record may begin.

A record that crosses the end of a segment belongs to neither index: the
first keeps its beginning (``unfinished``), the second the rest
(``contrecord_bytes``, ``contrecord_head``), and
``codec.wal_crossing.complete_crossing`` puts them together.
"""

from __future__ import annotations

import json
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from pgrecall.errors import CorruptObjectError, RepositoryError
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_knowledge import SegmentKnowledge

VERSION = 1

STOPPED_AT_END = "end"
STOPPED_AT_SWITCH = "switch"
STOPPED_AT_INVALID = "invalid"

POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
LAST_MOMENT = datetime.max.replace(tzinfo=UTC)
_MICROSECONDS_BETWEEN_EPOCHS = (POSTGRES_EPOCH - UNIX_EPOCH) // timedelta(microseconds=1)

MAXIMUM_RESTORE_POINTS = 1000
"""An index lists no more; ``has_more_restore_points`` then sends the reader to the segment."""
MAXIMUM_CHECKPOINTS = 32
"""An index lists the last so many."""


def datetime_of(microseconds: int) -> datetime:
    """The aware UTC moment of a PostgreSQL timestamp (microseconds since 2000-01-01 UTC).

    Times outside of what a datetime can hold become its first or last moment.
    """
    try:
        return POSTGRES_EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return LAST_MOMENT if microseconds > 0 else FIRST_MOMENT


def microseconds_of(moment: datetime) -> int:
    """The PostgreSQL timestamp of an aware moment."""
    return (moment - POSTGRES_EPOCH) // timedelta(microseconds=1)


class _Value:
    """A plain value, equal by its slots, that becomes a JSON list and back in slot order."""

    __slots__: tuple[str, ...] = ()

    def as_list(self) -> list[Any]:
        return [_as_json(getattr(self, name)) for name in self.__slots__]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__slots__))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"


class Transaction(_Value):
    """The commit or abort record of a top-level transaction (of a prepared one: its second phase).

    ``xid`` is 0 only when a record of an unknown layout hides it.
    """

    __slots__ = ("end_lsn", "is_commit", "lsn", "time", "xid")

    def __init__(self, lsn: int, end_lsn: int, xid: int, time: int, is_commit: bool) -> None:
        self.lsn = Lsn(lsn)
        self.end_lsn = Lsn(end_lsn)
        self.xid = xid
        self.time = time
        self.is_commit = is_commit

    @property
    def ended_at(self) -> datetime:
        return datetime_of(self.time)


class RestorePoint(_Value):
    """A named restore point; the name in UTF-8, with surrogate escapes for other bytes."""

    __slots__ = ("name", "lsn", "end_lsn", "time")  # noqa: RUF023 - the order in JSON

    def __init__(self, name: str, lsn: int, end_lsn: int, time: int) -> None:
        self.name = name
        self.lsn = Lsn(lsn)
        self.end_lsn = Lsn(end_lsn)
        self.time = time

    @property
    def created_at(self) -> datetime:
        return datetime_of(self.time)


class ParameterChange(_Value):
    """Settings of the primary that a server which replays this must reach or exceed.

    ``wal_level`` is PostgreSQL's number: 0 minimal, 1 replica, 2 logical.
    """

    __slots__ = (  # noqa: RUF023 - the order in JSON and in the WAL record
        "lsn",
        "max_connections",
        "max_worker_processes",
        "max_wal_senders",
        "max_prepared_transactions",
        "max_locks_per_transaction",
        "wal_level",
    )

    def __init__(self, lsn: int, values: Iterable[int]) -> None:
        """``values`` are the six numbers in the order of the slots."""
        self.lsn = Lsn(lsn)
        (
            self.max_connections,
            self.max_worker_processes,
            self.max_wal_senders,
            self.max_prepared_transactions,
            self.max_locks_per_transaction,
            self.wal_level,
        ) = values


class Checkpoint(_Value):
    """A checkpoint record; ``unix_seconds`` is when it began."""

    __slots__ = (  # noqa: RUF023 - the order in JSON
        "lsn",
        "redo_lsn",
        "timeline",
        "previous_timeline",
        "unix_seconds",
        "is_shutdown",
    )

    def __init__(
        self,
        lsn: int,
        redo_lsn: int,
        timelines: tuple[int, int],
        unix_seconds: int,
        *,
        shutdown: bool,
    ) -> None:
        """``timelines`` are the checkpoint's own and the one before it (equal without a change)."""
        self.lsn = Lsn(lsn)
        self.redo_lsn = Lsn(redo_lsn)
        self.timeline, self.previous_timeline = timelines
        self.unix_seconds = unix_seconds
        self.is_shutdown = shutdown

    @property
    def began_at(self) -> datetime:
        return datetime_of(self.unix_seconds * 1_000_000 - _MICROSECONDS_BETWEEN_EPOCHS)


class EndOfRecovery(_Value):
    """The record that begins a timeline after a promotion."""

    __slots__ = ("lsn", "time", "timeline", "previous_timeline")  # noqa: RUF023 - JSON order

    def __init__(self, lsn: int, time: int, timeline: int, previous_timeline: int) -> None:
        self.lsn = Lsn(lsn)
        self.time = time
        self.timeline = timeline
        self.previous_timeline = previous_timeline

    @property
    def ended_at(self) -> datetime:
        return datetime_of(self.time)


class TablespaceCreation(_Value):
    """CREATE TABLESPACE: whoever replays it links to ``location``, and uses what lies there.

    ``location`` is UTF-8 with surrogate escapes, empty for a tablespace in
    place; only its beginning unless ``is_whole``.
    """

    __slots__ = ("lsn", "oid", "location", "is_whole")  # noqa: RUF023 - the order in JSON

    def __init__(self, lsn: int, oid: int, location: str, *, is_whole: bool) -> None:
        self.lsn = Lsn(lsn)
        self.oid = oid
        self.location = location
        self.is_whole = is_whole


class Times(_Value):
    """Of some records in WAL order: the first and last time, and the least and greatest.

    They differ: commit times are not monotonic.
    """

    __slots__ = ("first", "last", "least", "greatest")  # noqa: RUF023 - the order in JSON

    def __init__(self, first: int, last: int, least: int, greatest: int) -> None:
        self.first = first
        self.last = last
        self.least = least
        self.greatest = greatest

    @property
    def first_at(self) -> datetime:
        return datetime_of(self.first)

    @property
    def last_at(self) -> datetime:
        return datetime_of(self.last)

    @property
    def least_at(self) -> datetime:
        return datetime_of(self.least)

    @property
    def greatest_at(self) -> datetime:
        return datetime_of(self.greatest)


class Unfinished(_Value):
    """A record that begins in a segment and goes on in the next.

    ``total_bytes`` is its whole length, ``have_bytes`` what lies in the
    segments read so far, ``head`` its first bytes: all ``have_bytes`` of them
    where the record may matter to a recovery target, otherwise fewer (in a
    scan its header, in an index possibly nothing beyond a bound).
    """

    __slots__ = ("lsn", "total_bytes", "have_bytes", "head")  # noqa: RUF023 - the order in JSON

    def __init__(self, lsn: int, total_bytes: int, have_bytes: int, head: bytes) -> None:
        self.lsn = Lsn(lsn)
        self.total_bytes = total_bytes
        self.have_bytes = have_bytes
        self.head = head


class WalIndex(_Value):
    """Everything that is kept about one segment.

    ``magic`` numbers PostgreSQL's WAL format. ``timeline`` and
    ``last_timeline`` come from the first and last valid page header (they
    differ in the first segment after a promotion, fact 1).
    ``end_lsn`` is the end of the last record that ends here (``start_lsn`` if
    none does). ``first_record_lsn`` and ``last_record_lsn`` are of the records
    that begin and end here; None without any. ``first_previous_lsn`` is what
    the first of them names as the record before it. ``commit_times`` cover
    commits, ``end_times`` commits and aborts (both end recovery at a time
    target), ``least_xid`` and ``greatest_xid`` bound the transactions that
    ended here, as plain numbers; 0 without any. ``contrecord_bytes`` is what
    the first page says remains of a record begun earlier, ``contrecord_head``
    its first bytes. ``stopped_at`` is STOPPED_AT_END, STOPPED_AT_SWITCH, or
    STOPPED_AT_INVALID: what follows ``end_lsn`` is no WAL. ``knowledge`` is None
    in an index of before it was collected: not known, which is not "nothing".
    """

    __slots__ = (
        "abort_count",
        "checkpoints",
        "commit_count",
        "commit_times",
        "contrecord_bytes",
        "contrecord_head",
        "end_lsn",
        "end_times",
        "ends_of_recovery",
        "first_previous_lsn",
        "first_record_lsn",
        "greatest_xid",
        "has_more_restore_points",
        "knowledge",
        "last_record_lsn",
        "last_timeline",
        "least_xid",
        "magic",
        "page_bytes",
        "parameter_changes",
        "record_count",
        "restore_points",
        "segment_bytes",
        "start_lsn",
        "stopped_at",
        "tablespaces",
        "timeline",
        "unfinished",
    )

    def __init__(self, start_lsn: int, segment_bytes: int, timeline: int) -> None:
        """An empty index; whoever scans fills in the rest."""
        self.start_lsn = Lsn(start_lsn)
        self.segment_bytes = segment_bytes
        self.magic = 0
        self.page_bytes = 8192
        self.timeline = timeline
        self.last_timeline = timeline
        self.end_lsn = Lsn(start_lsn)
        self.first_record_lsn: Lsn | None = None
        self.last_record_lsn: Lsn | None = None
        self.first_previous_lsn: Lsn | None = None
        self.record_count = 0
        self.commit_count = 0
        self.abort_count = 0
        self.commit_times: Times | None = None
        self.end_times: Times | None = None
        self.least_xid = 0
        self.greatest_xid = 0
        self.restore_points: tuple[RestorePoint, ...] = ()
        self.has_more_restore_points = False
        self.parameter_changes: tuple[ParameterChange, ...] = ()
        self.checkpoints: tuple[Checkpoint, ...] = ()
        self.ends_of_recovery: tuple[EndOfRecovery, ...] = ()
        self.tablespaces: tuple[TablespaceCreation, ...] = ()
        self.contrecord_bytes = 0
        self.contrecord_head = b""
        self.unfinished: Unfinished | None = None
        self.stopped_at = STOPPED_AT_END
        self.knowledge: SegmentKnowledge | None = None

    @property
    def segment_end(self) -> Lsn:
        """First byte after the segment."""
        return Lsn(self.start_lsn + self.segment_bytes)

    def to_bytes(self) -> bytes:
        """Compact JSON, ASCII; a few hundred bytes as a rule. Empty fields are left out."""
        record: dict[str, Any] = {"v": VERSION}
        for name, key in _KEYS.items():
            value = getattr(self, name)
            if value or name in _ALWAYS:
                record[key] = _as_json(value)
        if self.knowledge is not None:
            record["knowledge"] = self.knowledge.to_json(self.start_lsn)
        return json.dumps(record, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> WalIndex:
        """Read what ``to_bytes`` wrote; unknown fields are ignored.

        Raises CorruptObjectError when it does not parse, RepositoryError when
        it is of a newer version.
        """
        try:
            record = json.loads(data)
            version = record["v"]
            if version == VERSION:
                return _index_of(record)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise CorruptObjectError(f"a WAL index does not parse: {error}") from error
        raise RepositoryError(
            f"a WAL index has version {version!r}; this pgrecall reads version {VERSION}",
            hint="use the pgrecall that wrote the archive, or a newer one",
        )


_KEYS = {
    "timeline": "timeline",
    "last_timeline": "last_timeline",
    "start_lsn": "start",
    "end_lsn": "end",
    "segment_bytes": "segment_bytes",
    "page_bytes": "page_bytes",
    "magic": "magic",
    "stopped_at": "stopped",
    "record_count": "records",
    "first_record_lsn": "first",
    "last_record_lsn": "last",
    "first_previous_lsn": "previous",
    "commit_count": "commits",
    "abort_count": "aborts",
    "commit_times": "commit_times",
    "end_times": "end_times",
    "least_xid": "least_xid",
    "greatest_xid": "greatest_xid",
    "restore_points": "restore_points",
    "has_more_restore_points": "more_restore_points",
    "parameter_changes": "parameters",
    "checkpoints": "checkpoints",
    "ends_of_recovery": "ends_of_recovery",
    "tablespaces": "tablespaces",
    "contrecord_bytes": "contrecord_bytes",
    "contrecord_head": "contrecord_head",
    "unfinished": "unfinished",
}
_ALWAYS = frozenset(("timeline", "last_timeline", "start_lsn", "end_lsn"))


def _as_json(value: object) -> object:
    if isinstance(value, Lsn):
        return str(value)
    if isinstance(value, bytes):
        return b2a_base64(value, newline=False).decode("ascii")
    if isinstance(value, _Value):
        return value.as_list()
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    return value


def _lsn(text: str) -> Lsn:
    high, _, low = text.partition("/")
    return Lsn((int(high, 16) << 32) | int(low, 16))


def _index_of(record: dict[str, Any]) -> WalIndex:
    index = WalIndex(_lsn(record["start"]), record["segment_bytes"], record["timeline"])
    index.last_timeline = record["last_timeline"]
    index.end_lsn = _lsn(record["end"])
    index.page_bytes = record["page_bytes"]
    index.magic = record.get("magic", 0)
    index.stopped_at = record["stopped"]
    index.record_count = record.get("records", 0)
    for name in ("first_record_lsn", "last_record_lsn", "first_previous_lsn"):
        if _KEYS[name] in record:
            setattr(index, name, _lsn(record[_KEYS[name]]))
    index.commit_count = record.get("commits", 0)
    index.abort_count = record.get("aborts", 0)
    if "commit_times" in record:
        index.commit_times = Times(*record["commit_times"][:4])
    if "end_times" in record:
        index.end_times = Times(*record["end_times"][:4])
    index.least_xid = record.get("least_xid", 0)
    index.greatest_xid = record.get("greatest_xid", 0)
    index.restore_points = tuple(
        RestorePoint(item[0], _lsn(item[1]), _lsn(item[2]), item[3])
        for item in record.get("restore_points", ())
    )
    index.has_more_restore_points = record.get("more_restore_points", False)
    index.parameter_changes = tuple(
        ParameterChange(_lsn(item[0]), item[1:7]) for item in record.get("parameters", ())
    )
    index.checkpoints = tuple(
        Checkpoint(_lsn(item[0]), _lsn(item[1]), (item[2], item[3]), item[4], shutdown=item[5])
        for item in record.get("checkpoints", ())
    )
    index.ends_of_recovery = tuple(
        EndOfRecovery(_lsn(item[0]), *item[1:4]) for item in record.get("ends_of_recovery", ())
    )
    index.tablespaces = tuple(
        TablespaceCreation(_lsn(item[0]), item[1], item[2], is_whole=item[3])
        for item in record.get("tablespaces", ())
    )
    index.contrecord_bytes = record.get("contrecord_bytes", 0)
    index.contrecord_head = a2b_base64(record.get("contrecord_head", ""), strict_mode=True)
    if "unfinished" in record:
        lsn, total_bytes, have_bytes, head = record["unfinished"][:4]
        index.unfinished = Unfinished(
            _lsn(lsn), total_bytes, have_bytes, a2b_base64(head, strict_mode=True)
        )
    if "knowledge" in record:
        index.knowledge = SegmentKnowledge.from_json(record["knowledge"], index.start_lsn)
    return index
