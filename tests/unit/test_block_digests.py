"""Digests of blocks: records, objects, and which file's are where."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.backup.digest_log import DigestIndex, DigestLog
from pgrecall.codec.block_digests import (
    BLOCK_BYTES,
    RECORD_BYTES,
    as_records,
    block_count,
    block_records,
    combined_crc,
)
from pgrecall.codec.crc import crc32c
from pgrecall.errors import CorruptObjectError
from pgrecall.model.manifest import DigestsEntry, DigestSpan
from pgrecall.repository import block_digests, layout
from pgrecall.repository.block_digests import DigestReader, DigestSink, DigestStore
from pgrecall.store.memory import MemoryStore

SEED = 0xFEDCBA9876543210
MEBIBYTE = 1 << 20


@given(st.integers(1, 5 * BLOCK_BYTES), st.integers(0, 1 << 62))
def test_records_of_any_length(length: int, seed: int) -> None:
    data = os.urandom(length)
    records, crc = block_records(memoryview(data), seed)
    assert crc == crc32c(data)
    found = as_records(records)
    assert len(found) == block_count(length)
    assert combined_crc(found, length) == crc
    changed = bytearray(data)
    changed[-1] ^= 1
    other = as_records(block_records(memoryview(changed), seed)[0])
    assert (found["digest"] != other["digest"]).tolist() == [False] * (len(found) - 1) + [True]


def test_the_seed_matters() -> None:
    block = memoryview(bytes(BLOCK_BYTES))
    assert block_records(block, 1)[0][:16] != block_records(block, 2)[0][:16]


def stored() -> tuple[MemoryStore, DigestStore]:
    store = MemoryStore()
    return store, DigestStore(store, "main", "b-1", "r")


def test_the_digests_of_a_file_in_pieces_of_several_workers() -> None:
    store, digests = stored()
    content = os.urandom(66 * MEBIBYTE + 5)
    logs = [DigestLog(DigestSink(digests)) for _ in range(2)]
    for offset in range(0, len(content), MEBIBYTE):
        piece = memoryview(content)[offset : offset + MEBIBYTE]
        records, crc = block_records(piece, SEED)
        logs[offset // (64 * MEBIBYTE)].add(3, offset, len(piece), records, crc)
    for log in logs:
        log.finish()
    index = DigestIndex(logs, 4)
    spans = index.of(3, len(content))
    assert [(span.first, span.count) for span in spans] == [(0, 1024), (0, 33)]
    assert spans[0].crc32c == crc32c(content[: 64 * MEBIBYTE])
    reader = DigestReader(store, "main", "b-1", digests.entries())
    found = b"".join(reader.span(span.source, span.first, span.count).tobytes() for span in spans)
    assert found == bytes(block_records(memoryview(content), SEED)[0])
    assert index.of(2, 0) == ()
    # It has grown since, or was cut: digests of half a file are none.
    assert index.of(3, len(content) + BLOCK_BYTES) == ()


def test_a_hole_leaves_a_file_without_digests() -> None:
    _, digests = stored()
    log = DigestLog(DigestSink(digests))
    for offset in (0, 3 * MEBIBYTE):
        data = memoryview(os.urandom(MEBIBYTE))
        records, crc = block_records(data, SEED)
        log.add(0, offset, len(data), records, crc)
    log.finish()
    assert DigestIndex([log], 1).of(0, 4 * MEBIBYTE) == ()


def test_objects_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_digests, "OBJECT_RECORDS", 3)
    store, digests = stored()
    sink = DigestSink(digests)
    places = [sink.add(bytes([number]) * 2 * RECORD_BYTES) for number in range(5)]
    sink.finish()
    assert places == [(0, 0), (0, 2), (1, 0), (1, 2), (2, 0)]
    assert [entry.records for entry in digests.entries()] == [4, 4, 2]
    reader = DigestReader(store, "main", "b-1", digests.entries())
    for number, (source, first) in enumerate(places):
        assert reader.span(source, first, 2).tobytes() == bytes([number]) * 2 * RECORD_BYTES


def test_damage_is_named() -> None:
    store, digests = stored()
    sink = DigestSink(digests)
    sink.add(bytes(RECORD_BYTES))
    sink.finish()
    (entry,) = digests.entries()
    key = layout.digests_key("main", "b-1", 0)
    with pytest.raises(CorruptObjectError, match="ends before a span"):
        DigestReader(store, "main", "b-1", [entry]).span(0, 0, 2)
    with pytest.raises(CorruptObjectError, match="has no digest object 1"):
        DigestReader(store, "main", "b-1", [entry]).span(1, 0, 1)
    wrong = DigestsEntry(0, entry.stored_bytes, "00" * 32, 1)
    with pytest.raises(CorruptObjectError, match=key):
        DigestReader(store, "main", "b-1", [wrong]).span(0, 0, 1)
    fewer = DigestsEntry(0, entry.stored_bytes, entry.digest, 2)
    with pytest.raises(CorruptObjectError, match="does not hold 2 records"):
        DigestReader(store, "main", "b-1", [fewer]).span(0, 0, 1)


def test_digests_of_an_older_backup() -> None:
    store, digests = stored()
    sink = DigestSink(digests)
    sink.add(b"7" * RECORD_BYTES)
    sink.finish()
    (entry,) = digests.entries()
    lent = DigestsEntry(entry.number, entry.stored_bytes, entry.digest, 1, "b-1")
    reader = DigestReader(store, "main", "b-2", [lent])
    span = DigestSpan(0, 0, 1, 0)
    assert reader.span(span.source, span.first, span.count).tobytes() == b"7" * RECORD_BYTES
