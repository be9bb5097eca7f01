"""Recorded gaps: written once, read back in order, damage is an error."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pgrecall.errors import CorruptObjectError
from pgrecall.model.lsn import Lsn
from pgrecall.repository import layout
from pgrecall.repository.gaps import DROPPED, NOT_RECEIVED, Gap, read_gaps, write_gap
from pgrecall.repository.records import encode_record
from pgrecall.store.memory import MemoryStore

NOW = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)


def gap(timeline: int, start: int, end: int, cause: str = DROPPED) -> Gap:
    return Gap(timeline, Lsn(start), Lsn(end), cause, "the store was full: ümlaut", NOW)


def test_gaps_come_back_by_timeline_and_position() -> None:
    store = MemoryStore()
    gaps = [
        gap(2, 0x5000000, 0x6000000),
        gap(1, 0x4000000, 0x5000000),
        gap(1, 0x3000000, 0x3000010),
    ]
    assert all(write_gap(store, "a b", 1, each) for each in gaps)
    assert read_gaps(store, "a b", 1) == [gaps[2], gaps[1], gaps[0]]
    assert gaps[0].missing_bytes == 0x1000000
    assert read_gaps(store, "a b", 2) == []


def test_one_range_is_one_record() -> None:
    store = MemoryStore()
    first = gap(1, 0x3000000, 0x4000000)
    assert write_gap(store, "main", 1, first)
    assert not write_gap(store, "main", 1, gap(1, 0x3000000, 0x4000000, NOT_RECEIVED))
    assert read_gaps(store, "main", 1) == [first]


def test_a_record_that_lacks_a_field_is_an_error() -> None:
    store = MemoryStore()
    key = layout.gap_key("main", 1, 1, 0x3000000, 0x4000000)
    store.put(key, [encode_record({"timeline": 1, "start": "nonsense"})])
    with pytest.raises(CorruptObjectError, match="lacks or garbles"):
        read_gaps(store, "main", 1)
