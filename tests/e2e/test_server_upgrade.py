"""``server upgrade``: a strange system is refused until the operator accepts it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from pgrecall.app.upgrading import UpgradeResult
from pgrecall.errors import ConfirmationError, IdentityError, NotOwnerError
from pgrecall.repository.identity import COPY_MARKER, add_owner
from pgrecall.settings import RepositorySettings
from pgrecall.store.opening import open_store
from pgrecall.system.clock import SystemClock
from tests.e2e.command_line import CommandLine, Scene, objects
from tests.support.postgresql import PostgresServer, ServerFactory

NAME = "shop 'ü'"


@pytest.fixture
def scene(capsys: pytest.CaptureFixture[str], pg_factory: ServerFactory, tmp_path: Path) -> Scene:
    server = pg_factory(segment_mib=1)
    cli = CommandLine(capsys, tmp_path / "pg recall.toml", NAME)
    return Scene(cli, server, tmp_path / "repository")


def replace_cluster(scene: Scene, factory: ServerFactory) -> PostgresServer:
    """What initdb into the emptied PGDATA gives: same place, port, configuration; new system."""
    old = scene.server
    command = old.value("SHOW archive_command")
    old.stop()
    old.pgdata.rename(old.pgdata.with_name("old"))
    # Clusters of one template share an identity; without checksums it is another template.
    new = factory(
        name=old.pgdata.name,
        start=False,
        segment_mib=1,
        checksums=False,
        archive_command=command,
    )
    new.host, new.port = old.host, old.port
    scene.server = new
    return new


def test_push_is_refused_until_the_new_system_is_accepted(
    scene: Scene, pg_factory: ServerFactory
) -> None:
    made = scene.cli("backup", "--json")
    assert made.status == 0, made
    backup_id = made.document["backup"]["backup_id"]

    server = replace_cluster(scene, pg_factory)
    before = objects(scene.repository)
    server.start()
    server.sql("CREATE TABLE t (); SELECT pg_switch_wal()")
    server.wait_until(
        lambda: server.value("SELECT failed_count FROM pg_stat_archiver"), "the push is refused"
    )
    assert "the server \"shop 'ü'\"" in server.log
    assert "pgrecall server upgrade" in server.log
    assert "server upgrade" in scene.failures()["identity"]["hint"]
    assert objects(scene.repository) == before

    refused = scene.cli("server", "upgrade")
    assert refused.status == ConfirmationError.exit_status
    assert "another system of the same version" in refused.out
    planned = scene.cli("server", "upgrade", "--dry-run", "--json")
    assert planned.status == 0
    assert planned.document["plan"]["repositories"][0]["opens"] == 2
    assert objects(scene.repository) == before

    opened = scene.cli("server", "upgrade", "--yes", "--json")
    assert opened.status == 0, opened
    document = opened.document
    assert document.pop("schema") == "pgrecall/server-upgrade/1"
    assert msgspec.convert(document, UpgradeResult).opened == {"main": 2}
    scene.passes()
    assert any("/wal/0002/" in name for name in objects(scene.repository))
    assert set(before) < set(objects(scene.repository))
    listed = scene.cli("backups", "list", "--json").document["backups"]
    assert [backup["backup_id"] for backup in listed] == [backup_id]


def test_nothing_to_do(scene: Scene) -> None:
    scene.passes()  # with the segment it follows, everything older is archived
    before = objects(scene.repository)
    again = scene.cli("server", "upgrade", "--json")
    assert again.status == 0, again
    assert "nothing to do" in again.document["outcome"]
    for words in ((), ("--dry-run",)):
        shown = scene.cli("server", "upgrade", *words)
        assert "this is the system of the latest" in shown.out
    assert objects(scene.repository) == before


def test_a_system_that_comes_back_keeps_its_generation(
    scene: Scene, pg_factory: ServerFactory
) -> None:
    old = scene.server
    replace_cluster(scene, pg_factory)
    assert scene.cli("server", "upgrade", "--yes").status == 0  # of a server that is stopped
    old.pgdata.rename(old.pgdata.with_name("new"))
    old.pgdata.with_name("old").rename(old.pgdata)
    scene.server = old
    old.start()
    shown = scene.cli("server", "upgrade")
    assert shown.status == 0
    assert "generation 1, whose WAL is still accepted" in shown.out
    assert "generation-not-latest" in scene.passes()


def test_a_server_that_was_never_introduced(scene: Scene, tmp_path: Path) -> None:
    text = scene.cli.config.read_text()
    scene.cli.config.write_text(text.replace(f'[servers."{NAME}"]', "[servers.other]"))
    scene.cli.server = "other"
    refused = scene.cli("server", "upgrade", "--yes")
    assert refused.status == IdentityError.exit_status
    assert "pgrecall init" in refused.err


def test_an_archive_that_a_copy_took_over(scene: Scene, pg_factory: ServerFactory) -> None:
    server = replace_cluster(scene, pg_factory)
    store = open_store(RepositorySettings(name="main", path=str(scene.repository)), {})
    restore_id = "x-20261122T201637Z-7k3q"
    add_owner(store, NAME, restore_id=restore_id, timeline=2, now=SystemClock().now())
    before = objects(scene.repository)
    refused = scene.cli("server", "upgrade", "--yes")
    assert refused.status == NotOwnerError.exit_status
    assert restore_id in refused.err
    assert objects(scene.repository) == before
    marker = refused.err[refused.err.index("{") :].strip()
    assert json.loads(marker)["restore_id"] == restore_id
    (server.pgdata / COPY_MARKER).write_text(marker)
    assert scene.cli("server", "upgrade", "--yes").status == 0
    server.start()
    scene.passes()
