"""A failed backup removes what it stored, and does not wait for a store that is away."""

from __future__ import annotations

import pytest

from pgrecall.errors import StoreError
from pgrecall.repository.own_objects import remove_own_objects
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.memory import MemoryStore

KEYS = [f"servers/main/backups/b-1/pack-{number:04d}" for number in range(100)]


def filled() -> MemoryStore:
    store = MemoryStore()
    for key in [*KEYS, "servers/main/backups/b-2/pack-0000"]:
        store.put(key, [b"x"])
    return store


def test_only_the_keys_that_are_given() -> None:
    store = filled()
    remove_own_objects(store, KEYS)
    assert [info.key for info in store.list("")] == ["servers/main/backups/b-2/pack-0000"]
    remove_own_objects(store, KEYS)
    remove_own_objects(store, ())


def test_it_gives_up_at_the_first_failure(caplog: pytest.LogCaptureFixture) -> None:
    fault = Fault("before", method="delete", is_lasting=True, error=lambda: StoreError("an outage"))
    store = FaultyStore(filled(), [fault])
    remove_own_objects(store, KEYS)
    assert 1 <= len([call for call in store.calls if call[0] == "delete"]) <= 8
    assert "stay" in caplog.text
