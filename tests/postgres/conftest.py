"""A server that is backed up, one for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.backup_scene import BackupScene
from tests.support.postgresql import Installation, ServerFactory, Templates


@pytest.fixture(scope="module")
def factory(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerFactory]:
    factory = ServerFactory(pg_templates, installations[18], tmp_path_factory.mktemp("servers"))
    try:
        yield factory
    finally:
        factory.destroy()


@pytest.fixture(scope="module")
def scene(factory: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> BackupScene:
    """A server with a table, and room for backups of it; it archives."""
    server = factory(autovacuum="off")
    scene = BackupScene(tmp_path_factory.mktemp("scene"), server)
    scene.archive()
    server.sql("CREATE TABLE kept AS SELECT n, repeat('x', n) AS t FROM generate_series(1, 500) n")
    return scene
