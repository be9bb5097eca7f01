"""What every store promises (store/base.py), asked of every kind of store."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from pgrecall.errors import CorruptObjectError, InvalidKeyError, ObjectMissingError
from pgrecall.store.base import Store
from pgrecall.store.probing import probe_store

ODD_KEYS = [
    "a",
    "-",
    "servers/b%C3%BCro%20nord/x",
    "servers/%2e%2e/x",
    "wal/0001/00000001/00000000/000000010000000000000001.00000028.backup",
    "wal/0001/00000001/00000000/000000010000000000000002.partial",
    "odd/-_.=%+~/~+=._-",
    "deep/" * 40 + "end",
    "long/" + "x" * 255,
]
BAD_KEYS = [
    "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/.b", ".a", "a b", "a\\b",
    "a\0b", "ä", "a\nb", "a?b", "a#b", "x" * 256, "a/" * 600 + "b",
]  # fmt: skip


def test_what_was_put_is_read_back(store: Store) -> None:
    content = os.urandom(70_000)
    assert store.put("a/b/object", [content[:10], memoryview(content)[10:], b"", bytearray(b"z")])
    assert store.read("a/b/object") == content + b"z"
    assert type(store.read("a/b/object")) is bytes


def test_a_taken_key_is_refused_and_untouched(store: Store) -> None:
    assert store.put("key", [b"first"]) is True
    assert store.put("key", [b"second, longer"]) is False
    assert store.put("key", []) is False
    assert store.read("key") == b"first"
    with store.writer("key") as writer:
        writer.write(b"third")
        assert writer.commit() is False
    assert store.read("key") == b"first"


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.put("empty", []) is True
    assert store.put("empty", [b"x"]) is False
    assert store.read("empty") == b""
    assert store.read("empty", 0, 10) == b""
    info = store.head("empty")
    assert info is not None and info.size == 0
    with store.reader("empty") as reader:
        assert reader.size == 0
        assert bytes(reader.read(0, 0)) == b""
        with pytest.raises(CorruptObjectError):
            reader.read(0, 1)


def test_an_object_of_20_mib(store: Store) -> None:
    block = hashlib.sha256(b"seed").digest() * 32768
    content = b"".join([block[i:] + block[:i] for i in range(20)])
    assert len(content) == 20 << 20
    with store.writer("big") as writer:
        for start in range(0, len(content), 3_000_001):
            writer.write(content[start : start + 3_000_001])
        assert writer.size == len(content)
        assert writer.commit() is True
    assert hashlib.sha256(store.read("big")).digest() == hashlib.sha256(content).digest()
    with store.reader("big") as reader:
        assert reader.size == len(content)
        assert bytes(reader.read(19 << 20, 1 << 20)) == content[19 << 20 :]


def test_a_writers_buffer_may_be_reused(store: Store) -> None:
    buffer = bytearray(b"one.")
    with store.writer("reused") as writer:
        writer.write(buffer)
        buffer[:] = b"two."
        writer.write(memoryview(buffer))
        assert writer.commit() is True
    assert store.read("reused") == b"one.two."


def test_nothing_is_visible_before_the_commit(store: Store) -> None:
    with store.writer("pending/object") as writer:
        writer.write(b"x" * 100_000)
        assert store.head("pending/object") is None
        assert list(store.list("")) == []
        assert list(store.children("")) == []
        assert list(store.children("pending/")) == []
        assert writer.commit() is True
    assert [info.key for info in store.list("")] == ["pending/object"]


def test_a_writer_without_commit_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.writer("dropped/object") as writer:
        writer.write(b"content")
        raise RuntimeError
    writer.discard()
    assert store.head("dropped/object") is None
    assert list(store.list("")) == []
    with pytest.raises(ValueError, match="discarded"):
        writer.write(b"more")
    with pytest.raises(ValueError, match="discarded"):
        writer.commit()
    assert store.put("dropped/object", [b"other"]) is True


def test_ranges(store: Store) -> None:
    content = bytes(range(256)) * 10
    store.put("ranges", [content])
    size = len(content)
    for start, length in [(0, 1), (0, size), (5, 100), (size - 1, 1), (size - 1, 5), (0, size + 9)]:
        assert store.read("ranges", start, length) == content[start : start + length]
    assert store.read("ranges", 100) == content[100:]
    assert store.read("ranges", size) == b""
    assert store.read("ranges", size, 1) == b""
    assert store.read("ranges", size + 5, 1) == b""
    assert store.read("ranges", 7, 0) == b""
    with store.reader("ranges") as reader:
        assert bytes(reader.read(5, 100)) == content[5:105]
        assert bytes(reader.read(0, 0)) == b""
        buffer = bytearray(b"?" * 12)
        reader.read_into(250, memoryview(buffer)[1:11])
        assert buffer == b"?" + content[250:260] + b"?"
        for start, length in [(size, 1), (size - 1, 2), (size + 100, 1), (0, size + 1)]:
            with pytest.raises(CorruptObjectError):
                reader.read(start, length)
            with pytest.raises(CorruptObjectError):
                reader.read_into(start, bytearray(length))


def test_many_threads_read_one_reader(store: Store) -> None:
    content = os.urandom(200_000)
    store.put("shared", [content])
    wrong: list[int] = []
    with store.reader("shared") as reader:

        def read(start: int) -> None:
            for offset in range(start, 190_000, 17_001):
                if bytes(reader.read(offset, 5000)) != content[offset : offset + 5000]:
                    wrong.append(offset)

        _in_threads([lambda start=start: read(start) for start in range(6)])
    assert wrong == []


def test_one_of_many_wins_the_key(store: Store) -> None:
    for round_number in range(2):  # SeaweedFS takes seconds for each
        key = f"race/{round_number}"
        start = threading.Barrier(8)
        results: dict[int, bool] = {}

        def contend(number: int) -> None:
            start.wait()  # noqa: B023
            results[number] = store.put(key, [b"%d" % number * 5000])  # noqa: B023

        _in_threads([lambda number=number: contend(number) for number in range(8)])
        winners = [number for number, created in results.items() if created]
        assert len(results) == 8
        assert len(winners) == 1
        assert store.read(key) == b"%d" % winners[0] * 5000


@pytest.mark.parametrize("key", ODD_KEYS, ids=lambda key: key[:30])
def test_odd_keys(store: Store, key: str) -> None:
    assert store.put(key, [key.encode()]) is True
    assert store.put(key, [b"again"]) is False
    assert store.read(key) == key.encode()
    assert [info.key for info in store.list("")] == [key]
    assert [info.key for info in store.list(key)] == [key]
    parent, slash, name = key.rpartition("/")
    assert list(store.children(parent + slash)) == [name]
    store.delete(key)
    assert store.head(key) is None
    assert list(store.list("")) == []


def test_bad_keys_are_refused(store: Store) -> None:
    for key in BAD_KEYS:
        for call in (store.head, store.read, store.reader, store.writer, store.delete):
            with pytest.raises(InvalidKeyError):
                call(key)
        with pytest.raises(InvalidKeyError):
            store.put(key, [b"x"])
    for prefix in ("/", "../", ".", "a//", "a/../", "ä"):
        with pytest.raises(InvalidKeyError):
            list(store.list(prefix))
        with pytest.raises(InvalidKeyError):
            store.children(prefix)
    with pytest.raises(InvalidKeyError):
        store.children("a")
    assert list(store.list("")) == []


def test_listings_are_in_the_order_of_bytes(store: Store) -> None:
    keys = [
        "a-z", "a.z", "a/0", "a/a", "a/a-b/c", "a/a.b", "a/a/c", "a/b", "a/z", "a0", "aA", "a_",
        "aa", "a~", "A", "Z/x", "b", "0", "%41", "+", "-",
    ]  # fmt: skip
    # "a/a" is an object, so "a/a/c" cannot be one: a key is no directory of another.
    keys.remove("a/a/c")
    for key in reversed(keys):
        store.put(key, [key.encode()])
    found = list(store.list(""))
    assert [info.key for info in found] == sorted(keys, key=str.encode)
    assert [info.size for info in found] == [len(info.key) for info in found]


def test_a_prefix_may_be_any_string(store: Store) -> None:
    keys = ["p/one", "p/only/x", "p/only/y", "p/onward", "p/two", "q/one", "pp"]
    for key in keys:
        store.put(key, [b""])
    for prefix in ["", "p", "p/", "p/on", "p/onl", "p/only", "p/only/", "p/only/y", "p/one", "q/o"]:
        assert [info.key for info in store.list(prefix)] == sorted(
            key for key in keys if key.startswith(prefix)
        ), prefix
    for prefix in ["x", "p/x", "p/one/", "p/only/y/", "none/of/these", "p/only/yy"]:
        assert list(store.list(prefix)) == [], prefix


def test_children(store: Store) -> None:
    for key in ["a/b/c", "a/b/d", "a/d", "a/e/f/g", "a-b", "z"]:
        store.put(key, [b""])
    assert list(store.children("")) == ["a-b", "a/", "z"]
    assert list(store.children("a/")) == ["b/", "d", "e/"]
    assert list(store.children("a/e/")) == ["f/"]
    assert list(store.children("none/")) == []
    store.delete("a/d")
    assert list(store.children("a/")) == ["b/", "e/"]


def test_a_listing_of_more_than_one_page(store: Store) -> None:
    keys = [f"many/{number:05d}" for number in range(1203)]  # a page of S3 holds 1000
    chunks = [keys[start::8] for start in range(8)]
    _in_threads([lambda chunk=chunk: [store.put(key, [b"x"]) for key in chunk] for chunk in chunks])
    assert [info.key for info in store.list("many/")] == keys
    assert list(store.children("many/")) == [key[5:] for key in keys]


def test_head_tells_size_and_time(store: Store) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    store.put("timed", [b"12345"])
    info = store.head("timed")
    assert info is not None
    assert (info.key, info.size) == ("timed", 5)
    assert before < info.stored_at < datetime.now(UTC) + timedelta(seconds=5)
    assert info.stored_at.utcoffset() == timedelta(0)
    (listed,) = store.list("timed")
    assert (listed.key, listed.size, listed.stored_at) == (info.key, info.size, info.stored_at)


def test_what_is_missing_is_said_to_be_missing(store: Store) -> None:
    store.put("there/object", [b"x"])
    for key in ["missing", "there", "there/objec", "there/object/below", "other/object"]:
        assert store.head(key) is None
        with pytest.raises(ObjectMissingError):
            store.read(key)
        with pytest.raises(ObjectMissingError):
            store.read(key, 0, 0)
        with pytest.raises(ObjectMissingError):
            store.read(key, 5, 5)
        with pytest.raises(ObjectMissingError):
            store.reader(key)


def test_delete(store: Store) -> None:
    store.put("d/one", [b"x"])
    store.put("d/two", [b"x"])
    store.delete("d/one")
    store.delete("d/one")
    store.delete("d")
    store.delete("d/two/below")
    store.delete("never/was")
    assert [info.key for info in store.list("")] == ["d/two"]
    assert store.put("d/one", [b"again"]) is True
    assert store.read("d/one") == b"again"


def test_the_probe_passes_and_leaves_nothing(store: Store) -> None:
    proven = probe_store(store, "probes/")
    assert len(proven) == 5
    assert list(store.list("")) == []


def test_the_name_tells_which_store(store: Store) -> None:
    assert store.name
    assert store.pack_bytes >= 1 << 20


def _in_threads(actions: Sequence[Callable[[], object]]) -> None:
    """Run all at once; the exception of the first that failed is raised."""
    with ThreadPoolExecutor(len(actions)) as pool:
        for future in [pool.submit(action) for action in actions]:
            future.result()
