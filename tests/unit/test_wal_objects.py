"""The format of stored WAL files: round trips, damage anywhere, and what is read to learn what."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.codec.compression import make_frame_encoder
from pgrecall.errors import (
    CorruptObjectError,
    ObjectMissingError,
    PgrecallError,
    RepositoryError,
    WalFormatError,
)
from pgrecall.model.wal_files import SEGMENT
from pgrecall.repository import wal_objects
from pgrecall.repository.wal_objects import (
    WalContent,
    WalHeader,
    WalObjectReader,
    WalObjectWriter,
    read_header,
    read_index,
)
from pgrecall.store.base import Buffer
from pgrecall.store.memory import MemoryStore

NAME = "000000010000000000000003"
KEY = f"servers/main/wal/0001/00000001/00000000/{NAME}"
RAW_KEY = bytes(range(32))
PUSHED_AT = datetime(2026, 11, 22, 20, 16, 37, 123456, tzinfo=UTC)


class RecordingStore(MemoryStore):
    """Remembers how many bytes each read asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        data = super().read(key, start, length)
        self.reads.append(len(data))
        return data


def header(name: str = NAME) -> WalHeader:
    made = WalHeader(name, SEGMENT)
    made.system_identifier = 7569384756938475693
    made.segment_bytes = 1 << 20
    made.writer = "x-20261122T201637Z-7k3q"
    made.pushed_at = PUSHED_AT
    return made


def put(store: MemoryStore, raw: Buffer, index: bytes = b'{"v":1}', codec: str = "zstd") -> bytes:
    content = WalContent(raw, index, RAW_KEY)
    writer = WalObjectWriter(header(), content, make_frame_encoder(codec, 1))
    assert writer.write(store, KEY)
    stored = store.read(KEY)
    assert writer.stored_bytes == len(stored)
    return stored


def mixed(size: int) -> bytes:
    """Half of it compresses."""
    return random.Random(7).randbytes(size // 2) + b"pgrecall" * (size // 16 + 1)


@settings(deadline=None, max_examples=30)
@given(
    size=st.sampled_from([0, 1, 45, 1 << 20, (1 << 20) + 1, (3 << 20) - 1]),
    index=st.binary(max_size=300),
    codec=st.sampled_from(["zstd", "lz4", "none"]),
)
def test_round_trip(size: int, index: bytes, codec: str) -> None:
    raw = mixed(size)[:size]
    store = MemoryStore()
    put(store, raw, index, codec)
    with WalObjectReader(store, KEY, RAW_KEY) as stored:
        assert stored.read() == raw
        found = stored.header
    assert found.encode() == read_header(store, KEY).encode()
    assert (found.name, found.kind, found.raw_bytes) == (NAME, SEGMENT, size)
    assert (found.system_identifier, found.segment_bytes) == (7569384756938475693, 1 << 20)
    assert (found.writer, found.pushed_at) == ("x-20261122T201637Z-7k3q", PUSHED_AT)
    assert read_index(store, KEY) == index


def test_a_taken_key_is_not_touched() -> None:
    store = MemoryStore()
    before = put(store, b"first" * 1000)
    content = WalContent(b"other" * 1000, b"", RAW_KEY)
    assert not WalObjectWriter(header(), content, make_frame_encoder("zstd", 1)).write(store, KEY)
    assert store.read(KEY) == before


def test_equal_content_is_known_by_the_head_alone_whatever_the_compression() -> None:
    raw = mixed(3 << 20)
    one, other = RecordingStore(), MemoryStore()
    put(one, raw, codec="lz4")
    put(other, raw, codec="zstd")
    one.reads.clear()
    assert read_header(one, KEY).same_content(read_header(other, KEY))
    assert one.reads == [wal_objects.HEAD_READ_BYTES]
    third = MemoryStore()
    put(third, raw[:-1] + b"x")
    assert not read_header(third, KEY).same_content(read_header(other, KEY))


@pytest.mark.parametrize("length", [400, 200_000])
def test_the_index_is_one_read_of_the_tail_two_when_it_is_large(length: int) -> None:
    store = RecordingStore()
    index = os.urandom(length)
    size = len(put(store, mixed(3 << 20), index))
    store.reads.clear()
    assert read_index(store, KEY, size) == index
    assert store.reads[0] == wal_objects.TAIL_READ_BYTES
    assert len(store.reads) == (1 if length == 400 else 2)


class Damaged(MemoryStore):
    """Serves other bytes than it was given; reads whole or in ranges."""

    def __init__(self, content: bytes, *, reads_whole: bool) -> None:
        super().__init__()
        self.put(KEY, [content])
        self.reads_whole = reads_whole


def everything_that_reads(store: MemoryStore) -> None:
    read_header(store, KEY)
    read_index(store, KEY)
    with WalObjectReader(store, KEY, RAW_KEY) as stored:
        stored.read()


@pytest.fixture(scope="module")
def small() -> bytes:
    return put(MemoryStore(), mixed(6000), b'{"v":1,"timeline":1}')


@pytest.mark.parametrize("reads_whole", [True, False])
def test_every_flipped_bit_is_found(small: bytes, reads_whole: bool) -> None:
    for position in range(len(small)):
        damaged = bytearray(small)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(CorruptObjectError, match=KEY):
            everything_that_reads(Damaged(bytes(damaged), reads_whole=reads_whole))


@pytest.mark.parametrize("reads_whole", [True, False])
def test_every_truncation_is_found(small: bytes, reads_whole: bool) -> None:
    for length in range(0, len(small), 7):
        with pytest.raises(CorruptObjectError):
            everything_that_reads(Damaged(small[:length], reads_whole=reads_whole))
    with pytest.raises(CorruptObjectError):
        everything_that_reads(Damaged(small + b"\0", reads_whole=reads_whole))


@given(st.binary(max_size=2000))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(CorruptObjectError):
        everything_that_reads(Damaged(garbage, reads_whole=True))


def test_the_damaged_frame_is_named() -> None:
    store = MemoryStore()
    stored = bytearray(put(store, random.Random(1).randbytes(3 << 20), codec="none"))
    stored[(2 << 20) + 5000] ^= 1
    damaged = Damaged(bytes(stored), reads_whole=False)
    with (
        WalObjectReader(damaged, KEY, RAW_KEY) as opened,
        pytest.raises(CorruptObjectError, match="frame 3 of 3"),
    ):
        opened.read()


def test_head_and_end_of_different_objects_do_not_fit() -> None:
    first, second = put(MemoryStore(), b"a" * 5000), put(MemoryStore(), b"b" * 5000)
    assert len(first) == len(second)
    front = 12 + int.from_bytes(first[8:12], "little") + 32
    with pytest.raises(CorruptObjectError, match="different objects"):
        everything_that_reads(Damaged(first[:front] + second[front:], reads_whole=True))


def test_the_whole_raw_file_is_compared_too() -> None:
    store = MemoryStore()
    put(store, mixed(5000))
    with (
        WalObjectReader(store, KEY, bytes(32)) as stored,
        pytest.raises(CorruptObjectError, match="whole raw file"),
    ):
        stored.read()


def test_a_newer_format_is_refused_as_such() -> None:
    encoded = header().encode().replace(b'"format":1', b'"format":2')
    front = b"PGRWAL1\0" + len(encoded).to_bytes(4, "little") + encoded
    store = MemoryStore()
    store.put(KEY, [front, wal_objects.stored_digest(front)])
    with pytest.raises(RepositoryError, match="not known") as caught:
        read_header(store, KEY)
    assert not isinstance(caught.value, CorruptObjectError)


def test_what_is_absent_is_missing_and_not_damaged() -> None:
    store = MemoryStore()
    for look in (read_header, read_index):
        with pytest.raises(ObjectMissingError):
            look(store, KEY)
    with pytest.raises(ObjectMissingError):
        WalObjectReader(store, KEY, RAW_KEY)


def test_a_mapped_file_that_changes_is_not_stored(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(mixed(2 << 20))
    store = MemoryStore()
    encode = make_frame_encoder("zstd", 1)
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as mapped,
        memoryview(mapped) as view,
    ):
        content = WalContent(view, b"", RAW_KEY)
        mapped[1_500_000] ^= 1
        with pytest.raises(WalFormatError, match="changed while"):
            WalObjectWriter(header(), content, encode).write(store, KEY)
        assert store.head(KEY) is None
        mapped[1_500_000] ^= 1
        assert WalObjectWriter(header(), content, encode).write(store, KEY)
    with WalObjectReader(store, KEY, RAW_KEY) as stored:
        assert stored.read() == path.read_bytes()


class TornStore(MemoryStore):
    """Keeps only the beginning of what is put, and says that all is well."""

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        return super().put(key, [b"".join(parts)[:-100]])


def test_a_store_that_lies_is_found_out_by_the_next_read() -> None:
    store = TornStore()
    content = WalContent(mixed(5000), b"", RAW_KEY)
    assert WalObjectWriter(header(), content, make_frame_encoder("zstd", 1)).write(store, KEY)
    with pytest.raises(PgrecallError):
        everything_that_reads(store)
