"""An encrypted repository around a real server: everything works, and nothing can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.model.targets import ToName
from tests.support.encryption import EncryptedProduct
from tests.support.postgresql import ServerFactory

MARKER = "Rumpelstilzchen-4711"
TABLE = "very_secret_orders"


def fill(product: EncryptedProduct, rows: int = 2000) -> None:
    """A table with a name and a content that must not be found anywhere."""
    product.server.sql(f"CREATE TABLE IF NOT EXISTS {TABLE} (id int, note text)")
    product.server.sql(
        f"INSERT INTO {TABLE} SELECT n, '{MARKER}' FROM generate_series(1, {rows}) AS n"
    )


@pytest.fixture
def product(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[EncryptedProduct]:
    made = EncryptedProduct.start(pg_factory, tmp_path, track_commit_timestamp="on")
    assert isinstance(made, EncryptedProduct)
    try:
        yield made
    finally:
        made.close()


def test_everything_works_and_nothing_can_be_read(
    product: EncryptedProduct, tmp_path: Path
) -> None:
    server = product.server
    fill(product)
    product.backup()
    server.sql(f"DELETE FROM {TABLE} WHERE id > 1990")
    server.sql("SELECT pg_create_restore_point('before')")
    product.switch()
    server.sql(f"DROP TABLE {TABLE}")
    product.switch()
    for words in (("find", "--dropped", TABLE), ("recoverable",), ("verify", "--fast"),
                  ("verify", "--full"), ("check",), ("backups", "list")):  # fmt: skip
        ended = product.cli(*words, "--json")
        assert ended.returncode == 0, ended
    assert product.words_found(MARKER, TABLE, "PG_VERSION", "pg_class", "postgresql.conf") == []
    assert product.words_found("repository_id", "scrypt") == ["repository_id", "scrypt"]
    target = tmp_path / "copy"
    product.restore(target, ToName(name="before"), start=True)
    count = product.connected(target).value(f"SELECT count(*) FROM {TABLE} WHERE note = '{MARKER}'")
    assert count == 1990
