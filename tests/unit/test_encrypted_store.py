"""The encrypted form of objects: what is read is what was put, or it is an error."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.codec.aead import (
    CHUNK_BYTES,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    TAG_BYTES,
    DataKey,
    hkdf,
    plain_size,
    sealed_size,
)
from pgrecall.errors import CorruptObjectError, StoreError
from pgrecall.repository.content_names import content_name
from pgrecall.store.encrypted import EncryptedStore
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.memory import MemoryStore
from pgrecall.store.retry import Backoff, RetryStore
from tests.support.encryption import FixedRing, one_key_ring

NOW = datetime(2026, 11, 22, tzinfo=UTC)
EDGES = sorted(
    {
        max(0, chunks * CHUNK_BYTES + delta)
        for chunks in (0, 1, 2, 3)
        for delta in (-TAG_BYTES, -1, 0, 1, TAG_BYTES)
    }
)
CONTENT = bytes(range(256)) * (3 * CHUNK_BYTES // 256 + 2)
sizes = st.one_of(st.sampled_from(EDGES), st.integers(0, 3 * CHUNK_BYTES + 99))


def stored(plain: bytes, ring: FixedRing, key: str = "a/b") -> MemoryStore:
    """A store that holds ``plain`` encrypted."""
    memory = MemoryStore()
    assert EncryptedStore(memory, ring).put(key, [plain])
    return memory


def everything_that_reads(store: EncryptedStore, key: str, plain: bytes) -> None:
    """Read in every way there is; what comes back without an error must be ``plain``."""
    size = len(plain)
    for start, length in [(0, None), (0, size), (0, 10), (size // 2, 5), (max(0, size - 5), None)]:
        found = store.read(key, start, length)
        assert found == (plain[start:] if length is None else plain[start : start + length])
    with store.reader(key) as reader:
        assert bytes(reader.read(0, reader.size)) == plain


@given(sizes)
def test_sizes_follow_from_each_other(size: int) -> None:
    assert plain_size(sealed_size(size)) == size


@given(st.integers(0, 4 * SEALED_CHUNK_BYTES))
def test_sizes_that_no_object_has_are_told(size: int) -> None:
    plain = plain_size(size)
    assert plain is None or sealed_size(plain) == size


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(0, 3 * CHUNK_BYTES + 200), st.integers(0, 2 * CHUNK_BYTES + 200))
def test_any_range_equals_the_plain_slice(size: int, start: int, length: int) -> None:
    plain = CONTENT[:size]
    ring = one_key_ring()
    store = EncryptedStore(stored(plain, ring), ring)
    assert store.read("a/b", start, length) == plain[start : start + length]
    assert store.read("a/b", start) == plain[start:]
    with store.reader("a/b") as reader:
        assert reader.size == size
        for begin, many in [(0, min(9, size)), (start, length), (max(0, size - 9), min(9, size))]:
            if begin + many <= size:
                assert bytes(reader.read(begin, many)) == plain[begin : begin + many]
            else:
                with pytest.raises(CorruptObjectError):
                    reader.read(begin, many)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(sizes, st.integers(0, 40)), max_size=6))
def test_pieces_of_any_size_make_one_object(pieces: list[int]) -> None:
    ring = one_key_ring()
    memory = MemoryStore()
    store = EncryptedStore(memory, ring)
    with store.writer("w") as writer:
        for number, length in enumerate(pieces):
            writer.write(CONTENT[number : number + length])
        assert writer.size == sum(pieces)
        assert writer.commit()
    plain = b"".join(CONTENT[number : number + length] for number, length in enumerate(pieces))
    assert store.read("w") == plain
    assert len(memory.objects["w"][0]) == sealed_size(len(plain))
    found = store.head("w")
    assert found is not None and found.size == len(plain)


def damaged(memory: MemoryStore, content: bytes, ring: FixedRing) -> EncryptedStore:
    memory.objects["a/b"] = (content, NOW)
    return EncryptedStore(memory, ring)


@settings(deadline=None, max_examples=150)
@given(sizes, st.data())
def test_every_flip_is_found_by_who_reads_it_all(size: int, data: st.DataObject) -> None:
    ring = one_key_ring()
    memory = stored(CONTENT[:size], ring)
    sealed = bytearray(memory.objects["a/b"][0])
    place = data.draw(st.one_of(st.integers(0, HEADER_BYTES), st.integers(0, len(sealed) - 1)))
    sealed[place] ^= 1 << data.draw(st.integers(0, 7))
    store = damaged(memory, bytes(sealed), ring)
    with pytest.raises(CorruptObjectError):
        store.read("a/b")
    with pytest.raises(CorruptObjectError), store.reader("a/b") as reader:
        reader.read(0, reader.size)
        everything_that_reads(store, "a/b", CONTENT[:size])  # an empty one reads nothing above


@settings(deadline=None, max_examples=100)
@given(sizes, st.data())
def test_every_truncation_is_found(size: int, data: st.DataObject) -> None:
    ring = one_key_ring()
    memory = stored(CONTENT[:size], ring)
    sealed = memory.objects["a/b"][0]
    boundaries = [HEADER_BYTES + n * SEALED_CHUNK_BYTES for n in range(len(sealed) // CHUNK_BYTES)]
    length = data.draw(
        st.one_of(st.integers(0, len(sealed) - 1), st.sampled_from([*boundaries, 0]))
    )
    if length >= len(sealed):
        return
    store = damaged(memory, sealed[:length], ring)
    for start, many in [(0, None), (max(0, size - 1), 1), (size, 1), (size + 1, None)]:
        with pytest.raises(CorruptObjectError):
            store.read("a/b", start, many)
    with pytest.raises(CorruptObjectError), store.reader("a/b") as reader:
        reader.read(0, reader.size)
        reader.read(0, size or 1)


def test_an_object_that_was_cut_down_to_nothing_is_not_empty() -> None:
    ring = one_key_ring()
    memory = stored(CONTENT[:CHUNK_BYTES], ring)
    cut = memory.objects["a/b"][0][: HEADER_BYTES + TAG_BYTES]
    store = damaged(memory, cut, ring)
    found = store.head("a/b")
    assert found is not None and found.size == 0
    for start in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1):
        with pytest.raises(CorruptObjectError):
            store.read("a/b", start)
    with pytest.raises(CorruptObjectError):
        store.reader("a/b")


def test_what_is_appended_is_found() -> None:
    for size in EDGES:
        ring = one_key_ring()
        memory = stored(CONTENT[:size], ring)
        sealed = memory.objects["a/b"][0]
        for tail in (b"x", sealed[-TAG_BYTES:], sealed[HEADER_BYTES:]):
            with pytest.raises(CorruptObjectError):
                damaged(memory, sealed + tail, ring).read("a/b")


def test_chunks_cannot_be_reordered_or_come_from_elsewhere() -> None:
    ring = one_key_ring()
    memory = stored(CONTENT[: 3 * CHUNK_BYTES], ring)
    other = stored(CONTENT[: 3 * CHUNK_BYTES], ring).objects["a/b"][0]
    sealed = memory.objects["a/b"][0]
    header, body = sealed[:HEADER_BYTES], sealed[HEADER_BYTES:]
    chunks = [body[n * SEALED_CHUNK_BYTES : (n + 1) * SEALED_CHUNK_BYTES] for n in range(3)]
    for order in ([1, 0, 2], [0, 0, 2], [0, 2, 1], [0, 2]):
        with pytest.raises(CorruptObjectError):
            damaged(memory, header + b"".join(chunks[n] for n in order), ring).read("a/b")
    with pytest.raises(CorruptObjectError):
        damaged(memory, header + other[HEADER_BYTES:], ring).read("a/b")
    assert damaged(memory, sealed, ring).read("a/b") == CONTENT[: 3 * CHUNK_BYTES]


def test_an_object_opens_only_under_its_name_in_its_repository() -> None:
    ring = one_key_ring()
    memory = stored(b"plain", ring)
    memory.objects["a/c"] = memory.objects["a/b"]
    store = EncryptedStore(memory, ring)
    assert store.read("a/b") == b"plain"
    with pytest.raises(CorruptObjectError, match="a/c"):
        store.read("a/c")
    elsewhere = FixedRing(ring.keys, "f" * 32)
    with pytest.raises(CorruptObjectError):
        EncryptedStore(memory, elsewhere).read("a/b")


def test_another_key_is_told_from_damage() -> None:
    ring = one_key_ring()
    memory = stored(b"plain", ring)
    wrong = FixedRing([DataKey(ring.keys[0].key_id, os.urandom(32))])
    with pytest.raises(CorruptObjectError, match="was not made with the key"):
        EncryptedStore(memory, wrong).read("a/b")
    with pytest.raises(CorruptObjectError, match="which the repository does not have"):
        EncryptedStore(memory, FixedRing([DataKey("k-other", os.urandom(32))])).read("a/b")


def test_what_is_plain_in_an_encrypted_repository_is_damage() -> None:
    ring = one_key_ring()
    store = damaged(MemoryStore(), b"planted " * 100, ring)
    with pytest.raises(CorruptObjectError, match="does not begin as an encrypted object"):
        store.read("a/b")


def test_keys_and_identity_stay_plain() -> None:
    memory = MemoryStore()
    store = EncryptedStore(memory, one_key_ring())
    for key in ("repository.json", "keys/k/0001.json", "probe-0a"):
        store.put(key, [b"readable"])
        assert memory.objects[key][0] == b"readable" == store.read(key)
    store.put("servers/x", [b"readable"])
    assert b"readable" not in memory.objects["servers/x"][0]
    with store.writer("keys/k/0002.json") as writer:
        writer.write(b"readable")
        writer.commit()
    assert [info.size for info in store.list("keys/")] == [8, 8]


def test_equal_contents_are_stored_differently() -> None:
    ring = one_key_ring()
    memory = MemoryStore()
    store = EncryptedStore(memory, ring)
    store.put("one", [b"same"])
    store.put("two", [b"same"])
    first, second = memory.objects["one"][0], memory.objects["two"][0]
    assert first[40:72] != second[40:72]
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]


def test_names_of_contents_are_keyed_and_stay() -> None:
    ring = one_key_ring()
    digest = "0f" * 32
    name = content_name(EncryptedStore(MemoryStore(), ring), digest)
    assert name not in (digest, content_name(EncryptedStore(MemoryStore(), one_key_ring()), digest))
    rotated = FixedRing([*ring.keys, DataKey("k-new", os.urandom(32))])
    assert content_name(EncryptedStore(MemoryStore(), rotated), digest) == name
    assert content_name(MemoryStore(), digest) == digest


def test_a_put_whose_answer_was_lost_is_our_success() -> None:
    memory = MemoryStore()
    faulty = FaultyStore(memory, [Fault("after", method="put")])
    retrying = RetryStore(faulty, Backoff(retries=3, total_seconds=10, sleep=lambda seconds: None))
    store = EncryptedStore(retrying, one_key_ring())
    assert store.put("key", [b"content"]) is True
    assert store.read("key") == b"content"


def test_a_commit_that_failed_may_be_called_again() -> None:
    faulty = FaultyStore(MemoryStore(), [Fault("before", method="commit")])
    store = EncryptedStore(faulty, one_key_ring())
    writer = store.writer("key")
    writer.write(b"x" * (CHUNK_BYTES + 1))
    with pytest.raises(StoreError):
        writer.commit()
    assert writer.commit() is True
    assert store.read("key") == b"x" * (CHUNK_BYTES + 1)


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=40), st.integers(1, 200))
def test_hkdf_is_that_of_the_rfc(secret: bytes, salt: bytes, info: bytes, length: int) -> None:
    assert hkdf(secret, salt, info, length) == HKDF(SHA256(), length, salt, info).derive(secret)
