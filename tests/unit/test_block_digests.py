"""Digests of blocks: records, objects, and which file's are where."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.backup.base import BasePiece
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
from pgrecall.errors import BackupError, CorruptObjectError
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


def piece_of(content: bytes, log: DigestLog, file: int, offset: int, length: int) -> None:
    """Read a piece as a worker does, a MiB at a time."""
    log.begin(file, offset, None)
    for start in range(offset, offset + length, MEBIBYTE):
        data = memoryview(content)[start : min(start + MEBIBYTE, offset + length)]
        records, crc = block_records(data, SEED)
        log.add(len(data), records, crc, is_same=False)


def test_the_digests_of_a_file_in_pieces_of_several_workers() -> None:
    store, digests = stored()
    content = os.urandom(66 * MEBIBYTE + 5)
    logs = [DigestLog(DigestSink(digests)) for _ in range(2)]
    piece_of(content, logs[0], 3, 0, 64 * MEBIBYTE)
    piece_of(content, logs[1], 3, 64 * MEBIBYTE, 2 * MEBIBYTE + 5)
    for log in logs:
        log.finish()
    size, crc, spans = DigestIndex(logs, 4).of(3)
    assert (size, crc) == (len(content), crc32c(content))
    assert [(span.first, span.count, is_lent) for span, is_lent in spans] == [
        (0, 1024, False),
        (0, 33, False),
    ]
    assert spans[0][0].crc32c == crc32c(content[: 64 * MEBIBYTE])
    reader = DigestReader(store, "main", "b-1", digests.entries())
    found = b"".join(
        reader.span(span.source, span.first, span.count).tobytes() for span, _ in spans
    )
    assert found == bytes(block_records(memoryview(content), SEED)[0])
    assert DigestIndex(logs, 4).of(2) == (0, 0, ())


def test_a_piece_as_the_base_has_it_is_referred_to() -> None:
    _, digests = stored()
    span = DigestSpan(5, 70, 16, 99)
    for same, length, lent in ((True, MEBIBYTE, True), (False, MEBIBYTE, False), (True, 5, False)):
        log = DigestLog(DigestSink(digests))
        log.begin(0, 0, BasePiece(span, MEBIBYTE, as_records(b"")))
        log.add(length, bytes(20 * block_count(length)), 99, is_same=same)
        log.finish()
        ((found, is_lent),) = DigestIndex([log], 1).of(0).spans
        assert (is_lent, found == span) == (lent, lent)


def test_a_gap_between_pieces_is_no_file() -> None:
    _, digests = stored()
    log = DigestLog(DigestSink(digests))
    piece_of(bytes(4 * MEBIBYTE), log, 0, 3 * MEBIBYTE, MEBIBYTE)
    log.finish()
    with pytest.raises(BackupError, match="with a gap"):
        DigestIndex([log], 1).of(0)


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
