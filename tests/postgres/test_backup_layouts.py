"""Backups of servers of many kinds: sizes, odd names, links, tablespaces, roles, versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgrecall.errors import (
    DataDirectoryError,
    PostgresRightsError,
    UnsupportedServerError,
)
from tests.support.backup_scene import BackupScene, Hooks, started
from tests.support.postgresql import Installation, ServerFactory, Templates


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
