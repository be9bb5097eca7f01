"""``restore --database``: some databases come back, the others are zeros that admit nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pgrecall.app import restoring
from pgrecall.errors import RecoveryError, UsageError
from pgrecall.model.file_table import FileTable
from pgrecall.postgres.instance import running_postmaster
from pgrecall.restore.selection import Selection, zero_files
from tests.support.postgresql import Installation, ServerFactory, Templates
from tests.support.product import Product

ODD = """it's "odd" \u2603 one"""
NAMES = ("shop", ODD, "big")


@pytest.fixture(scope="module")
def product(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Product]:
    """Three databases, a backup, and then WAL that touches pages of all of them (fact 24)."""
    directory = tmp_path_factory.mktemp("selective")
    factory = ServerFactory(pg_templates, installations[18], directory)
    try:
        made = Product.start(factory, directory, autovacuum="off", checksums=False)
        server = made.server
        for name in NAMES:
            with server.connect() as connection:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            server.sql(
                "CREATE TABLE t AS SELECT number, repeat('x', 500) AS filler"
                " FROM generate_series(1, 5000) AS number",
                database=name,
            )
        made.shop_oid = int(  # type: ignore[attr-defined]
            server.value("SELECT oid FROM pg_database WHERE datname = 'shop'")
        )
        made.backup()
        for name in NAMES:
            server.sql("DELETE FROM t WHERE number > 4000", database=name)
            # Without checksums, what it says of pages carries no image of them.
            server.sql("VACUUM t", database=name)
            server.sql("INSERT INTO t VALUES (0, 'after the backup')", database=name)
        server.sql("CREATE DATABASE later")
        made.switch()
        server.stop()
        yield made
        made.close()
    finally:
        factory.destroy()


def oid_of(product: Product, copy: Path, name: str) -> int:
    server = product.connected(copy)
    return int(server.value("SELECT oid FROM pg_database WHERE datname = %s", name))


def test_only_the_chosen_databases_come_back(product: Product, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    result = product.restore(copy, databases=("shop", ODD), start=True)
    assert result.plan.leaves_out == ("big",)
    assert result.started is not None
    assert set(result.started.closed_databases) == {"big", "later"}
    server = product.connected(copy)
    for name in ("shop", ODD):
        assert server.value("SELECT count(*) FROM t", database=name) == 4001
    with pytest.raises(psycopg.OperationalError, match="rejects connection"):
        server.connect("big")
    directory = copy / "base" / str(oid_of(product, copy, "big"))
    relations = [path for path in directory.iterdir() if path.name[0].isdigit()]
    assert sum(path.stat().st_size for path in relations) > 5 << 20
    # What WAL replay wrote whole (full pages) is there; the rest takes no room.
    assert sum(path.stat().st_blocks * 512 for path in relations) < 4 << 20
    assert "ignore_invalid_pages" not in [
        line.split(" ")[0] for line in (copy / "postgresql.auto.conf").read_text().splitlines()
    ]
    product.stop(copy)
    refused = product.cli("recovery", "promote", "--target-dir", str(copy), "--take-over", "--yes")
    assert refused.returncode != 0


def test_the_others_are_dropped_when_that_is_asked(product: Product, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    result = product.restore(copy, databases=("shop",), start=True, drop_others=True)
    assert result.started is not None
    assert set(result.started.dropped_databases) == {"big", ODD, "later"}
    assert result.findings == ()
    server = product.connected(copy)
    names = {row[0] for row in server.sql("SELECT datname FROM pg_database")}
    assert names == {"shop", "postgres", "template0", "template1"}


def test_an_invalid_page_in_a_chosen_database_fails(
    product: Product, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were a chosen database's file zeros as well, recovery would go over that in silence."""
    of_shop = Selection((), (), frozenset({product.shop_oid}))  # type: ignore[attr-defined]

    def too_many(table: FileTable, selection: Selection) -> frozenset[int]:
        return zero_files(table, selection) | zero_files(table, of_shop)

    monkeypatch.setattr(restoring, "zero_files", too_many)
    copy = tmp_path / "copy"
    with pytest.raises(RecoveryError, match="invalid pages in databases that were restored"):
        product.restore(copy, databases=("shop",), start=True)
    assert running_postmaster(copy) is None


def test_what_cannot_be_selected_is_refused(product: Product, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with pytest.raises(UsageError) as caught:
        product.restore(copy, databases=("shop", "shopp"), start=True)
    assert "'shopp'" in caught.value.message
    assert "'shop'" in caught.value.hint
    assert "snow" not in caught.value.hint
    for wishes in ({}, {"take_over": True, "start": True}, {"action": "pause", "start": True}):
        with pytest.raises(UsageError, match="--database"):
            product.restore(copy, databases=("shop",), **wishes)
    assert not copy.exists()
