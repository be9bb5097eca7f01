"""Recorded gaps: WAL that the archive will never hold, written down by whoever knew it.

One immutable record for each range, under a key that names the range, so that
writing it twice is one record. A record explains; whether the bytes are really
missing only the archive itself tells (a segment may have arrived by another way).
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.errors import CorruptObjectError, UsageError
from pgrecall.model.lsn import Lsn
from pgrecall.repository import layout
from pgrecall.repository.records import decode_record, encode_record, format_time, parse_time
from pgrecall.store.base import Store

DROPPED = "dropped"
"""Given up on purpose: ``agent.drop_wal_above_bytes``, rather than a full pg_wal."""

NOT_RECEIVED = "not-received"
"""Removed by the server before a receiver had it (a slot that was lost, or that there was none)."""


class Gap(msgspec.Struct, frozen=True):
    """Bytes ``start`` up to ``end`` (exclusive) of ``timeline`` that were lost.

    ``cause`` is DROPPED or NOT_RECEIVED, ``detail`` what was known when it
    happened (the store's error, the server's answer), ``recorded_at`` aware.
    """

    timeline: int
    start: Lsn
    end: Lsn
    cause: str
    detail: str
    recorded_at: datetime

    @property
    def missing_bytes(self) -> int:
        """How much WAL it is, in bytes."""
        return self.end - self.start


def write_gap(store: Store, server: str, generation: int, gap: Gap) -> bool:
    """Record a gap; durable when this returns. False: that range is recorded already.

    Raises StoreError.
    """
    fields = {
        "timeline": gap.timeline,
        "start": str(gap.start),
        "end": str(gap.end),
        "cause": gap.cause,
        "detail": gap.detail,
        "recorded_at": format_time(gap.recorded_at),
    }
    key = layout.gap_key(server, generation, gap.timeline, gap.start, gap.end)
    return store.put(key, [encode_record(fields)])


def read_gaps(store: Store, server: str, generation: int) -> list[Gap]:
    """All recorded gaps of a generation by timeline and position; they may touch or overlap.

    Raises CorruptObjectError, StoreError: a listing is whole or an error.
    """
    prefix = layout.gaps_prefix(server, generation)
    gaps = [_read(store, prefix + name) for name in store.children(prefix)]
    return sorted(gaps, key=lambda gap: (gap.timeline, gap.start, gap.end))


def _read(store: Store, key: str) -> Gap:
    where = f"{key} in {store.name}"
    fields = decode_record(store.read(key), where)
    try:
        return Gap(
            timeline=int(fields["timeline"]),
            start=Lsn.parse(fields["start"]),
            end=Lsn.parse(fields["end"]),
            cause=str(fields["cause"]),
            detail=str(fields["detail"]),
            recorded_at=parse_time(fields["recorded_at"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise CorruptObjectError(f"{where} lacks or garbles a field: {error}") from error
