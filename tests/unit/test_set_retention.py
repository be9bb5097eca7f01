"""Retention of recovery sets: their parts and their WAL stay and go with them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pgrecall.errors import RetentionError
from pgrecall.further_errors import SetNotFoundError
from pgrecall.model.captures import CaptureFacts, CaptureRecord
from pgrecall.model.ids import CAPTURE, SET, new_id
from pgrecall.model.lsn import Lsn
from pgrecall.model.policies import Policy
from pgrecall.model.sets import SetPoint, SetRecord
from pgrecall.model.wal_files import segment_name
from pgrecall.repository import name_layout
from pgrecall.repository.capture_log import CaptureLog
from pgrecall.repository.retention_log import read_state
from pgrecall.repository.set_catalog import SetCatalog
from tests.support.retention_scene import GRACE, SIZE, SYSTEM, RetentionScene

# Just the newest of each kind, and no more WAL than that needs.
ONE = Policy(keep_last=1, pitr_window_hours=1)


def make_set(scene: RetentionScene, backup_id: str) -> str:
    """A set whose restore point lies in the segment that is written now."""
    backup = scene.catalog.get(backup_id)
    at = scene.hours * SIZE
    scene.work(1)
    set_id = new_id(SET, scene.now)
    point = SetPoint(
        lsn=str(Lsn(at + 500)),
        created_at=scene.now,
        timeline=1,
        segment=segment_name(1, at, SIZE),
        start_lsn=backup.start_lsn,
    )
    capture = CaptureRecord(
        capture_id=new_id(CAPTURE, scene.now),
        server="main",
        captured_at=scene.now,
        facts=CaptureFacts(version_num=180006, version="18.6", data_checksums=True),
    )
    CaptureLog(scene.store, "main").add(capture)
    record = SetRecord(
        set_id=set_id, repository_id=scene.identity.repository_id, server="main", generation=1,
        system_identifier=str(SYSTEM), version_num=180006, capture_id=capture.capture_id,
        backup_id=backup_id, point=point, made_at=scene.now, started_at=scene.now,
        completed_at=scene.now, duration_seconds=1.0,
    )  # fmt: skip
    SetCatalog(scene.store, "main").add(record)
    return set_id


def two_sets(scene: RetentionScene) -> tuple[list[str], list[str]]:
    """Backups and sets, one of each a day; the set comes three hours after its backup."""
    backups, sets = [], []
    for _ in range(2):
        backups.append(scene.backup())
        scene.work(3)
        sets.append(make_set(scene, backups[-1]))
        scene.work(19)
    for _ in range(2):
        backups.append(scene.backup())
        scene.work(5)
    return backups, sets


def test_a_set_keeps_its_parts_and_its_wal() -> None:
    scene = RetentionScene()
    backups, sets = two_sets(scene)
    plan = scene.expire(ONE)
    fates = {one.item_id: one for one in plan.items}
    assert {one.item_id for one in plan.going} == {backups[0], sets[0]}
    assert fates[backups[1]].why == (f"part of the set {sets[1]}",)
    # Up to the restore point, three hours after the backup, and not beyond.
    kept = scene.visible_segments()
    assert set(range(24, 29)) <= kept
    assert 29 not in kept
    assert any(f"it leads to the moment of {sets[1]}" in one.why for one in plan.wal)
    with pytest.raises(SetNotFoundError, match="has expired"):
        SetCatalog(scene.store, "main").get(sets[0])


def test_without_a_window_a_set_promises_its_moment_and_no_other() -> None:
    scene = RetentionScene()
    backups, _ = two_sets(scene)
    scene.expire(Policy(keep_last=1))
    assert scene.listed() == [backups[1], backups[3]]
    kept = scene.visible_segments()
    assert set(range(24, 29)) <= kept
    assert not kept & set(range(29, 48))


def test_it_comes_back_with_its_parts_and_goes_for_good() -> None:
    scene = RetentionScene()
    backups, sets = two_sets(scene)
    scene.expire(ONE)
    scene.undo(sets[0])
    assert scene.listed() == backups
    assert set(range(5)) <= scene.visible_segments()
    assert SetCatalog(scene.store, "main").get(sets[0]).backup_id == backups[0]
    scene.expire(ONE)
    scene.wait(GRACE + timedelta(hours=1))
    _, done = scene.purge()
    assert done is not None
    assert scene.store.head(name_layout.item_prefix("main", sets[0])) is None
    assert scene.store.head(name_layout.item_prefix("main", sets[1])) is not None
    assert scene.objects_of(backups[0]) == []
    assert sets[0] in read_state(scene.store, "main").purging
    with pytest.raises(RetentionError, match="was purged"):
        scene.undo(sets[0])


def test_its_capture_stays_and_comes_back_with_it() -> None:
    scene = RetentionScene()
    _, sets = two_sets(scene)
    first = SetCatalog(scene.store, "main").get(sets[0]).capture_id
    assert not scene.expire(ONE, first).going  # the set needs it
    scene.expire(ONE)
    scene.expire(ONE, first)
    assert first in read_state(scene.store, "main").expired
    scene.undo(sets[0])
    assert first not in read_state(scene.store, "main").expired


def test_a_set_that_cannot_be_read_lets_no_wal_go() -> None:
    scene = RetentionScene()
    _, sets = two_sets(scene)
    key = name_layout.item_prefix("main", sets[1])
    scene.store.delete(key)
    scene.store.put(key, [b"{}"])
    plan = scene.expire(ONE)
    assert plan.segments_going == 0
    assert [one.subject for one in plan.findings if one.code == "item-unreadable"] == [sets[1]]
