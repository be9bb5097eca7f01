"""From settings to a store, the anchor that proves it is ours, the probe, and what it all costs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pgrecall.errors import SettingsError, StoreAbsentError, StoreError, UnsafeStoreError
from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.base import Buffer, ObjectInfo, Store
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.local import LocalStore
from pgrecall.store.memory import MemoryStore
from pgrecall.store.opening import ANCHOR, open_store, prepare_store
from pgrecall.store.probing import probe_store

# Modules that cost more to import than a segment costs to push.
HEAVY = {
    "asyncio", "click", "dataclasses", "inspect", "logging", "msgspec", "numpy", "obstore",
    "pathlib", "psycopg", "random", "rich", "ssl", "subprocess", "tempfile", "urllib.request",
}  # fmt: skip


def settings(path: Path) -> RepositorySettings:
    return RepositorySettings(name="main", store="local", path=str(path), retries=0)


def test_a_repository_begins_and_is_opened(tmp_path: Path) -> None:
    opened = settings(tmp_path / "deep" / "repository")
    with pytest.raises(StoreAbsentError):
        open_store(opened, {}).head("a")
    prepare_store(opened)
    store = open_store(opened, {})
    assert store.head(ANCHOR) is None
    assert store.put(ANCHOR, [b"{}"]) is True
    assert store.head("a/b") is None
    assert store.put("a/b", [b"x"]) is True
    assert [info.key for info in store.list("a/")] == ["a/b"]


def test_a_vanished_mount_is_an_error_for_reads_and_writes(tmp_path: Path) -> None:
    """The mount point is there and empty: its file system is not mounted."""
    prepare_store(settings(tmp_path))
    store = open_store(settings(tmp_path), {})
    store.put(ANCHOR, [b"{}"])
    store.put("a/b", [b"x"])
    mounted = tmp_path.with_name("elsewhere")
    tmp_path.rename(mounted)
    tmp_path.mkdir()
    calls: list[Callable[[], object]] = [
        lambda: store.head("a/b"),
        lambda: store.read("a/b"),
        lambda: store.reader("a/b"),
        lambda: list(store.list("a/")),
        lambda: store.children("a/"),
        lambda: store.put("a/c", [b"x"]),
        lambda: store.writer("a/c"),
        lambda: store.delete("a/b"),
    ]
    for call in calls:
        with pytest.raises(StoreAbsentError, match=ANCHOR):
            call()
    assert os.listdir(tmp_path) == []
    tmp_path.rmdir()
    mounted.rename(tmp_path)
    assert store.read("a/b") == b"x"


def test_without_anchor_an_empty_directory_is_taken_at_its_word(tmp_path: Path) -> None:
    store = open_store(settings(tmp_path), {}, is_anchored=False)
    assert store.head("a/b") is None
    assert len(probe_store(store, "")) == 5
    assert os.listdir(tmp_path) == []


def test_pack_bytes_come_from_the_settings_or_the_store(tmp_path: Path) -> None:
    assert open_store(settings(tmp_path), {}).pack_bytes == 128 << 20
    changed = settings(tmp_path).replace(pack_bytes=1 << 20)
    assert open_store(changed, {}).pack_bytes == 1 << 20


def test_settings_without_a_place_are_refused() -> None:
    with pytest.raises(SettingsError, match="needs a path"):
        open_store(RepositorySettings(name="main", store="local"), {})


def test_opening_and_using_a_local_store_imports_nothing_heavy(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2] / "src")!r})
from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.opening import ANCHOR, open_store
store = open_store(RepositorySettings(name="main", path={str(tmp_path)!r}), {{}})
store.put(ANCHOR, [b"x"])
store.put("a/b", [b"x"])
assert store.read("a/b") == b"x"
assert [info.key for info in store.list("a/")] == ["a/b"]
print("\\n".join(sys.modules))
"""
    child = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    assert HEAVY & set(child.stdout.split()) == set()


# --- the probe finds what a store gets wrong ---------------------------------------------


class Overwriting(MemoryStore):
    def put(self, key: str, parts: list[Buffer]) -> bool:  # type: ignore[override]
        self.objects.pop(key, None)
        return super().put(key, parts)


class Agreeing(MemoryStore):
    def put(self, key: str, parts: list[Buffer]) -> bool:  # type: ignore[override]
        super().put(key, parts)
        return True


class Unlisting(MemoryStore):
    def list(self, prefix: str):  # type: ignore[no-untyped-def,override]
        return iter(list[ObjectInfo]())


@pytest.mark.parametrize(
    ("store", "finding"),
    [
        (Overwriting(), "overwrote"),
        (Agreeing(), "reported success for a put under a name that is taken"),
        (Unlisting(), "does not list"),
        (FaultyStore(MemoryStore(), [Fault("lie", method="put")]), "does not hold it"),
        (FaultyStore(MemoryStore(), [Fault("corrupt", method="read")]), "other bytes"),
        (FaultyStore(MemoryStore(), [Fault("corrupt", method="reader.read")]), "range"),
        (FaultyStore(MemoryStore(), [Fault("lie", method="delete")]), "still holds"),
    ],
    ids=["overwrites", "agrees", "unlisted", "lies", "corrupts", "corrupts ranges", "undeleted"],
)
def test_the_probe_names_what_a_store_does_wrong(store: Store, finding: str) -> None:
    with pytest.raises(UnsafeStoreError, match=finding) as caught:
        probe_store(store, "probes/")
    assert caught.value.hint


def test_a_probe_that_cannot_be_finished_leaves_nothing() -> None:
    memory = MemoryStore()
    calls = FaultyStore(memory)
    probe_store(calls, "probes/")
    for number in range(1, len(calls.calls) + 1):
        store = FaultyStore(memory, [Fault("before", at=number)])
        with pytest.raises(StoreError) as caught:
            probe_store(store, "probes/")
        assert not isinstance(caught.value, UnsafeStoreError)
        last = calls.calls[number - 1][0]
        assert bool(memory.objects) == (last == "delete")
        memory.objects.clear()


def test_a_probe_leaves_no_file(tmp_path: Path) -> None:
    probe_store(LocalStore(str(tmp_path)), "probes/")
    assert os.listdir(tmp_path) == []
