"""Backups of real servers: what they hold, what they leave out, what they notice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.codec.pages import page_checksum
from pgrecall.errors import (
    ArchiveTimeoutError,
    BackupDamagedError,
    DataDirectoryError,
    IdentityError,
    PostgresRightsError,
    UnsupportedServerError,
)
from pgrecall.model.lsn import Lsn
from tests.support.backup_scene import BackupScene, Hooks, tree
from tests.support.postgresql import Installation, PostgresServer, ServerFactory, Templates

PAGE = 8192
RELATION_BYTES = 1 << 30


@pytest.fixture(scope="module")
def factory(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerFactory]:
    factory = ServerFactory(pg_templates, installations[18], tmp_path_factory.mktemp("servers"))
    try:
        yield factory
    finally:
        factory.destroy()


@pytest.fixture(scope="module")
def scene(factory: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> BackupScene:
    """A server with a table, and room for backups of it; it archives."""
    server = factory(autovacuum="off")
    scene = BackupScene(tmp_path_factory.mktemp("scene"), server)
    scene.archive()
    server.sql("CREATE TABLE kept AS SELECT n, repeat('x', n) AS t FROM generate_series(1, 500) n")
    return scene


def started(
    factory: ServerFactory, directory: Path, installation: Installation | None = None
) -> PostgresServer:
    """A restored directory, started and through its recovery."""
    server = factory.adopt(directory, installation)
    server.start()
    server.wait_until(
        lambda: not server.value("SELECT pg_is_in_recovery()"), "the recovery is over"
    )
    return server


def relation(server: PostgresServer, table: str) -> str:
    """Path of a table's first file below PGDATA."""
    return str(server.value("SELECT pg_relation_filepath(%s)", table))


# --- what a backup holds ------------------------------------------------------------


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
    [("none", 1, 1), ("lz4", 1, 2), ("lz4", 9, 8), ("zstd", 9, 2), ("zstd", 12, 1)],
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


# --- pages ----------------------------------------------------------------------------


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_damaged_page_is_named_and_the_backup_kept(scene: BackupScene) -> None:
    server = scene.server
    server.sql("CREATE TABLE damaged AS SELECT n, repeat('d', 900) FROM generate_series(1, 100) n")
    path = relation(server, "damaged")
    server.stop()
    damage(server.pgdata / path, 3 * PAGE + 4321)
    damage(server.pgdata / path, 5 * PAGE + 4321)
    server.start()
    output = scene.run(
        "backup", "--with-wal", "--json", "--yes", status=BackupDamagedError.exit_status
    )
    document = json.loads(output)
    (finding,) = document["findings"]
    assert finding["severity"] == "fail"
    assert finding["code"] == "corrupt-pages"
    assert finding["subject"] == path
    assert "block 3 (its checksum" in finding["message"]
    assert ", 5 (its checksum" in finding["message"]
    assert document["backup"]["worst"] == "fail"
    assert document["backup"]["totals"]["pages_failed"] == 2
    (line,) = [
        line for line in scene.listed().backups if line.backup_id == document["backup"]["backup_id"]
    ]
    assert line.result == "fail"
    _, entries = scene.manifest(scene.completion(line.backup_id))
    assert entries[path.encode()].bad_blocks == (3, 5)
    # A table that is dropped while it is copied is in no backup: nothing to say of it.
    server.sql("DROP TABLE damaged")
    assert scene.taken().worst == "ok"


@pytest.mark.parametrize("where", ["during", "beyond"])
def test_the_lsn_of_a_failing_page_decides(scene: BackupScene, where: str) -> None:
    """Changed since the start: replay brings the whole page. Beyond the WAL: it is damaged."""
    server = scene.server
    server.sql("DROP TABLE IF EXISTS judged; CREATE TABLE judged AS SELECT 1 AS n; CHECKPOINT")
    path = server.pgdata / relation(server, "judged")
    before = path.read_bytes()

    def tear() -> None:
        lsn = Lsn.parse(server.value("SELECT pg_current_wal_insert_lsn()::text"))
        lsn = Lsn(lsn + (1 << 32 if where == "beyond" else 0))
        page = bytearray(before)
        page[0:8] = (lsn >> 32).to_bytes(4, "little") + (lsn & 0xFFFFFFFF).to_bytes(4, "little")
        path.write_bytes(page)

    try:
        result = scene.backup(progress=Hooks({"copy": tear}))
    finally:
        path.write_bytes(before)
    if where == "during":
        assert result.findings == ()
    else:
        (finding,) = result.findings
        assert "lies beyond the server's insert position" in finding.message
        assert finding.severity == "fail"


def test_new_pages_are_good(scene: BackupScene) -> None:
    server = scene.server
    server.sql("CREATE TABLE fresh AS SELECT 1 AS n; CHECKPOINT")
    path = server.pgdata / relation(server, "fresh")
    os.truncate(path, 10 * PAGE)
    backup = scene.taken()
    os.truncate(path, PAGE)
    assert backup.worst == "ok"
    _, entries = scene.manifest(backup)
    assert entries[os.fsencode(path.relative_to(server.pgdata))].size == 10 * PAGE


# --- refusals -------------------------------------------------------------------------


def test_a_file_that_may_not_be_read(scene: BackupScene) -> None:
    secret = scene.server.pgdata / "base" / "secret"
    secret.write_text("x")
    secret.chmod(0)
    before = scene.ids()
    try:
        errors = scene.run("backup", "--yes", status=PostgresRightsError.exit_status)
    finally:
        secret.unlink()
    assert f"{secret} may not be read" in errors
    assert "HINT: " in errors
    assert scene.ids() == before
    assert scene.temporary_files() == []
    scene.assert_server_is_clean()


def test_a_directory_that_may_not_be_read(scene: BackupScene) -> None:
    secret = scene.server.pgdata / "base" / "secret"
    secret.mkdir(0)
    try:
        with pytest.raises(PostgresRightsError, match="base/secret may not be read"):
            scene.backup()
    finally:
        secret.rmdir()
    scene.assert_server_is_clean()


def test_an_archive_that_does_not_work(scene: BackupScene, tmp_path: Path) -> None:
    """The cause is told apart, nothing is listed, the server holds nothing."""
    server = scene.server
    before = scene.ids()
    scene.write_config(str(server.pgdata), archive_timeout_seconds=1)
    try:
        for command, cause in (("false", "archive_command fails"), ("true", "archives elsewhere")):
            server.configure(archive_command=command)
            server.reload()
            with pytest.raises(ArchiveTimeoutError, match=cause) as caught:
                scene.backup(with_wal=False)
            assert caught.value.hint
            assert scene.ids() == before
            scene.assert_server_is_clean()
    finally:
        scene.write_config(str(server.pgdata))
        scene.archive()
    assert scene.taken(with_wal=False).has_wal is False


def test_another_servers_directory_is_refused(scene: BackupScene, factory: ServerFactory) -> None:
    other = factory(start=False, segment_mib=1)  # made by an initdb of its own
    scene.write_config(str(other.pgdata))
    try:
        with pytest.raises(IdentityError, match="holds the system"):
            scene.backup()
    finally:
        scene.write_config(str(scene.server.pgdata))
    scene.assert_server_is_clean()


def test_a_copy_of_the_directory_is_refused(
    scene: BackupScene, factory: ServerFactory, tmp_path: Path
) -> None:
    """It has the right system identifier; stopped, running, or copied from a running server."""
    server = scene.server
    server.sql("CHECKPOINT")
    snapshot = tmp_path / "snapshot"
    server.client("pg_basebackup", "-D", str(tmp_path / "clone"), "-X", "stream", "-c", "fast")
    clone = factory.adopt(tmp_path / "clone")
    clone.configure(archive_mode="off")
    clone.start()
    clone.sql("CHECKPOINT")
    shutil.copytree(server.pgdata, snapshot, ignore=shutil.ignore_patterns("pg_wal", "*.pid"))
    before = scene.ids()

    def refused(directory: Path, why: str) -> None:
        scene.write_config(str(directory))
        with pytest.raises(DataDirectoryError, match=why):
            scene.backup()

    try:
        refused(clone.pgdata, "is a copy, not the directory that the server works in")
        refused(snapshot, "is a copy, not the directory that the server works in")
        clone.stop()
        refused(clone.pgdata, "is a copy of the server's data directory")
    finally:
        scene.write_config(str(server.pgdata))
    assert scene.ids() == before
    scene.assert_server_is_clean()


def test_a_standby_is_refused(scene: BackupScene, factory: ServerFactory, tmp_path: Path) -> None:
    scene.server.client("pg_basebackup", "-D", str(tmp_path / "standby"), "-R", "-c", "fast")
    standby = factory.adopt(tmp_path / "standby")
    standby.start()
    own = BackupScene(tmp_path, standby)
    with pytest.raises(UnsupportedServerError, match="is in recovery"):
        own.backup()
    standby.stop()


# --- servers of their own ----------------------------------------------------------------


def test_without_an_archive_only_with_wal(
    factory: ServerFactory, tmp_path: Path, pg_templates: Templates
) -> None:
    """archive_mode=off, checksums off, group access: restores from itself alone."""
    server = factory(start=False, archive_mode="off", checksums=False)
    for path in [server.pgdata, *server.pgdata.rglob("*")]:
        path.chmod(0o750 if path.is_dir() else 0o640)
    server.start()
    server.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    scene = BackupScene(tmp_path, server)
    with pytest.raises(UnsupportedServerError, match="does not archive") as caught:
        scene.backup(with_wal=False)
    assert "--with-wal" in caught.value.hint
    result = scene.backup()
    (finding,) = result.findings
    assert (finding.code, finding.severity) == ("page-checksums-off", "warn")
    assert result.backup is not None
    assert result.backup.worst == "warn"
    assert result.backup.totals.pages_checked == 0
    assert result.backup.totals.wal_segments >= 1
    _, entries = scene.manifest(result.backup)
    assert entries[b"base"].mode == 0o750
    assert entries[b"PG_VERSION"].mode == 0o640
    copy = scene.restored(result.backup, tmp_path / "copy", "--immediate")
    assert copy.stat().st_mode & 0o777 == 0o750
    assert started(factory, copy).value("SELECT count(*) FROM kept") == 1000


@pytest.mark.parametrize("segment_mib", [1, 64])
def test_other_segment_sizes_and_an_empty_server(
    factory: ServerFactory, tmp_path: Path, segment_mib: int
) -> None:
    server = factory(segment_mib=segment_mib, min_wal_size=f"{2 * segment_mib}MB")
    scene = BackupScene(tmp_path, server)
    scene.archive()
    archived, alone = scene.taken(with_wal=False), scene.taken(with_wal=True)
    assert archived.segment_bytes == alone.segment_bytes == segment_mib << 20
    wal = [path for path in scene.read_files(alone) if path.startswith(b"pg_wal/")]
    assert len(wal) == alone.totals.wal_segments >= 1
    for backup in (archived, alone):
        copy = scene.restored(backup, tmp_path / f"copy-{backup.has_wal}", "--immediate")
        assert started(factory, copy).value("SELECT count(*) FROM pg_class") > 400


SPACE = 'space "a" ü 100% $HOME'  # PostgreSQL takes no single quote here
NASTY = 'it\'s "a" \\ ü 100% $HOME'


@pytest.fixture(scope="module")
def odd(factory: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> BackupScene:
    """Odd names everywhere, tablespaces, and links of every kind."""
    directory = tmp_path_factory.mktemp("odd")
    template = factory(start=False)
    pgdata = directory / NASTY / "data"
    pgdata.parent.mkdir()
    template.pgdata.rename(pgdata)
    server = factory.adopt(pgdata)
    server.configure(allow_in_place_tablespaces=True, autovacuum="off")
    (pgdata / "pg_wal").rename(directory / "wal")
    (pgdata / "pg_wal").symlink_to(directory / "wal")
    outside = directory / "outside"
    outside.mkdir()
    (outside / "shared.conf").write_text("# shared\n")
    (outside / "back").symlink_to(pgdata)
    (outside / "again").symlink_to(outside)
    (pgdata / "conf.d").symlink_to(outside)
    (pgdata / "one.conf").symlink_to(outside / "shared.conf")
    (pgdata / "inner").symlink_to("base")
    (pgdata / "nowhere").symlink_to(directory / "missing")
    os.mkfifo(pgdata / "pipe")
    (pgdata / ("n" * 255)).write_text("a long name")
    (Path(os.fsdecode(os.fsencode(pgdata) + b"/\xff\xfe latin"))).write_text("not UTF-8")
    (pgdata / "log").mkdir(exist_ok=True)
    server.start()
    space = directory / SPACE
    space.mkdir()
    scene = BackupScene(directory, server, name=NASTY)
    scene.archive()
    server.sql(f"CREATE TABLESPACE outside LOCATION '{space}'")
    server.sql("CREATE TABLESPACE inside LOCATION ''")
    server.sql('CREATE DATABASE "it\'s ü %"')
    for number, place in enumerate(("pg_default", "outside", "inside")):
        server.sql(
            f"CREATE TABLE t{number} TABLESPACE {place} AS SELECT generate_series(1, 1000) AS n"
        )
    (space / "notes.txt").write_text("somebody else's")
    (space / "PG_9.6_201608131").mkdir()
    (space / "PG_9.6_201608131" / "16384").write_text("another server's")
    return scene


def test_links_tablespaces_and_odd_names(odd: BackupScene, tmp_path: Path) -> None:
    server = odd.server
    result = odd.backup(with_wal=False)
    backup = result.backup
    assert backup is not None
    assert backup.server == NASTY
    root, entries = odd.manifest(backup)
    spaces = {space.name: space for space in root.tablespaces}
    assert spaces["outside"].location == str(odd.directory / SPACE)
    assert spaces["inside"].is_in_place
    assert str(odd.directory) in root.tablespace_map.decode()
    names = {server.value(f"SELECT pg_relation_filepath('t{n}')").encode() for n in (0, 1, 2)}
    assert names <= set(entries)
    outside = f"pg_tblspc/{spaces['outside'].oid}/".encode()
    below = [path[len(outside) :] for path in entries if path.startswith(outside)]
    assert below
    assert all(path.startswith(b"PG_18_") for path in below)
    assert entries[b"pg_wal"].kind == entries[b"pg_wal/archive_status"].kind == "d"
    assert [path for path in entries if path.startswith(b"pg_wal/")] == [
        b"pg_wal/archive_status",
        b"pg_wal/summaries",
    ]
    codes = {(finding.subject, finding.code) for finding in result.findings}
    assert codes == {
        ("conf.d", "link-followed"),
        ("conf.d/again", "link-followed"),
        ("conf.d/again", "link-loop"),
        ("conf.d/back", "inner-link"),
        ("inner", "inner-link"),
        ("nowhere", "broken-link"),
        ("one.conf", "link-followed"),
        ("pipe", "special-file"),
    }
    files = odd.read_files(backup)
    assert files[b"conf.d/shared.conf"] == files[b"one.conf"] == b"# shared\n"
    assert files[b"n" * 255] == b"a long name"
    assert files[b"\xff\xfe latin"] == b"not UTF-8"


def test_odd_names_come_back(odd: BackupScene, factory: ServerFactory, tmp_path: Path) -> None:
    backup = odd.taken(with_wal=False)
    moved = f"{odd.directory / SPACE}={tmp_path / 'moved'}"
    target = tmp_path / NASTY
    odd.restored(backup, target, "--immediate", "--tablespace-map", moved)
    copy = started(factory, target)
    for number in (0, 1, 2):
        assert copy.value(f"SELECT count(*) FROM t{number}") == 1000
    assert copy.sql("SELECT 1", database="it's ü %") == [(1,)]
    assert (target / os.fsdecode(b"\xff\xfe latin")).read_text() == "not UTF-8"
    assert os.path.realpath(target / "pg_tblspc") != os.path.realpath(odd.server.pgdata)


def test_a_role_without_superpowers(scene: BackupScene) -> None:
    """What a role needs: the two functions; REPLICATION only for --with-wal."""
    server = scene.server
    server.sql("DROP ROLE IF EXISTS keeper; CREATE ROLE keeper LOGIN")
    text = scene.config.read_text().replace('user = "postgres"', 'user = "keeper"')
    scene.config.write_text(text)
    try:
        with pytest.raises(PostgresRightsError, match="may not start a backup"):
            scene.backup(with_wal=False)
        server.sql(
            "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO keeper;"
            "GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO keeper"
        )
        assert scene.taken(with_wal=False).worst == "ok"
        with pytest.raises(PostgresRightsError, match="may not reserve WAL"):
            scene.backup(with_wal=True)
        server.sql("ALTER ROLE keeper REPLICATION")
        assert scene.taken(with_wal=True).has_wal
    finally:
        scene.write_config(str(server.pgdata))
        server.sql("DROP OWNED BY keeper; DROP ROLE keeper")


@pytest.mark.matrix
def test_every_version(installation: Installation, factory: ServerFactory, tmp_path: Path) -> None:
    """Backup with and without WAL, a failure that leaves no backup under way, and a restore."""
    server = factory(installation, autovacuum="off")
    scene = BackupScene(tmp_path, server)
    scene.archive()
    (tmp_path / "space").mkdir()
    server.sql(f"CREATE TABLESPACE side LOCATION '{tmp_path}/space'")
    server.sql("CREATE TABLE kept TABLESPACE side AS SELECT generate_series(1, 1000) AS n")

    def fail() -> None:
        raise DataDirectoryError("ended by the test")

    with pytest.raises(DataDirectoryError, match="ended by the test"):
        scene.backup(progress=Hooks({"copy": fail}))
    scene.assert_server_is_clean()
    for with_wal in (False, True):
        backup = scene.taken(with_wal=with_wal)
        assert backup.worst == "ok"
        assert backup.version_num // 10000 == installation.major
        target = tmp_path / f"copy-{with_wal}"
        moved = f"{tmp_path}/space={tmp_path}/space-{with_wal}"
        scene.restored(backup, target, "--immediate", "--tablespace-map", moved)
        copy = started(factory, target, installation)
        assert copy.value("SELECT count(*) FROM kept") == 1000
    scene.assert_server_is_clean()
