"""Dumps into a store that fails or is full, and of an encrypted repository."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.app import opened
from pgrecall.app.dumping import run_dump
from pgrecall.app.requests import DumpRequest
from pgrecall.errors import StoreError, StoreFullError
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.store.faulty import Fault, FaultyStore
from tests.support.backup_scene import BackupScene, open_descriptors, our_threads, shared_scene
from tests.support.encryption import EncryptedProduct
from tests.support.postgresql import Installation, ServerFactory, Templates


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(pg_templates, installations[18], tmp_path_factory, autovacuum="off") as scene:
        scene.server.sql(
            "CREATE TABLE noise AS SELECT (SELECT string_agg(sha512((i || '/' || j)::bytea),"
            " ''::bytea) FROM generate_series(1, 30) j) AS b FROM generate_series(1, 3000) i"
        )
        yield scene


@pytest.mark.parametrize("method", ["writer", "write", "commit", "put"])
def test_a_store_that_goes_away(
    scene: BackupScene, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """There is no dump, nothing of it is left, and no tool, session or thread either."""
    run_dump(scene.context(), DumpRequest())
    before, descriptors = DumpCatalog(scene.store, scene.name).ids(), open_descriptors()
    fault = Fault("before", method=method, is_lasting=True, error=lambda: StoreError("an outage"))
    store = FaultyStore(scene.store, [fault])
    monkeypatch.setattr(opened, "open_store", lambda settings, environment: store)
    with pytest.raises(StoreError, match="an outage"):
        run_dump(scene.context(), DumpRequest())
    assert fault.reached.is_set()
    assert DumpCatalog(scene.store, scene.name).ids() == before
    assert our_threads() == []
    assert open_descriptors() <= descriptors
    assert scene.temporary_files() == []
    scene.assert_server_is_clean()


def test_a_full_store(scene: BackupScene) -> None:
    """Files may grow to 1 MiB: what a full disk says, said by the kernel."""
    before = DumpCatalog(scene.store, scene.name).ids()
    limit = (1 << 20, 1 << 20)
    errors = scene.run(
        "dump", "--yes", status=StoreFullError.exit_status,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert "HINT" in errors
    assert DumpCatalog(scene.store, scene.name).ids() == before
    assert scene.temporary_files() == []


def test_the_spool_directory_is_full_or_missing(scene: BackupScene) -> None:
    """pg_dump itself meets the end of the disk, and what it left is removed."""
    text = scene.config.read_text()
    spool = scene.directory / "spool"
    spool.mkdir()
    try:
        scene.config.write_text(text + f"[dump]\nspool_directory = {json.dumps(str(spool))}\n")
        limit = (1 << 20, 1 << 20)
        errors = scene.run(
            "dump", "--yes", "--format", "directory", "--compress", "none", status=48,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        )  # fmt: skip
        assert "pg_dump" in errors
        assert list(spool.iterdir()) == []
        spool.rmdir()
        assert "spool_directory" in scene.run("dump", "--yes", status=3)
    finally:
        scene.config.write_text(text)


def test_in_an_encrypted_repository(pg_factory: ServerFactory, tmp_path: Path) -> None:
    """Passwords come along, no word stands readable anywhere, and all of it comes back."""
    product = EncryptedProduct.start(pg_factory, tmp_path, autovacuum="off")
    assert isinstance(product, EncryptedProduct)
    try:
        product.server.sql("CREATE ROLE clerk PASSWORD 'secret'")
        product.server.sql("CREATE DATABASE hidden_shop")
        product.server.sql("CREATE TABLE words AS SELECT 'a readable word' AS w",
                           database="hidden_shop")  # fmt: skip
        made = product.cli("dump", "--yes", "--json", "--compression", "none")
        dump = json.loads(made.stdout)["dump"]
        assert dump["has_passwords"]
        assert product.words_found("a readable word", "hidden_shop", "SCRAM-SHA-256") == []
        assert product.cli("verify", dump["backup_id"], "--full").returncode == 0
        loaded = product.cli(
            "load", dump["backup_id"], "--database", "hidden_shop", "--into", "again", "--create"
        )
        assert loaded.returncode == 0, loaded.stderr
        assert product.server.value("SELECT w FROM words", database="again") == "a readable word"
    finally:
        product.close()
