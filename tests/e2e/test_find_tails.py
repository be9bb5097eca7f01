"""``find`` looks into what a receiver has of the unfinished segment; restores reach it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import WalFile
from pgrecall.repository import layout
from pgrecall.repository.wal_tails import find_tail
from tests.e2e.test_find import ROWS, Story
from tests.fault.test_receive_zero_loss import receiver, streaming_product
from tests.support.postgresql import ServerFactory

TAILS = "[receive]\ntail_seconds = 0.2\n"
MANY = 2000


@pytest.fixture
def story(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[Story]:
    """Only a receiver brings WAL into the repository; a segment holds all that is done."""
    product = streaming_product(pg_factory, tmp_path, TAILS, segment_mib=16)
    try:
        yield Story(product, tmp_path)
    finally:
        product.close()


def wait_streaming(story: Story) -> None:
    count = "SELECT count(*) FROM pg_stat_replication"
    story.server.wait_until(lambda: story.server.value(count), "streaming")


def wait_tail(story: Story) -> tuple[str, Lsn]:
    """Wait until everything that is flushed is in the repository: the segment, and up to where."""
    server, archive = story.server, story.product.archive()
    end = Lsn.parse(str(server.value("SELECT pg_current_wal_flush_lsn()::text")))
    name = str(server.value("SELECT pg_walfile_name(pg_current_wal_flush_lsn())"))
    server.wait_until(lambda: (archive.tail_end(name) or 0) >= end, "the tail is stored")
    assert not archive.has(name)
    return name, end


def answers(story: Story) -> dict[str, list[dict[str, Any]]]:
    """What is found of everything that was done."""
    at = str(story.server.value("SELECT (moment + interval '1 ms')::text FROM moments"))
    xid = str(story.server.value("SELECT xid FROM moments"))
    questions = {
        "dropped": ("--dropped", "orders"),
        "truncated": ("--truncated", "others"),
        "deletes": ("--deletes",),
        "xid": ("--xid", xid),
        "at": ("--at", at),
        "points": ("--restore-points",),
    }
    return {key: story.found(*words) for key, words in questions.items()}


def test_a_table_dropped_seconds_ago_is_found_and_comes_back(story: Story) -> None:
    server = story.server
    server.sql("CREATE TABLE moments (xid text, moment timestamptz)")
    with receiver(story.product):
        wait_streaming(story)
        for table in ("orders", "others"):
            story.fill(table)
        story.fill("many", MANY)
        story.product.backup()
        server.sql("INSERT INTO orders SELECT n FROM generate_series(10001, 10200) AS n")
        # PostgreSQL 13 to 18 have txid_current; the moment is that of the transaction.
        server.sql("INSERT INTO moments SELECT txid_current()::text, clock_timestamp()")
        server.sql("DELETE FROM many")
        server.sql("SELECT pg_create_restore_point('here')")
        server.sql("TRUNCATE others")
        server.sql("DROP TABLE orders")
        name, end = wait_tail(story)

        found = answers(story)
        document = story.find("--dropped", "orders")
        (searched,) = document["searched"]
        assert (searched["tail"], searched["last_segment"]) == (name, name)
        assert Lsn.parse(searched["end_lsn"]) >= end
        assert searched["gaps"] == 0
        counts = {key: len(several) for key, several in found.items()}
        one_each = {"dropped": 1, "truncated": 1, "deletes": 1, "xid": 1, "at": 2, "points": 1}
        assert counts == one_each, found
        begin = end - end % (16 << 20)
        assert all(Lsn.parse(one["lsn"]) >= begin for several in found.values() for one in several)
        assert (found["deletes"][0]["name"], found["deletes"][0]["rows"]) == (
            "postgres.public.many",
            MANY,
        )
        (dropped,) = found["dropped"]
        assert (dropped["what"], dropped["name"]) == ("dropped", "postgres.public.orders")

        # The map of moments ends in the same tail, and says that the moment can be reached.
        asked = ("recoverable", "--at-lsn", dropped["lsn"], "--exclusive", "--json")
        mapped = json.loads(story.product.cli(*asked).stdout)
        assert mapped["answer"]["is_reachable"], mapped["answer"]
        (path,) = mapped["generations"][0]["paths"]
        assert path["ranges"][-1]["tail"] == name
        assert (
            path["ranges"][-1]["end_lsn"]
            == story.find("--restore-points")["searched"][0]["end_lsn"]
        )

        assert story.rows_after(dropped["restore"], "orders") == ROWS + 200
        assert story.rows_after(found["truncated"][0]["restore"], "others") == ROWS
        assert story.rows_after(found["deletes"][0]["restore"], "many") == MANY

        # As soon as the segment is whole, it tells the same.
        server.sql("SELECT pg_switch_wal()")
        archive = story.product.archive()
        server.wait_until(lambda: archive.has(name), "the segment is stored")
        assert answers(story) == found


def test_behind_a_tail_in_the_middle_is_a_gap(story: Story) -> None:
    """The segment of a tail was never stored whole, and later ones are: both sides are searched."""
    server, product = story.server, story.product
    story.fill("orders")
    with receiver(product):
        wait_streaming(story)
        product.backup()
        server.sql("DROP TABLE orders")
        name, _ = wait_tail(story)
        archive = product.archive()
        tail = find_tail(archive.store, archive.server, archive.generation, name)
        assert tail is not None
        kept = {
            key: archive.store.read(key)
            for piece in tail.pieces
            for key in [layout.tail_key(archive.server, 1, name, layout.tail_name(*piece))]
        }
        server.sql("SELECT pg_switch_wal()")
        story.fill("later")
        server.sql("DROP TABLE later")
        following = str(server.value("SELECT pg_walfile_name(pg_current_wal_lsn())"))
        server.sql("SELECT pg_switch_wal()")
        server.wait_until(lambda: archive.has(name) and archive.has(following), "stored")
    for key, content in kept.items():
        archive.store.put(key, [content])
    product.path_of(layout.wal_key(archive.server, 1, WalFile(name))).unlink()
    document = story.find("--dropped", "*")
    names = [one["name"] for one in document["found"]]
    assert names[0] == "postgres.public.orders"
    assert len(names) == 2
    (searched,) = document["searched"]
    assert (searched["gaps"], searched["tail"]) == (1, "")
