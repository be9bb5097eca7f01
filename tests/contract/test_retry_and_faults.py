"""The wrappers: what is tried again and for how long, and the store that fails on command."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pgrecall.errors import (
    ObjectMissingError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
)
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.local import LocalStore
from pgrecall.store.memory import MemoryStore
from pgrecall.store.retry import FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS, Backoff, RetryStore


class Clock:
    """Time that passes only while somebody sleeps; ``fraction`` of each wait is drawn."""

    def __init__(self, fraction: float = 0.5) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []
        self.fraction = fraction

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def backoff(self, *, retries: int = 5, total_seconds: float = 60.0) -> Backoff:
        return Backoff(
            retries=retries,
            total_seconds=total_seconds,
            clock=lambda: self.now,
            sleep=self.sleep,
            fraction=lambda: self.fraction,
        )


def wrapped(
    *plan: Fault, clock: Clock | None = None, retries: int = 5
) -> tuple[RetryStore, FaultyStore, MemoryStore]:
    memory = MemoryStore()
    faulty = FaultyStore(memory, plan)
    return RetryStore(faulty, (clock or Clock()).backoff(retries=retries)), faulty, memory


# --- retry ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["put", "read", "reader", "head", "children", "delete", "list"])
def test_each_operation_is_tried_again(method: str) -> None:
    store, faulty, memory = wrapped()
    memory.put("a/there", [b"x"])
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: store.put("a/new", [b"x"]),
        "read": lambda: store.read("a/there"),
        "reader": lambda: store.reader("a/there"),
        "head": lambda: store.head("a/there"),
        "children": lambda: store.children("a/"),
        "delete": lambda: store.delete("a/there"),
        "list": lambda: list(store.list("a/")),
    }
    faulty.plan = [Fault("before", method=method, at=1), Fault("before", method=method, at=2)]
    calls[method]()
    assert [name for name, _ in faulty.calls] == [method] * 3


def test_reads_of_a_reader_are_tried_again() -> None:
    store, faulty, memory = wrapped(Fault("before", method="reader.read"))
    memory.put("a", [b"12345"])
    with store.reader("a") as reader:
        assert reader.read(1, 2) == b"23"
        faulty.plan = [Fault("before", method="reader.read", at=3)]
        buffer = bytearray(2)
        reader.read_into(3, buffer)
        assert buffer == b"45"


def test_waits_grow_are_jittered_and_bounded() -> None:
    clock = Clock(fraction=0.999)
    faulty = FaultyStore(MemoryStore(), [Fault("before", is_lasting=True)])
    with pytest.raises(StoreError, match="tried 9 times"):
        RetryStore(faulty, clock.backoff(retries=8, total_seconds=1e6)).head("a")
    ceilings = [min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**n) for n in range(8)]
    assert clock.sleeps == pytest.approx([0.999 * ceiling for ceiling in ceilings])
    assert len(faulty.calls) == 9


def test_the_total_is_bounded() -> None:
    clock = Clock(fraction=1.0)
    faulty = FaultyStore(MemoryStore(), [Fault("before", is_lasting=True)])
    with pytest.raises(StoreError):
        RetryStore(faulty, clock.backoff(retries=100, total_seconds=5.0)).head("a")
    assert 2.0 < clock.now - 1000.0 <= 5.0


def test_the_default_jitter_is_a_fraction() -> None:
    sleeps: list[float] = []
    backoff = Backoff(retries=100, total_seconds=1e9, sleep=sleeps.append)
    assert all(backoff.wait(1, backoff.clock()) for _ in range(50))
    assert all(0 <= seconds < FIRST_DELAY_SECONDS for seconds in sleeps)
    assert len(set(sleeps)) > 40


@pytest.mark.parametrize("error", [StoreRefusedError, StoreFullError])
def test_what_cannot_succeed_later_is_not_tried_again(error: type[StoreError]) -> None:
    store, faulty, _ = wrapped(Fault("before", error=lambda: error("no"), is_lasting=True))
    with pytest.raises(error) as caught:
        store.put("a", [b"x"])
    assert str(caught.value) == "no"
    assert len(faulty.calls) == 1


def test_absence_is_not_tried_again() -> None:
    store, faulty, _ = wrapped()
    with pytest.raises(ObjectMissingError):
        store.read("a")
    assert store.head("a") is None
    assert len(faulty.calls) == 2


def test_our_own_put_whose_answer_was_lost_is_a_success() -> None:
    store, faulty, memory = wrapped(Fault("after", method="put"))
    assert store.put("a", [b"con", b"tent"]) is True
    assert [name for name, _ in faulty.calls] == ["put", "put", "read"]
    assert memory.read("a") == b"content"


def test_our_own_commit_whose_answer_was_lost_is_a_success() -> None:
    store, _, memory = wrapped(Fault("after", method="commit"))
    with store.writer("a") as writer:
        writer.write(b"content")
        assert writer.commit() is True
    assert memory.read("a") == b"content"


def test_a_lost_answer_and_the_content_of_another_is_a_taken_key() -> None:
    store, _, memory = wrapped(Fault("before", method="put"))
    memory.put("a", [b"of another"])
    assert store.put("a", [b"content"]) is False
    assert memory.read("a") == b"of another"


def test_a_taken_key_is_not_read_when_nothing_failed() -> None:
    store, faulty, memory = wrapped()
    memory.put("a", [b"content"])
    assert store.put("a", [b"content"]) is False
    assert [name for name, _ in faulty.calls] == ["put"]


def test_half_an_object_of_a_torn_put_is_no_success() -> None:
    store, _, _ = wrapped(Fault("torn", method="put"))
    assert store.put("a", [b"content"]) is False


def test_a_listing_goes_on_where_it_failed() -> None:
    store, faulty, memory = wrapped(
        Fault("after", method="list"), Fault("after", method="list", at=2)
    )
    keys = [f"a/{number}" for number in range(10)]
    for key in keys:
        memory.put(key, [b""])
    assert [info.key for info in store.list("a/")] == keys
    assert len(faulty.calls) == 3


def test_a_listing_that_goes_on_failing_is_an_error() -> None:
    store, _, memory = wrapped(Fault("after", method="list", is_lasting=True))
    memory.put("a/1", [b""])
    memory.put("a/2", [b""])
    with pytest.raises(StoreError):
        list(store.list("a/"))


def test_a_streaming_writer_is_not_tried_again(tmp_path: Path) -> None:
    faulty = FaultyStore(LocalStore(str(tmp_path)), [Fault("before", method="commit")])
    store = RetryStore(faulty, Clock().backoff())
    with store.writer("a") as writer:
        writer.write(b"x")
        with pytest.raises(StoreError):
            writer.commit()
    assert list(store.list("")) == []


# --- faulty ---------------------------------------------------------------------------


def test_calls_are_counted_and_fail_by_number() -> None:
    memory = MemoryStore()
    store = FaultyStore(memory, [Fault("before", at=3)])
    store.put("a", [b"x"])
    store.head("a")
    with pytest.raises(StoreError, match="injected"):
        store.delete("a")
    store.read("a")
    assert store.calls == [("put", "a"), ("head", "a"), ("delete", "a"), ("read", "a")]


def test_a_lasting_fault_is_an_outage() -> None:
    store = FaultyStore(MemoryStore(), [Fault("before", at=2, is_lasting=True)])
    store.put("a", [b"x"])
    for _ in range(3):
        with pytest.raises(StoreError):
            store.read("a")


def test_a_fault_after_the_call_has_taken_effect() -> None:
    memory = MemoryStore()
    store = FaultyStore(memory, [Fault("after", method="put"), Fault("after", method="delete")])
    with pytest.raises(StoreError):
        store.put("a", [b"x"])
    assert memory.read("a") == b"x"
    with pytest.raises(StoreError):
        store.delete("a")
    assert memory.head("a") is None


def test_what_a_lost_answer_has_opened_is_closed(tmp_path: Path) -> None:
    """Nobody else could: no temporary file and no descriptor stays behind."""
    local = LocalStore(str(tmp_path))
    local.put("a", [b"x"])
    plan = [Fault("after", method="writer"), Fault("after", method="reader")]
    store = FaultyStore(local, plan)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(StoreError, match="injected"):
        store.writer("b")
    assert list(local.leftovers()) == []
    with pytest.raises(StoreError, match="injected"):
        store.reader("a")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("is_local", [False, True])
def test_a_torn_write(is_local: bool, tmp_path: Path) -> None:
    inner = LocalStore(str(tmp_path)) if is_local else MemoryStore()
    store = FaultyStore(inner, [Fault("torn", method="write" if is_local else "commit")])
    with pytest.raises(StoreError), store.writer("a") as writer:
        writer.write(b"12345678")
        writer.commit()
    found = inner.head("a")
    # A directory publishes whole objects only; a store without that promise shows half.
    assert found is None if is_local else (found is not None and found.size == 4)


@pytest.mark.parametrize("is_local", [False, True])
def test_a_lie(is_local: bool, tmp_path: Path) -> None:
    inner = LocalStore(str(tmp_path)) if is_local else MemoryStore()
    store = FaultyStore(inner, [Fault("lie", method="commit"), Fault("lie", method="delete")])
    with store.writer("a") as writer:
        writer.write(b"x")
        assert writer.commit() is True
    assert inner.head("a") is None
    inner.put("b", [b"x"])
    store.delete("b")
    assert inner.head("b") is not None


def test_a_corrupt_byte() -> None:
    store = FaultyStore(
        MemoryStore(),
        [Fault("corrupt", method="read", byte=2), Fault("corrupt", method="reader.read", at=2)],
    )
    store.put("a", [b"aaaa"])
    assert store.read("a") == b"aa`a"
    assert store.read("a") == b"aaaa"
    with store.reader("a") as reader:
        assert reader.read(0, 4) == b"aaaa"
        buffer = bytearray(4)
        reader.read_into(0, buffer)
        assert buffer == b"`aaa"


def test_a_call_that_hangs_until_it_is_released() -> None:
    fault = Fault("hang", method="put")
    memory = MemoryStore()
    store = FaultyStore(memory, [fault])
    thread = threading.Thread(target=store.put, args=("a", [b"x"]))
    thread.start()
    assert fault.reached.wait(10)
    assert memory.head("a") is None
    fault.released.set()
    thread.join(10)
    assert memory.read("a") == b"x"
