"""What backups of real servers hold, and what they leave out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgrecall.codec.pages import page_checksum
from tests.support.backup_scene import BackupScene, Hooks, relation, started, tree
from tests.support.postgresql import ServerFactory

PAGE = 8192
RELATION_BYTES = 1 << 30


def test_a_backup_holds_what_pg_basebackup_takes(scene: BackupScene, tmp_path: Path) -> None:
    """On an idle server the two are equal, file for file and byte for byte.

    backup_label and tablespace_map are in our manifest's root; pg_control counts checkpoints.
    """
    server = scene.server
    server.sql("CHECKPOINT")
    backup = scene.taken(with_wal=False)
    server.client("pg_basebackup", "-D", str(tmp_path / "theirs"), "-X", "none", "-c", "fast")
    ours = tree(scene.contents(backup, tmp_path / "ours"))
    theirs = tree(tmp_path / "theirs")
    for made_by_tool in ("backup_label", "backup_manifest", "tablespace_map"):
        theirs.pop(made_by_tool, None)
    assert set(ours) == set(theirs)
    assert {path for path in ours if ours[path] != theirs[path]} <= {"global/pg_control"}
    root, entries = scene.manifest(backup)
    assert root.backup_label.startswith(b"START WAL LOCATION: ")
    assert backup.totals.files == sum(content is not None for content in ours.values())
    assert backup.totals.directories == len(ours) - backup.totals.files
    assert backup.totals.raw_bytes == sum(len(content or b"") for content in ours.values())
    assert backup.totals.pages_checked > 1000
    assert backup.worst == "ok"
    modes = {path: entry.mode for path, entry in entries.items()}
    assert modes[b"PG_VERSION"] == 0o600
    assert modes[b"base"] == 0o700
    stored = {info.key: info.size for info in scene.store.list("servers/main/backups/")}
    mine = sum(size for key, size in stored.items() if backup.backup_id in key)
    completion = len(scene.store.read(f"servers/main/backups/{backup.backup_id}/complete.json"))
    assert backup.totals.stored_bytes == mine - completion


@pytest.mark.parametrize(
    ("compression", "level", "workers"),
    [("none", 1, 1), ("lz4", 9, 8), ("zstd", 9, 2)],
)
def test_every_way_of_storing_gives_the_same_files(
    scene: BackupScene, tmp_path: Path, compression: str, level: int, workers: int
) -> None:
    scene.server.sql("CHECKPOINT")
    plain = scene.taken()
    backup = scene.taken(compression=compression, level=level, workers=workers)
    assert backup.compression == f"{compression}:{level}"
    expected, found = scene.read_files(plain), scene.read_files(backup)
    assert set(found) - set(expected) <= {path for path in found if path.startswith(b"pg_wal/")}
    changing = (b"pg_wal/", b"global/pg_control")
    for path, content in expected.items():
        if not path.startswith(changing):
            assert found[path] == content, path


def test_unlogged_and_temporary_relations_are_left_out(scene: BackupScene) -> None:
    server = scene.server
    server.sql("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 5000) AS n")
    server.sql("CREATE INDEX ON unlogged (n)")
    server.sql("CHECKPOINT")
    path = relation(server, "unlogged")
    with server.connect() as session:
        session.execute("CREATE TEMPORARY TABLE passing AS SELECT generate_series(1, 5000) AS n")
        row = session.execute("SELECT pg_relation_filepath('passing')").fetchone()
        assert row is not None
        assert (server.pgdata / row[0]).exists()
        backup = scene.taken()
    _, entries = scene.manifest(backup)
    assert row[0].encode() not in entries
    assert path.encode() not in entries
    assert entries[f"{path}_init".encode()].kind == "f"
    assert (server.pgdata / path).stat().st_size > 0
    assert backup.worst == "ok"
    server.sql("DROP TABLE unlogged")


def test_files_that_vanish_shrink_and_grow_during_the_copy(
    scene: BackupScene, factory: ServerFactory, tmp_path: Path
) -> None:
    """Between the walk and the copy, all that may happen to a file happens to one."""
    server = scene.server
    server.sql(
        "CREATE TABLE dropped AS SELECT n, repeat('d', 500) AS t FROM generate_series(1, 9000) n;"
        "CREATE TABLE emptied AS SELECT n, repeat('e', 500) AS t FROM generate_series(1, 9000) n;"
        "CREATE TABLE grown (n int, t text); INSERT INTO grown VALUES (0, 'first')"
    )
    server.sql("CHECKPOINT")
    strays = {name: server.pgdata / name for name in ("gone", "cut", "longer", "much_longer")}
    for path in strays.values():
        path.write_bytes(b"0123456789" * 1000)
    dropped = relation(server, "dropped").encode()

    def meanwhile() -> None:
        server.sql("DROP TABLE dropped")
        server.sql("DELETE FROM emptied WHERE n > 10")
        server.sql("VACUUM emptied")
        server.sql("INSERT INTO grown SELECT n, repeat('g', 500) FROM generate_series(1, 9000) n")
        server.sql("CHECKPOINT")
        strays["gone"].unlink()
        strays["cut"].write_bytes(b"short")
        strays["longer"].write_bytes(b"x" * 50_000)
        strays["much_longer"].write_bytes(b"0123456789" * 300_000)

    backup = scene.taken(progress=Hooks({"copy": meanwhile}), workers=1)
    for path in strays.values():
        path.unlink(missing_ok=True)
    _, entries = scene.manifest(backup)
    assert dropped not in entries or entries[dropped].size == 0
    assert b"gone" not in entries
    assert backup.totals.files_vanished >= 1
    files = scene.read_files(backup)
    assert files[b"cut"] == b"short"
    assert files[b"longer"] == b"x" * 50_000
    assert files[b"much_longer"] == b"0123456789" * 300_000
    copy = started(factory, scene.restored(backup, tmp_path / "copy", "--immediate"))
    assert copy.sql("SELECT to_regclass('dropped')") == [(None,)]
    assert copy.value("SELECT count(*) FROM emptied") == 10
    assert copy.value("SELECT count(*) FROM grown") == 9001
    assert copy.value("SELECT count(*) FROM kept") == 500
    server.sql("DROP TABLE emptied, grown")


@pytest.mark.slow
def test_relation_files_over_one_gibibyte(scene: BackupScene) -> None:
    """Blocks are counted across the files of a relation: .1 begins with block 131072."""
    server = scene.server
    server.sql("CREATE TABLE large AS SELECT generate_series(1, 100) AS n")
    path = server.pgdata / relation(server, "large")
    server.stop()
    page = bytearray(path.read_bytes()[:PAGE])
    first_block = RELATION_BYTES // PAGE
    page[8:10] = page_checksum(page, first_block).to_bytes(2, "little")
    os.truncate(path, RELATION_BYTES)
    Path(f"{path}.1").write_bytes(bytes(PAGE) + page)
    try:
        page[8:10] = page_checksum(page, first_block + 1).to_bytes(2, "little")
        Path(f"{path}.1").write_bytes(bytes(PAGE) + page)
        server.start()
        assert server.value("SELECT count(*) FROM large") == 200
        backup = scene.taken()
        assert backup.worst == "ok"
        assert backup.totals.pages_checked > first_block
        _, entries = scene.manifest(backup)
        name = os.fsencode(path.relative_to(server.pgdata))
        assert entries[name].size == RELATION_BYTES
        assert entries[name + b".1"].size == 2 * PAGE
        page[5000] ^= 1
        Path(f"{path}.1").write_bytes(bytes(PAGE) + page)
        (finding,) = scene.backup().findings
        assert finding.subject == os.fsdecode(name + b".1")
        assert f"block {first_block + 1} " in finding.message
    finally:
        Path(f"{path}.1").unlink()
        os.truncate(path, PAGE)
    server.restart("immediate")
    server.sql("DROP TABLE large")
