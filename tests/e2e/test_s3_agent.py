"""The pusher and the fetcher on a real S3 server: in parallel, over an outage, with debts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.repository.identity import (
    System,
    add_generation,
    create_repository,
    latest_generation,
)
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import RepositorySettings
from pgrecall.store.base import Store
from pgrecall.store.opening import open_store
from pgrecall.wal.prefetch import Fetcher
from pgrecall.wal.pusher import Pusher
from tests.support.pusher_scene import PusherScene, at_work, wait_until
from tests.support.s3_fixtures import S3Settings
from tests.support.wal_scene import NOW, SYSTEM


def introduce(
    scene: PusherScene, repository: RepositorySettings, environment: dict[str, str]
) -> Store:
    """Make the repository in S3, and give it to the scene in place of ``one``."""
    store = open_store(repository, environment, is_anchored=False)
    create_repository(store, NOW)
    add_generation(store, "main", System(SYSTEM, 18, scene.segment_bytes, 8192), NOW)
    return store


def archive_of(store: Store) -> WalArchive:
    generation = latest_generation(store, "main")
    assert generation is not None
    return WalArchive(store, "main", generation)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_backlog_goes_up_and_comes_back(
    tmp_path: Path, s3_settings: S3Settings, secret_environment: dict[str, str], workers: int
) -> None:
    scene = PusherScene(tmp_path)
    repository = s3_settings(name="one")
    store = introduce(scene, repository, secret_environment)
    scene.settings.repositories["one"] = repository
    scene.settings.agent = scene.settings.agent.replace(push_workers=workers)
    segments = scene.make_ready(12)
    pusher = Pusher(scene.settings, scene.server, secret_environment, pgdata=str(scene.pgdata))
    with at_work(pusher):
        wait_until(lambda: pusher.facts()["lag_segments"] == 0, "the backlog is archived")
        for name in segments:
            pusher.push(f"pg_wal/{name}", str(scene.pgdata))
    archive = archive_of(store)
    assert [found.name for found in archive.segments(1)] == list(segments)
    fetcher = Fetcher(scene.settings, scene.server, secret_environment)
    target = scene.pgdata / "pg_wal" / "RECOVERYXLOG"
    try:
        for name, content in segments.items():
            assert fetcher.fetch(name, "pg_wal/RECOVERYXLOG", str(scene.pgdata)) is not None
            assert target.read_bytes() == content
        assert fetcher.facts()["fetched_direct_total"] == 1
    finally:
        fetcher.close()


def test_what_the_bucket_missed_is_paid_from_the_directory(
    tmp_path: Path, s3_settings: S3Settings, secret_environment: dict[str, str]
) -> None:
    scene = PusherScene(tmp_path)
    repository = s3_settings(name="two", role="best-effort", secret_key="env:THE_ACCESS_KEY")
    scene.settings.repositories["two"] = repository
    store = introduce(scene, s3_settings(name="two", prefix=repository.prefix), secret_environment)
    segments = scene.make_ready(4)
    refused = Pusher(scene.settings, scene.server, secret_environment, pgdata=str(scene.pgdata))
    for name in segments:
        assert refused.push(f"pg_wal/{name}", str(scene.pgdata)).warnings
        (scene.status / f"{name}.ready").unlink()
        (scene.pgdata / "pg_wal" / name).unlink()
    scene.settings.repositories["two"] = repository.replace(secret_key="env:THE_SECRET_KEY")
    paying = Pusher(scene.settings, scene.server, secret_environment, pgdata=str(scene.pgdata))
    assert paying.facts()["owed_files"] == 4
    with at_work(paying):
        wait_until(lambda: paying.facts()["owed_files"] == 0, "the debts are paid")
    archive = archive_of(store)
    for name, content in segments.items():
        assert archive.read(name) == content
