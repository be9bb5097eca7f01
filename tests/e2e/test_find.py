"""``find`` names a moment, and restoring to what it names brings the table back: real servers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.app.naming import record_names
from tests.support.postgresql import Installation, PostgresServer, ServerFactory
from tests.support.product import Product

ROWS = 500


class Story:
    """A server that archives, with a backup, and the questions that are asked afterwards."""

    def __init__(self, product: Product, tmp_path: Path) -> None:
        self.product = product
        self.server = product.server
        self._tmp_path = tmp_path

    def find(self, *words: str) -> dict[str, Any]:
        """``find --json``."""
        finished = self.product.cli("find", *words, "--json")
        assert finished.returncode == 0, finished.stderr
        document: dict[str, Any] = json.loads(finished.stdout)
        return document

    def found(self, *words: str) -> list[dict[str, Any]]:
        """What it found; nothing may be unknown."""
        document = self.find(*words)
        assert not [one for one in document["findings"] if one["code"] == "segments-not-indexed"]
        found: list[dict[str, Any]] = document["found"]
        return found

    def one(self, *words: str) -> dict[str, Any]:
        """The only thing that it found."""
        found = self.found(*words)
        assert len(found) == 1, found
        return found[0]

    def restored(self, command: str) -> PostgresServer:
        """Carry out the command line that ``find`` gave, beside production, and start it."""
        words = shlex.split(command)
        assert words[:2] == ["pgrecall", "restore"]
        target = self._tmp_path / f"copy{len(self.product.copies)}"
        self.product.copies.append(target)
        finished = self.product.cli(
            *words[1:], "--target-dir", str(target), "--start", "--yes", "--json"
        )
        assert finished.returncode == 0, finished.stderr
        return self.product.connected(target)

    def rows_after(self, command: str, table: str, database: str = "postgres") -> int:
        """Restore as ``find`` says, and count."""
        server = self.restored(command)
        count: int = server.value(f"SELECT count(*) FROM {table}", database=database)
        return count

    def fill(self, table: str, rows: int = ROWS, database: str = "postgres") -> None:
        self.server.sql(
            f"CREATE TABLE {table} (n int PRIMARY KEY, filler text);"
            f" INSERT INTO {table} SELECT n, repeat('x', 100) FROM generate_series(1, {rows}) AS n",
            database=database,
        )


@pytest.fixture
def story(installation: Installation, pg_factory: ServerFactory, tmp_path: Path) -> Iterator[Story]:
    product = Product.start(pg_factory, tmp_path, installation=installation)
    try:
        yield Story(product, tmp_path)
    finally:
        product.close()


def test_a_dropped_table_comes_back_whole(story: Story) -> None:
    story.fill("orders")
    story.fill("others")
    story.product.backup()
    story.server.sql("INSERT INTO orders SELECT n FROM generate_series(10001, 10200) AS n")
    story.server.sql("DROP TABLE orders")
    story.fill("later")
    story.product.switch()

    found = story.one("--dropped", "orders")
    assert (found["what"], found["name"]) == ("dropped", "postgres.public.orders")
    assert found["at"] is not None
    assert story.found("--truncated", "orders") == []
    server = story.restored(found["restore"])
    assert server.value("SELECT count(*) FROM orders") == ROWS + 200
    assert server.value("SELECT to_regclass('later')") is None


@pytest.mark.parametrize("checkpoints", [False, True])
def test_created_rewritten_and_dropped_between_two_maps(story: Story, checkpoints: bool) -> None:
    """The issue's own: nothing but WAL knows this table."""
    server = story.server

    def step(text: str) -> None:
        server.sql(text)
        if checkpoints:
            # The next change of a page of pg_class logs the page in place of the row.
            server.sql("CHECKPOINT")

    story.product.backup()
    story.fill("shortlived")
    if checkpoints:
        server.sql("CHECKPOINT")
    step("VACUUM FULL shortlived")
    step("ALTER TABLE shortlived RENAME TO renamed")
    step("CREATE SCHEMA elsewhere")
    step("ALTER TABLE renamed SET SCHEMA elsewhere")
    step("VACUUM FULL elsewhere.renamed")
    assert story.server.value("SELECT count(*) FROM elsewhere.renamed") == ROWS
    step("DROP TABLE elsewhere.renamed")
    record_names(story.product.context())
    story.product.switch()

    found = story.one("--dropped", "elsewhere.renamed")
    assert (found["what"], found["name"]) == ("dropped", "postgres.elsewhere.renamed")
    assert story.found("--truncated", "*.*") == []
    assert story.rows_after(found["restore"], "elsewhere.renamed") == ROWS


def test_a_truncated_table_comes_back(story: Story) -> None:
    story.fill("kept")
    story.fill("emptied")
    story.product.backup()
    story.server.sql("TRUNCATE emptied")
    story.server.sql("INSERT INTO emptied VALUES (1, 'new')")
    story.server.sql("VACUUM FULL emptied")
    story.server.sql("CLUSTER kept USING kept_pkey")
    story.server.sql("ALTER TABLE kept ALTER COLUMN n TYPE bigint")
    story.server.sql("TRUNCATE kept")
    story.server.sql("DROP TABLE emptied")
    story.product.switch()

    names = [(one["what"], one["name"]) for one in story.found("--truncated", "*")]
    assert names == [
        ("truncated", "postgres.public.emptied"),
        ("truncated", "postgres.public.kept"),
    ]
    dropped = [(one["what"], one["name"]) for one in story.found("--dropped", "*")]
    assert dropped == [("dropped", "postgres.public.emptied")]
    found = story.one("--truncated", "emptied")
    assert story.rows_after(found["restore"], "emptied") == ROWS


def test_a_dropped_database_comes_back_and_admits_its_users(story: Story) -> None:
    story.server.sql("CREATE DATABASE shop")
    story.fill("orders", database="shop")
    story.product.backup()
    story.server.sql("DROP DATABASE shop")
    story.product.switch()
    found = story.one("--dropped", "shop.public.orders")
    assert found["what"] == "dropped with its database"
    assert story.rows_after(found["restore"], "orders", database="shop") == ROWS


def test_what_is_done_in_subtransactions_and_undone(story: Story) -> None:
    for table in ("a", "b", "c"):
        story.fill(table)
    story.product.backup()
    with story.server.connect(autocommit=False) as connection:
        connection.execute("SAVEPOINT one")
        connection.execute("DROP TABLE a")
        connection.execute("ROLLBACK TO one")
        connection.execute("SAVEPOINT two")
        connection.execute("DROP TABLE b")
        connection.execute("RELEASE two")
        connection.execute("CREATE TABLE fleeting (n int)")
        connection.execute("DROP TABLE fleeting")
        connection.commit()
        connection.execute("TRUNCATE c")
        connection.rollback()
    story.server.sql("DROP TABLE a")
    story.product.switch()
    assert [one["name"] for one in story.found("--dropped", "*")] == [
        "postgres.public.b",
        "postgres.public.a",
    ]
    assert story.found("--truncated", "*") == []


def test_partitions_go_with_their_parent(story: Story) -> None:
    story.server.sql(
        "CREATE TABLE parts (n int) PARTITION BY RANGE (n);"
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);"
        "INSERT INTO parts SELECT generate_series(0, 199)"
    )
    story.product.backup()
    story.server.sql("TRUNCATE parts_2")
    story.server.sql("DROP TABLE parts")
    story.product.switch()
    names = [one["name"].rsplit(".")[-1] for one in story.found("--dropped", "parts*")]
    assert names == ["parts", "parts_1", "parts_2"]
    found = story.one("--dropped", "parts")
    assert story.rows_after(found["restore"], "parts") == 100


def test_prepared_transactions(story: Story) -> None:
    story.server.configure(max_prepared_transactions=5)
    story.server.restart()
    story.fill("orders")
    story.product.backup()
    with story.server.connect() as connection:
        for word in ("lost", "done"):
            connection.execute("BEGIN")
            connection.execute("DROP TABLE orders")
            connection.execute(f"PREPARE TRANSACTION '{word}'".encode())
            connection.execute(
                b"ROLLBACK PREPARED 'lost'" if word == "lost" else b"COMMIT PREPARED 'done'"
            )
    story.product.switch()
    found = story.one("--dropped", "orders")
    assert "ROLLBACK PREPARED" in found["note"]
    server = story.restored(found["restore"])
    server.sql("ROLLBACK PREPARED 'done'")
    assert server.value("SELECT count(*) FROM orders") == ROWS


def test_big_deletes_are_summed_over_segments(story: Story) -> None:
    story.fill("events", 30_000)
    story.fill("small", 900)
    story.server.sql("ANALYZE")
    story.product.backup()
    story.server.sql("DELETE FROM small WHERE n <= 100")
    story.server.sql("DELETE FROM small WHERE n <= 120")
    story.server.sql("BEGIN; DELETE FROM events WHERE n <= 5000; ROLLBACK")
    story.server.sql("DELETE FROM events")
    story.product.switch()
    found = story.found("--deletes")
    assert [(one["name"], one["rows"]) for one in found] == [
        ("postgres.public.small", 100),
        ("postgres.public.events", 30_000),
    ]
    assert story.rows_after(found[1]["restore"], "events") == 30_000


def test_moments(story: Story) -> None:
    server = story.server
    story.fill("t", 10)
    story.product.backup()
    with server.connect(autocommit=False) as connection:
        ((xid,),) = connection.execute(
            "INSERT INTO t VALUES (11, '') RETURNING pg_current_xact_id()::text::bigint"
        ).fetchall()
        connection.commit()
    between = server.value("SELECT clock_timestamp()")
    server.sql("SELECT pg_create_restore_point('once')")
    server.sql("SELECT pg_create_restore_point('twice')")
    server.sql("INSERT INTO t VALUES (12, '')")
    server.sql("SELECT pg_create_restore_point('twice')")
    story.product.switch()
    server.sql("INSERT INTO t VALUES (13, '')")
    story.product.switch()

    before, after = story.found("--at", between.isoformat())
    assert (before["what"], before["xid"]) == ("last commit before", xid)
    assert after["what"] == "first commit after"
    assert before["at"] < between.isoformat() < after["at"]
    one = story.one("--xid", str(xid))
    assert one["what"] == "commit"
    points = story.found("--restore-points")
    assert [point["name"] for point in points] == ["once", "twice", "twice"]
    assert "--to-name once" in points[0]["restore"]
    for command, rows in (
        (before["restore"], 11),
        (after["restore"], 11),
        (one["restore"], 10),
        (points[0]["restore"], 11),
        (points[2]["restore"], 12),
    ):
        assert story.rows_after(command, "t") == rows, command
