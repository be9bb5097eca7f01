"""WAL summaries on a real server: what they do not tell, and where they cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from tests.support.backup_scene import BackupScene, started
from tests.support.postgresql import Installation, PostgresServer, ServerFactory, run_program


def scene_of(server: PostgresServer, directory: Path) -> BackupScene:
    scene = BackupScene(directory, server)
    scene.archive()
    server.sql("CREATE EXTENSION amcheck")
    server.sql("CREATE EXTENSION pg_visibility")
    return scene


def incremental(scene: BackupScene) -> Completion:
    backup = scene.taken(with_wal=True, full=False)
    assert (backup.kind, backup.change_source) == ("incremental", "summaries")
    return backup


@pytest.mark.parametrize("checksums", [True, False])
def test_the_visibility_map_is_no_prophet(
    factory: ServerFactory, tmp_path: Path, *, checksums: bool
) -> None:
    """VACUUM cuts a table, a backup, it is filled and emptied again: no row comes back.

    PostgreSQL's own incremental backup returned deleted rows in an index-only scan here.
    """
    server = factory(
        checksums=checksums, autovacuum="off", summarize_wal="on", name=f"vm{checksums}"
    )
    scene = scene_of(server, tmp_path)
    server.sql("CREATE TABLE t (n int PRIMARY KEY, f text) WITH (fillfactor = 10)")
    server.sql("INSERT INTO t SELECT n, repeat('x', 300) FROM generate_series(1, 3000) n")
    server.sql("VACUUM (FREEZE) t")
    scene.taken()
    server.sql("DELETE FROM t WHERE n > 30")
    server.sql("VACUUM (TRUNCATE) t")
    incremental(scene)
    server.sql("INSERT INTO t SELECT n, repeat('y', 300) FROM generate_series(31, 3000) n")
    server.sql("DELETE FROM t WHERE n % 500 = 0")
    backup = incremental(scene)
    copy = started(factory, scene.restored(backup, tmp_path / "copy", "--immediate"))
    assert copy.sql("SELECT * FROM pg_check_visible('t')") == []
    assert copy.sql("SELECT * FROM pg_check_frozen('t')") == []
    wanted = server.value("SELECT count(*) FROM t")
    index_only = "SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count(n) FROM t"
    assert copy.sql(index_only) == [(wanted,)]
    assert copy.value("SELECT count(f) FROM t") == wanted
    copy.sql("SELECT bt_index_check('t_pkey', true)")


def test_a_server_at_work_is_backed_up_page_by_page(factory: ServerFactory, tmp_path: Path) -> None:
    """Backups under pgbench, one upon the other; the last is restored and taken apart."""
    server = factory(summarize_wal="on", name="busy")
    scene = scene_of(server, tmp_path)
    server.pgbench("-i", "-s", "3", "-q")
    scene.taken()
    load = server.start_pgbench("-c", "3", "-T", "600")
    try:
        for _ in range(4):
            server.sql("VACUUM pgbench_branches, pgbench_tellers")
            server.sql("CREATE INDEX again ON pgbench_accounts (abalance)")
            backup = incremental(scene)
            server.sql("DROP INDEX again")
    finally:
        load.terminate()
        load.wait()
    scene.read_files(backup)  # and holds them to the checksums, made of blocks as they were
    copy = started(factory, scene.restored(backup, tmp_path / "copy", "--immediate"))
    balances = (
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM"
        " pgbench_history) AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta)"
        " FROM pgbench_history)"
    )
    assert copy.value(balances) is True
    assert copy.sql(
        "SELECT c.relname, v.* FROM pg_class c, verify_heapam(c.oid) v WHERE relkind IN ('r', 't')"
    ) == []  # fmt: skip
    copy.sql(
        "SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = relam"
        " WHERE amname = 'btree' AND relkind = 'i' AND relpersistence = 'p'"
    )
    copy.stop()
    run_program([copy.installation.program("pg_checksums"), "--check", "-D", str(copy.pgdata)])


def test_where_they_cannot_be_used_everything_is_read(
    factory: ServerFactory, tmp_path: Path
) -> None:
    server = factory(summarize_wal="on", name="gaps")
    scene = scene_of(server, tmp_path)
    server.sql("CREATE TABLE kept AS SELECT n FROM generate_series(1, 5000) n")
    first = scene.taken()
    # A summary that is gone.
    start = Lsn.parse(incremental(scene).start_lsn)
    server.sql("INSERT INTO kept SELECT n FROM generate_series(1, 5000) n")
    server.sql("CHECKPOINT")
    directory = server.pgdata / "pg_wal" / "summaries"
    # One that the next backup needs: the summarizer may still be at what its base has.
    server.wait_until(
        lambda: any(int(path.name[24:40], 16) > start for path in directory.iterdir()),
        "it is summarized",
    )
    for path in directory.iterdir():
        path.unlink()
    result = scene.backup(full=False)
    assert result.backup is not None
    assert result.backup.change_source == "digests"
    assert [one.code for one in result.findings if one.severity == "warn"] == ["summaries-not-used"]
    assert result.backup.references
    # The summarizer is off.
    server.configure(summarize_wal="off")
    server.reload()
    plain = scene.backup(full=False)
    assert any("summarize_wal is off" in reason for reason in plain.plan.reasons)
    assert plain.findings == ()
    # Checksums are switched on while the server is down: all pages change, without WAL.
    server.configure(summarize_wal="on")
    server.stop()
    run_program(
        [server.installation.program("pg_checksums"), "--disable", "-D", str(server.pgdata)]
    )
    server.start()
    off = scene.backup(full=False)
    assert off.backup is not None
    assert "checksums were switched" in "".join(one.message for one in off.findings)
    assert off.backup.totals.pages_failed == 0
    copy = started(factory, scene.restored(off.backup, tmp_path / "copy", "--immediate"))
    assert copy.value("SELECT count(*) FROM kept") == 10_000
    assert first.backup_id in off.backup.references


def test_every_version_stores_what_has_changed(
    installation: Installation, factory: ServerFactory, tmp_path: Path
) -> None:
    has_summaries = installation.major >= 17
    more = {"summarize_wal": "on"} if has_summaries else {}
    server = factory(installation, name=f"v{installation.major}", autovacuum="off", **more)
    scene = BackupScene(tmp_path, server)
    scene.archive()
    server.sql("CREATE TABLE kept AS SELECT n, 0 AS x FROM generate_series(1, 200000) n")
    server.sql("VACUUM kept")
    scene.taken(with_wal=False)
    scene.taken(with_wal=False, full=False)  # hint bits that its own queries have set
    server.sql("UPDATE kept SET x = 1 WHERE n % 50000 = 1")
    server.sql("CHECKPOINT")
    backup = scene.taken(with_wal=False, full=False)
    full = scene.taken(with_wal=False)
    assert backup.change_source == ("summaries" if has_summaries else "digests")
    assert backup.totals.new_bytes < full.totals.new_bytes / 4
    ours, theirs = scene.read_files(backup), scene.read_files(full)
    assert {path for path in ours if ours[path] != theirs[path]} <= {b"global/pg_control"}
    restored = scene.restored(backup, tmp_path / "copy", "--immediate")
    copy = started(factory, restored, installation)
    assert copy.sql("SELECT count(*), sum(x) FROM kept") == [(200_000, 4)]
