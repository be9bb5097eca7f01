"""Expire and purge on stores that refuse, fail and hold damaged records."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from pgrecall.errors import (
    BackupNotFoundError,
    CorruptObjectError,
    StoreError,
    StoreRefusedError,
)
from pgrecall.model.policies import Policy
from pgrecall.repository import layout
from pgrecall.repository.records import encode_record
from pgrecall.repository.retention_log import read_state
from pgrecall.store.faulty import Fault, FaultyStore
from tests.support.retention_scene import GRACE, RetentionScene

ONE = Policy(keep_last=1)
TWO = Policy(keep_last=2)


@pytest.fixture
def scene() -> RetentionScene:
    return RetentionScene()


def test_a_refused_delete_is_named_and_the_rest_goes(scene: RetentionScene) -> None:
    """Object lock on one object."""
    ids = scene.days(4)
    scene.expire(ONE)
    scene.wait(GRACE)
    locked = layout.complete_key("main", ids[0])

    class Locked(FaultyStore):
        def delete(self, key: str) -> None:
            if key == locked:
                raise StoreRefusedError("it is locked")
            super().delete(key)

    scene.store = Locked(scene.memory)
    _, done = scene.purge()
    assert done is not None
    assert done.refused == 1
    (finding,) = done.findings
    assert (finding.code, finding.subject) == ("delete-refused", locked)
    # What is locked is whole still, and listed no more; the others are gone.
    assert len(scene.objects_of(ids[0])) == 6
    assert scene.objects_of(ids[1]) == scene.objects_of(ids[2]) == []
    assert scene.listed() == [ids[3]]
    scene.store = scene.memory
    scene.purge()
    assert scene.objects_of(ids[0]) == []


def test_credentials_that_cannot_delete_expire_and_hold_all_the_same(
    scene: RetentionScene,
) -> None:
    ids = scene.days(3)
    refuses = Fault(
        "before", method="delete", is_lasting=True, error=lambda: StoreRefusedError("no")
    )
    scene.store = FaultyStore(scene.memory, [refuses])
    scene.hold(ids[0])
    scene.expire(ONE)
    assert scene.listed() == [ids[0], ids[2]]
    scene.wait(GRACE)
    _, done = scene.purge()
    assert done is not None
    assert done.objects == 0
    assert done.refused > 0
    scene.require_sealed()
    scene.store = scene.memory
    scene.purge()
    assert scene.objects_of(ids[1]) == []


def test_a_listing_that_fails_is_no_empty_one(scene: RetentionScene) -> None:
    """Every call that plans make, failing in turn: nothing is ever planned from what is unknown."""
    scene.days(3)
    reference = FaultyStore(scene.memory)
    scene.store = reference
    plan = scene.expire_run().plan(scene.wishes(TWO))
    assert plan.changes
    calls = len(reference.calls)
    for call in range(1, calls + 1):
        scene.store = FaultyStore(scene.memory, [Fault("before", at=call)])
        try:
            found = scene.expire_run().plan(scene.wishes(TWO))
        except StoreError:
            continue
        # Completion records are read by several threads: the call was of none that counts.
        assert found == plan, reference.calls[call - 1]


@pytest.mark.parametrize("kind", ["before", "after"])
def test_purge_is_safe_whichever_call_fails(scene: RetentionScene, kind: Any) -> None:
    full = scene.backup(packs=3)
    scene.work(1)
    scene.backup()
    child = scene.backup({full: [2]})
    scene.expire(ONE)
    scene.wait(GRACE)
    begun = dict(scene.memory.objects)
    call = 0
    failed = True
    while failed:
        call += 1
        scene.memory.objects = dict(begun)
        scene.store = FaultyStore(scene.memory, [Fault(kind, at=call)])
        try:
            scene.purge()
            failed = False
        except StoreError:
            pass
        scene.store = scene.memory
        assert scene.listed() == [child]
        scene.require_sealed()
        scene.purge()
        scene.purge()
        assert scene.objects_of(full) == ["pack-0002"], call
        scene.require_sealed()
    assert call > 40


def test_a_record_that_was_changed_is_refused(scene: RetentionScene) -> None:
    ids = scene.days(2)
    scene.hold(ids[0])
    key = layout.retention_key("main", 1)
    content, at = scene.memory.objects[key]
    scene.memory.objects[key] = (content.replace(b"why not", b"so what"), at)
    for ask in (scene.listed, lambda: scene.expire(ONE)):
        with pytest.raises(CorruptObjectError, match="does not match its own digest"):
            ask()
    scene.memory.objects[key] = (encode_record({"format": 1, "number": 1}), at)
    with pytest.raises(CorruptObjectError, match="lacks or garbles"):
        scene.listed()


def test_nothing_to_expire_that_is_not_there(scene: RetentionScene) -> None:
    scene.backup()
    with pytest.raises(BackupNotFoundError, match="to expire"):
        scene.expire(ONE, "b-20260101T000000Z-0000")


def test_times_are_aware(scene: RetentionScene) -> None:
    ids = scene.days(2)
    scene.expire(ONE, ids[0])
    expired = read_state(scene.store, "main").expired[ids[0]]
    assert isinstance(expired.expired_at, datetime)
    assert expired.expired_at.tzinfo is not None
