"""Expire, leases and purge on a real S3 server, whose clock is its own."""

from __future__ import annotations

from datetime import timedelta

from pgrecall.model.policies import Policy
from pgrecall.repository.leases import leased, read_leases
from pgrecall.store.opening import open_store
from tests.support.retention_scene import GRACE, RetentionScene
from tests.support.s3_fixtures import S3Settings


def test_from_expiry_to_purge(s3_settings: S3Settings, secret_environment: dict[str, str]) -> None:
    scene = RetentionScene(open_store(s3_settings(), secret_environment))
    full = scene.backup()
    scene.work(2)
    gone = scene.backup()
    child = scene.backup({full: [2]})
    scene.expire(Policy(keep_last=1))
    assert scene.listed() == [child]
    scene.undo(gone)
    assert scene.listed() == [gone, child]
    scene.expire(Policy(keep_last=1))
    with leased(
        scene.store, "main", "restore", [gone], lasts_seconds=900, run_id="r-here"
    ) as lease:
        (seen,) = read_leases(scene.store, "main")
        assert seen.record.items == (gone,)
        # By the server's clock: that of this host does not count.
        assert seen.is_alive(lease.taken_at)
        assert not seen.is_alive(lease.taken_at + timedelta(hours=1))
        now = lease.taken_at
        scene.now = now
        assert not scene.purge()[0].items
    assert read_leases(scene.store, "main") == []
    scene.now = now + GRACE + timedelta(minutes=1)
    plan, done = scene.purge()
    assert {item.item_id for item in plan.items} == {full, gone}
    assert done is not None
    assert done.refused == 0
    assert scene.objects_of(full) == ["pack-0002"]
    assert scene.objects_of(gone) == []
    assert scene.segments() == scene.visible_segments()
    scene.require_sealed()
