"""Incremental backups: whatever happened in between, they are what a full one would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.model.manifest import Completion
from pgrecall.repository import layout
from tests.support.backup_scene import BackupScene, started, tree
from tests.support.postgresql import ServerFactory

CONTROL = b"global/pg_control"
MEBIBYTE = 1 << 20


class Chain:
    """A server with tables of many pages, and backups of it one after the other."""

    def __init__(self, scene: BackupScene, source: str) -> None:
        self.source = source
        self.scene = scene
        self.server = scene.server
        self.server.sql("CREATE EXTENSION amcheck")
        self.server.sql(
            "CREATE TABLE big AS SELECT n, 0 AS x, repeat(md5(n::text), 8) AS t"
            " FROM generate_series(1, 40000) n"
        )
        self.server.sql("ALTER TABLE big ADD PRIMARY KEY (n)")
        self.server.sql("VACUUM (ANALYZE) big")
        self.full = scene.taken(with_wal=False)

    def incremental(self) -> Completion:
        """The next backup; nothing but it changes what is on the disk."""
        # The catalogs' readers set hint bits, once.
        self.scene.taken(with_wal=False, full=False)
        self.server.sql("CHECKPOINT")
        backup = self.scene.taken(with_wal=False, full=False)
        assert (backup.kind, backup.change_source) == ("incremental", self.source)
        return backup

    def assert_equals_full(self, backup: Completion) -> None:
        """File for file and byte for byte, pg_control excepted."""
        full = self.scene.taken(with_wal=False)
        assert full.kind == "full"
        ours, theirs = self.scene.read_files(backup), self.scene.read_files(full)
        assert set(ours) == set(theirs)
        assert {path for path in ours if ours[path] != theirs[path]} <= {CONTROL}
        assert backup.totals.raw_bytes == full.totals.raw_bytes
        digests = [self.digests(one) for one in (backup, full)]
        assert [len(one) for one in digests] == [len(ours), len(ours)]

    def digests(self, backup: Completion) -> dict[bytes, int]:
        """How many blocks of each file have a digest."""
        _, entries = self.scene.manifest(backup)
        found = {
            path: sum(span.count for span in entry.digests)
            for path, entry in entries.items()
            if entry.kind == "f"
        }
        for path, count in found.items():
            assert count == -(-entries[path].size // 65536), path
        return found


@pytest.fixture(scope="module", params=["digests", "summaries"])
def chain(
    request: pytest.FixtureRequest,
    factory: ServerFactory,
    tmp_path_factory: pytest.TempPathFactory,
) -> Chain:
    summarize = "on" if request.param == "summaries" else "off"
    server = factory(autovacuum="off", summarize_wal=summarize)
    scene = BackupScene(tmp_path_factory.mktemp("chain"), server)
    scene.archive()
    return Chain(scene, request.param)


def test_what_has_changed_is_stored_and_nothing_else(chain: Chain) -> None:
    quiet = chain.incremental()
    assert quiet.totals.new_bytes < MEBIBYTE
    assert quiet.totals.stored_bytes < chain.full.totals.stored_bytes / 10
    chain.server.sql("UPDATE big SET x = 1 WHERE n % 10000 = 7")
    chain.server.sql("CHECKPOINT")
    changed = chain.incremental()
    assert changed.totals.new_bytes < 2 * MEBIBYTE
    assert changed.base_id not in ("", quiet.backup_id, chain.full.backup_id)
    assert chain.full.backup_id in changed.references
    assert changed.backup_id not in changed.references
    chain.assert_equals_full(changed)


DROP_DATABASE = 'DROP DATABASE IF EXISTS "a ü \'"'
CHANGES = {
    "rows, and tables made anew": (
        "UPDATE big SET x = x + 1 WHERE n % 100 = 3",
        "CREATE TABLE IF NOT EXISTS again AS SELECT * FROM big",
        "TRUNCATE again",
        "INSERT INTO again SELECT * FROM big WHERE n < 9000",
        "DROP TABLE IF EXISTS other",
        "CREATE TABLE other (LIKE big)",
    ),
    "every row, and more of them": (
        "UPDATE big SET x = x + 1",
        "INSERT INTO big SELECT n, 0, repeat('y', 500) FROM generate_series(50000, 70000) n",
        "DROP TABLE IF EXISTS lost",
        "CREATE UNLOGGED TABLE lost AS SELECT * FROM big",
        "ALTER TABLE lost SET LOGGED",
    ),
    "cut": ("DELETE FROM big WHERE n > 30000", "VACUUM (TRUNCATE) big"),
    "rewritten, and databases": (
        "VACUUM FULL big",
        "REINDEX TABLE big",
        DROP_DATABASE,
        'CREATE DATABASE "a ü \'" STRATEGY file_copy',
        "CREATE DATABASE another STRATEGY wal_log",
        "DROP DATABASE another",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_it_equals_a_full_backup(chain: Chain, what: str) -> None:
    for statement in CHANGES[what]:
        chain.server.sql(statement)
    chain.assert_equals_full(chain.incremental())


def test_each_of_a_chain_is_whole_alone(
    chain: Chain, factory: ServerFactory, tmp_path: Path
) -> None:
    """Read by the program of docs/format.md, and by a server; what nothing refers to may go."""
    scene, server = chain.scene, chain.server
    scene.taken(with_wal=False)
    server.sql("CREATE TABLE steps (step int)")
    made: list[Completion] = []
    for step in range(1, 5):
        server.sql("INSERT INTO steps VALUES (%s)", step)
        server.sql("UPDATE big SET x = x + 1 WHERE mod(n, 997) = %s", step)
        made.append(scene.taken(with_wal=False, full=False))
    # None refers to the one in the middle but for its own objects; the oldest has most of them.
    assert [backup.kind for backup in made] == ["incremental"] * 4
    assert made[3].base_id == made[2].backup_id
    for step, backup in enumerate(made, 1):
        found = tree(scene.contents(backup, tmp_path / f"hand{step}"))
        files = {path.encode(): content for path, content in found.items() if content is not None}
        assert files == scene.read_files(backup)
        copy = started(factory, scene.restored(backup, tmp_path / f"copy{step}", "--immediate"))
        assert copy.value("SELECT max(step) FROM steps") == step
        copy.sql("SELECT bt_index_check('big_pkey', true)")
        copy.stop()


def test_a_backup_whose_packs_are_gone_is_none(chain: Chain) -> None:
    """What an older backup lost is noticed before the new one exists."""
    scene = chain.scene
    full = scene.taken(with_wal=False)
    key = layout.pack_key("main", full.backup_id, 0)
    path = scene.repository / key
    content = path.read_bytes()
    ids = scene.ids()
    path.unlink()
    try:
        errors = scene.run("backup", "--with-wal", status=40)
        assert key in errors and "--full" in errors
        assert scene.ids() == ids
    finally:
        path.write_bytes(content)


def test_only_the_summaries_leave_unchanged_files_unread(chain: Chain) -> None:
    """A table that is emptied behind the server's back is seen by digests alone."""
    chain.incremental()
    path = chain.server.pgdata / str(chain.server.value("SELECT pg_relation_filepath('big')"))
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    try:
        backup = chain.scene.taken(with_wal=False, full=False)
        assert backup.totals.pages_failed == 0  # a page of zeros is a good one
        has_read_it = chain.source == "digests"
        # Free space and visibility maps are read by both.
        assert (backup.totals.pages_checked > len(content) // 8192) == has_read_it
        name = str(path.relative_to(chain.server.pgdata)).encode()
        found = chain.scene.read_files(backup)[name]
        assert found == (bytes(len(content)) if has_read_it else content)
    finally:
        path.write_bytes(content)
