"""What was held, expired, brought back and purged: numbered records that are never changed.

One sequence for each server. A record is written under the number that follows the last
one that its writer has read; when that is taken, somebody else has decided something
meanwhile, and the writer has to look again. So the decisions of all hosts have one order.
docs/format.md describes the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Literal

import msgspec

from pgrecall.errors import CorruptObjectError, RepositoryError
from pgrecall.model.catalog_items import WalSpan, merged_spans
from pgrecall.repository import layout
from pgrecall.repository.records import decode_record, encode_record
from pgrecall.store.base import ObjectInfo, Store

RETENTION_FORMAT = 1

_READERS = 8
_MAXIMUM_TRIES = 100

RecordKind = Literal["hold", "release", "expire", "unexpire", "purge"]


class RetentionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One decision. ``items``: ids, with the reason for each.

    ``until``: the end of a hold. ``wal`` is, after this record, all WAL that has expired,
    purged WAL too; None: as before.
    """

    format: int = RETENTION_FORMAT
    number: int = 0
    kind: RecordKind
    recorded_at: datetime
    run_id: str
    host: str
    items: dict[str, str] = {}
    until: datetime | None = None
    wal: tuple[WalSpan, ...] | None = None


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """``item_id`` never expires while this lasts; ``until`` None: until it is released."""

    item_id: str
    reason: str
    held_at: datetime
    until: datetime | None
    number: int

    def is_over(self, now: datetime) -> bool:
        """An ended hold is none."""
        return self.until is not None and self.until <= now


class ExpiredItem(msgspec.Struct, frozen=True, kw_only=True):
    """An item that is no longer listed. ``expired_at`` by the store's clock."""

    item_id: str
    reason: str
    expired_at: datetime
    run_id: str
    number: int


class RetentionState(msgspec.Struct, frozen=True, kw_only=True):
    """What the records say together; ``number`` is the last one's, 0 for none.

    ``purging``: ids whose deletion has begun (or is done): there is no way back.
    ``wal``: all WAL that has expired. ``recorded``: when each record was stored, by number.
    ``expiries``: the run of each record of an expiry, by number.
    """

    number: int = 0
    holds: tuple[Hold, ...] = ()
    expired: Mapping[str, ExpiredItem] = {}
    purging: frozenset[str] = frozenset()
    wal: tuple[WalSpan, ...] = ()
    recorded: Mapping[int, datetime] = {}
    expiries: Mapping[int, str] = {}

    def active_holds(self, now: datetime) -> dict[str, Hold]:
        """By item; of several the last."""
        return {hold.item_id: hold for hold in self.holds if not hold.is_over(now)}

    def is_listed(self, item_id: str) -> bool:
        """Whether an item counts: neither expired nor purged."""
        return item_id not in self.expired and item_id not in self.purging

    def hidden_wal(self, generation: int) -> tuple[WalSpan, ...]:
        """The WAL of one generation that no longer counts."""
        return tuple(span for span in self.wal if span.generation == generation)


def read_state(store: Store, server: str) -> RetentionState:
    """Fold all records of a server. Raises CorruptObjectError, RepositoryError, StoreError."""
    infos = _numbered(store, server)
    recorded = {number: info.stored_at for number, info in infos}
    return fold(_read_all(store, infos), recorded)


def read_records(store: Store, server: str) -> list[RetentionRecord]:
    """All records of a server in their order; raises as ``read_state``."""
    return _read_all(store, _numbered(store, server))


def _numbered(store: Store, server: str) -> list[tuple[int, ObjectInfo]]:
    return sorted(
        (layout.record_number(info.key.rpartition("/")[2]), info) for info in _listed(store, server)
    )


def _read_all(store: Store, infos: list[tuple[int, ObjectInfo]]) -> list[RetentionRecord]:
    with ThreadPoolExecutor(_READERS, thread_name_prefix="retention") as pool:
        return list(pool.map(lambda one: _read(store, one[0], one[1].key), infos))


def fold(records: Iterable[RetentionRecord], recorded: Mapping[int, datetime]) -> RetentionState:
    """What records say together, in their order; ``recorded``: when each was stored. Pure."""
    holds: dict[str, Hold] = {}
    expired: dict[str, ExpiredItem] = {}
    purging: set[str] = set()
    wal: tuple[WalSpan, ...] = ()
    expiries: dict[int, str] = {}
    number = 0
    for record in records:
        number = record.number
        if record.kind == "expire":
            expiries[number] = record.run_id
        for item_id, reason in record.items.items():
            match record.kind:
                case "hold":
                    holds[item_id] = Hold(
                        item_id=item_id,
                        reason=reason,
                        held_at=record.recorded_at,
                        until=record.until,
                        number=number,
                    )
                case "release":
                    holds.pop(item_id, None)
                case "expire":
                    expired[item_id] = ExpiredItem(
                        item_id=item_id,
                        reason=reason,
                        expired_at=recorded.get(number, record.recorded_at),
                        run_id=record.run_id,
                        number=number,
                    )
                case "unexpire":
                    expired.pop(item_id, None)
                case "purge":
                    expired.pop(item_id, None)
                    purging.add(item_id)
        if record.wal is not None:
            wal = record.wal
    return RetentionState(
        number=number,
        holds=tuple(holds.values()),
        expired=expired,
        purging=frozenset(purging),
        wal=wal,
        recorded=recorded,
        expiries=expiries,
    )


def append_record(store: Store, server: str, record: RetentionRecord) -> bool:
    """Write a record under its number; durable when it returns True.

    False: that number is taken, by a decision that the writer does not know yet.
    Raises StoreError.
    """
    wal = None if record.wal is None else merged_spans(record.wal)
    fields = msgspec.to_builtins(msgspec.structs.replace(record, wal=wal))
    return store.put(layout.retention_key(server, record.number), [encode_record(fields)])


def append_any(store: Store, server: str, record: RetentionRecord) -> RetentionRecord:
    """Write a record that is right whatever was decided meanwhile, under the next free number."""
    for _ in range(_MAXIMUM_TRIES):
        numbers = [
            layout.record_number(info.key.rpartition("/")[2]) for info in _listed(store, server)
        ]
        numbered = msgspec.structs.replace(record, number=max(numbers, default=0) + 1)
        if append_record(store, server, numbered):
            return numbered
    raise RepositoryError(
        f"no number below {layout.retention_prefix(server)} in {store.name} could be taken",
        hint="others write there all the time, or the store does not list what it holds",
    )


def _listed(store: Store, server: str) -> list[ObjectInfo]:
    return list(store.list(layout.retention_prefix(server)))


def _read(store: Store, number: int, key: str) -> RetentionRecord:
    where = f"{key} in {store.name}"
    fields = decode_record(store.read(key), where)
    if fields.get("format", 0) > RETENTION_FORMAT:
        raise RepositoryError(
            f"{where} has format {fields['format']}, this pgrecall knows {RETENTION_FORMAT}",
            hint="use a newer pgrecall",
        )
    try:
        record = msgspec.convert(fields, RetentionRecord)
    except msgspec.ValidationError as error:
        raise CorruptObjectError(f"{where} lacks or garbles a field: {error}") from error
    if record.number != number:
        raise CorruptObjectError(f"{where} says that its number is {record.number}")
    return record
