"""Restores beside a live server: what it has not archived yet is asked for first."""

from __future__ import annotations

from pathlib import Path

from pgrecall.model.targets import ToXid
from tests.support.oracle import Oracle
from tests.support.postgresql import ServerFactory
from tests.support.product import Product


def test_the_newest_wal_of_a_live_server_is_archived_first(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    """A restore beside it misses nothing that was acknowledged; where it cannot, it says so."""
    product = Product.start(pg_factory, tmp_path, track_commit_timestamp="on")
    try:
        with Oracle(product.server) as oracle:
            _restore_beside(product, oracle, tmp_path)
    finally:
        product.close()


def _restore_beside(product: Product, oracle: Oracle, tmp_path: Path) -> None:
    server = product.server
    product.backup()
    oracle.write(3)
    product.switch()
    oracle.write(2)
    result = product.restore(tmp_path / "without", switch_wal=False, start=True)
    assert oracle.found_on(product.connected(tmp_path / "without")) == [1, 2, 3]
    result = product.restore(tmp_path / "with", switch_wal=True, start=True)
    assert any("was made to finish" in reason for reason in result.plan.reasons)
    assert oracle.found_on(product.connected(tmp_path / "with")) == [1, 2, 3, 4, 5]
    # A target behind the archive's end is reached in the same way.
    last = oracle.write(2)
    product.restore(tmp_path / "to-xid", ToXid(last.xid), switch_wal=True, start=True)
    assert oracle.found_on(product.connected(tmp_path / "to-xid")) == [1, 2, 3, 4, 5, 6, 7]
    server.configure(archive_command="false")
    server.reload()
    oracle.write(1)
    result = product.restore(tmp_path / "broken", switch_wal=True)
    assert "newest-wal-missing" in {finding.code for finding in result.plan.findings}
