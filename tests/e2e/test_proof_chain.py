"""Fact 25's order of proofs on every version: the files, recovery, the indexes, the checksums."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.model.targets import ToXid
from pgrecall.postgres.control import read_control
from tests.support.oracle import Oracle
from tests.support.postgresql import Installation, PostgresServer, ServerFactory, run_program
from tests.support.product import Product


@pytest.fixture
def product(
    installation: Installation, pg_factory: ServerFactory, tmp_path: Path
) -> Iterator[Product]:
    settings = {"installation": installation, "track_commit_timestamp": "on"}
    made = Product.start(pg_factory, tmp_path, segment_mib=16, **settings)
    try:
        yield made
    finally:
        made.close()


def prove_files(server: PostgresServer, copy: Path) -> None:
    """pg_verifybackup of the server's own version where it has one; the WAL is elsewhere."""
    run_program([server.installation.program("pg_verifybackup"), "-n", copy])


def prove_indexes(copy: PostgresServer) -> None:
    """Every heap and every b-tree; 13 knows no check of heaps: there the b-trees lead to them."""
    copy.sql("CREATE EXTENSION amcheck")
    if copy.installation.major >= 14:
        copy.client("pg_amcheck", "--heapallindexed", "--database", "postgres")
        return
    copy.sql(
        "SELECT bt_index_check(i.indexrelid, true) FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam"
        " WHERE a.amname = 'btree' AND i.indisvalid AND c.relpersistence = 'p'"
    )


def prove_pages(own: Installation, copy: Path, all_found: dict[int, Installation]) -> None:
    """A checksum of every page; it refuses a directory that was not stopped cleanly.

    Where the version has no pg_checksums, one serves that knows the layout of this pg_control;
    for that one the tablespaces' directories of this version are renamed to its own.
    """
    first, last = read_control(copy).majors
    others = [found for found in all_found.values() if first <= found.major <= last]
    chosen = next(one for one in (own, *others) if one.has_own("pg_checksums"))
    program = chosen.program("pg_checksums")
    name = re.search(rb"PG_[0-9]+_[0-9]{9}", program.read_bytes())
    assert name is not None
    for directory in copy.glob("pg_tblspc/*/PG_*"):
        directory.rename(directory.with_name(name[0].decode()))
    shown = run_program([program, "--check", "-D", copy])
    assert re.search(r"Bad checksums: +0$", shown, re.MULTILINE), shown


def test_chain(product: Product, installations: dict[int, Installation], tmp_path: Path) -> None:
    server = product.server
    space = tmp_path / "space"
    space.mkdir()
    server.sql(f"CREATE TABLESPACE apart LOCATION '{space}'")
    server.pgbench("-i", "-s", "1", "-q")
    server.sql("CREATE TABLE apart TABLESPACE apart AS SELECT * FROM pgbench_branches")
    server.sql("CREATE UNLOGGED TABLE volatile AS SELECT 1 AS number")
    load = server.start_pgbench("-c", "1", "-T", "2")
    with Oracle(server) as oracle:
        oracle.write(2)
        product.backup()
        middle = oracle.write(5)
        oracle.write(2)
    load.wait()
    product.switch()
    copy = tmp_path / "copy"
    mapping = {"apart": str(tmp_path / "new")}
    target = ToXid(middle.xid)
    product.restore(copy, target, tablespace_map=mapping)
    prove_files(server, copy)
    again = tmp_path / "again"
    mapping = {"apart": str(tmp_path / "new again")}
    result = product.restore(again, target, tablespace_map=mapping, start=True)
    assert result.started is not None
    assert result.started.state == "open"
    restored = product.connected(again)
    assert oracle.found_on(restored) == oracle.through(middle)
    assert restored.value("SELECT count(*) FROM volatile") == 0
    assert restored.value("SELECT count(*) FROM apart") == 1
    prove_indexes(restored)
    balances = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(delta) FROM {})"
    assert len(set(restored.sql(balances.format("pgbench_history"))[0])) == 1
    product.stop(again)
    prove_pages(server.installation, again, installations)
