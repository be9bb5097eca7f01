"""What each command prints with --json on a real server, held to the schemas in docs/json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.json_schema import require_valid
from tests.support.postgresql import ServerFactory
from tests.support.product import Product


@pytest.fixture
def product(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[Product]:
    product = Product.start(pg_factory, tmp_path)
    try:
        yield product
    finally:
        product.close()


def printed(product: Product, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit status and document of ``pgrecall words --json``; the document is what it says."""
    finished = product.cli(*words, "--json")
    document = json.loads(finished.stdout)
    require_valid(document)
    if words[0] != "check":
        wanted = "-".join(word for word in words[:2] if word in _WORDS)
        assert document["schema"] == f"pgrecall/{wanted}/1", document
    return finished.returncode, document


_WORDS = {
    "init", "backup", "backups", "list", "show", "restore", "recovery", "status", "resume",
    "promote", "server", "upgrade",
}  # fmt: skip


def test_every_command(product: Product, tmp_path: Path) -> None:
    server, copy = product.server, tmp_path / "copy"
    product.copies.append(copy)
    server.sql("CREATE TABLE rows AS SELECT generate_series(1, 100) AS number")
    options = (
        *("--data-directory", str(server.pgdata), "--host", server.host),
        *("--port", str(server.port), "--user", "postgres", "--repository", "fresh"),
        *("--path", str(tmp_path / "fresh")),
    )
    other = product.config
    product.config = tmp_path / "fresh.toml"
    _, document = printed(product, "init", *options, "--dry-run")
    assert document["plan"]["config"] == "make"
    status, document = printed(product, "init", *options)
    assert (status, document["generation"]) == (0, 1)
    product.config = other

    status, document = printed(product, "check")
    assert {finding["severity"] for finding in document["findings"]} <= {"ok", "warn", "fail"}
    _, document = printed(product, "backup", "--dry-run")
    assert document["backup"] is None
    status, document = printed(product, "backup")
    backup = document["backup"]["backup_id"]
    assert status == 0
    _, document = printed(product, "backups", "list")
    assert [line["backup_id"] for line in document["backups"]] == [backup]
    _, document = printed(product, "backups", "show", backup)
    assert document["backup"]["backup_id"] == backup

    server.sql("SELECT pg_create_restore_point('here')")
    server.sql("INSERT INTO rows VALUES (0)")
    product.switch()
    target = ("--to-name", "here", "--target-dir", str(copy))
    _, document = printed(product, "restore", *target, "--dry-run")
    assert document["restore_id"] == ""
    assert not copy.exists()
    status, document = printed(product, "restore", *target, "--action", "pause", "--start", "--yes")
    assert (status, document["started"]["state"]) == (0, "paused")
    where = ("--target-dir", str(copy))
    _, document = printed(product, "recovery", "status", *where)
    assert document["state"] == "paused"
    _, document = printed(product, "recovery", "promote", *where, "--dry-run")
    status, _ = printed(product, "recovery", "promote", *where)
    assert status == 0
    _, document = printed(product, "server", "upgrade", "--dry-run")
    assert product.connected(copy).value("SELECT count(*) FROM rows") == 100


def test_an_error_of_the_server(product: Product) -> None:
    product.server.stop()
    finished = product.cli("backup", "--json")
    document = json.loads(finished.stdout)
    require_valid(document)
    assert document["error"]["code"] == "postgres-unreachable"
    assert document["error"]["exit_status"] == finished.returncode
