"""Dumps of a real server and their way back: what they hold, and what they refuse."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.errors import PostgresRightsError, UsageError
from pgrecall.further_errors import DumpNotFoundError, LoadError
from pgrecall.repository.dump_catalog import DumpCatalog
from tests.support.backup_scene import BackupScene, shared_scene
from tests.support.dumped_text import text_of_database
from tests.support.postgresql import Installation, Templates

STRANGE = 'Größe "x" y\'z=1/ü\n'
QUOTED = '"' + STRANGE.replace('"', '""') + '"'

FILL = """
CREATE SCHEMA sales;
CREATE TABLE sales.orders (id int PRIMARY KEY, note text, total numeric GENERATED ALWAYS AS (id * 2)
 STORED);
INSERT INTO sales.orders (id, note) SELECT i, md5(i::text) FROM generate_series(1, 5000) i;
CREATE TABLE parts (id int, at date) PARTITION BY RANGE (at);
CREATE TABLE parts_old PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
INSERT INTO parts SELECT i, '2020-05-05' FROM generate_series(1, 100) i;
ALTER TABLE sales.orders ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON sales.orders TO clerk USING (note IS NOT NULL);
GRANT SELECT ON sales.orders TO clerk;
ALTER TABLE parts OWNER TO clerk;
SELECT lo_from_bytea(70000 + i, convert_to('large ' || i, 'UTF8')) FROM generate_series(1, 3) i;
ALTER LARGE OBJECT 70001 OWNER TO clerk;
COMMENT ON LARGE OBJECT 70002 IS 'the second';
CREATE EXTENSION pg_trgm;
"""
DATABASE = """
ALTER DATABASE shop SET work_mem = '7MB';
ALTER DATABASE shop SET search_path = 'sales', '"odd, name"', public;
ALTER DATABASE shop CONNECTION LIMIT 50;
ALTER ROLE clerk IN DATABASE shop SET statement_timeout = '5min';
REVOKE CONNECT ON DATABASE shop FROM PUBLIC;
GRANT CONNECT ON DATABASE shop TO clerk WITH GRANT OPTION;
COMMENT ON DATABASE shop IS 'the shop''s';
"""


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(pg_templates, installations[18], tmp_path_factory, autovacuum="off") as scene:
        server = scene.server
        server.sql("CREATE ROLE clerk LOGIN PASSWORD 'secret'")
        for name in ("shop", QUOTED, "empty"):
            server.sql(f"CREATE DATABASE {name}")
        for statement in DATABASE.strip().splitlines():
            server.sql(statement)
        server.sql(FILL, database="shop")
        server.sql("CREATE TABLE here AS SELECT 1 AS one", database=STRANGE)
        yield scene


@pytest.fixture(scope="module")
def dump_id(scene: BackupScene) -> str:
    """A dump of all databases."""
    return str(dumped(scene)["backup_id"])


def dumped(scene: BackupScene, *words: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(scene.run("dump", *words, "--yes", "--json"))["dump"]
    return made


def error_of(scene: BackupScene, *words: str, status: int) -> str:
    process = scene.start(*words, "--yes", "--json")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == status, (output, errors)
    document = json.loads(output)
    return str(document["error"]["message"]) + " | " + str(document["error"]["hint"])


def test_every_database_comes_back_the_same(scene: BackupScene, dump_id: str) -> None:
    server = scene.server
    before = text_of_database(server, "shop")
    assert "odd, name" in before
    assert "WITH GRANT OPTION" in before
    server.sql("ALTER DATABASE shop RENAME TO shop_then")
    scene.run("load", dump_id, "--into", "shop", "--create", "--yes")
    assert text_of_database(server, "shop") == before
    words = ("--into", f"{STRANGE}2", "--create", "--jobs", "2", "--yes")
    scene.run("load", dump_id, "--database", STRANGE, *words)
    assert server.value("SELECT one FROM here", database=f"{STRANGE}2") == 1
    server.sql(f'DROP DATABASE {QUOTED[:-1]}2"')
    server.sql("DROP DATABASE shop")
    server.sql("ALTER DATABASE shop_then RENAME TO shop")


def test_what_is_known_of_a_dump(scene: BackupScene, dump_id: str) -> None:
    catalog = DumpCatalog(scene.store, scene.name)
    dump = catalog.get(dump_id)
    assert set(dump.databases) == {"postgres", "template1", "shop", STRANGE, "empty"}
    assert dump.has_globals
    assert not dump.has_passwords
    shown = json.loads(scene.run("dumps", "show", dump_id, "--tables", "shop", "--json"))
    by_name = {one["name"]: one for one in shown["databases"]}
    assert by_name["shop"]["large_objects"] == 3
    moments = [one["snapshot_at"] for one in shown["databases"]]
    assert max(moments) > min(moments)
    assert {one["name"] for one in shown["tables"]} == {"orders", "parts_old"}
    assert [one["code"] for one in shown["findings"]] == ["passwords-left-out"]
    listed = json.loads(scene.run("dumps", "list", "--json"))["dumps"]
    assert dump_id in [one["backup_id"] for one in listed]
    contents = scene.run("dumps", "show", dump_id, "--contents", "shop")
    assert "TABLE DATA sales orders postgres" in contents


@pytest.mark.parametrize("dump_format", ["plain", "directory", "tar"])
def test_other_formats(scene: BackupScene, dump_format: str) -> None:
    server = scene.server
    made = dumped(scene, "shop", "--format", dump_format, "--jobs", "2")
    words = ["--jobs", "2"] if dump_format == "directory" else []
    scene.run("load", made["backup_id"], "--into", "again", "--create", "--yes", *words)
    assert server.value("SELECT count(*) FROM sales.orders", database="again") == 5000
    assert server.value("SELECT count(*) FROM pg_largeobject_metadata", database="again") == 3
    server.sql("DROP DATABASE again")


def test_the_cluster_as_one_script(scene: BackupScene, tmp_path: Path) -> None:
    server = scene.server
    assert "breaks the line" in error_of(scene, "dump", "--cluster", status=UsageError.exit_status)
    straight = '"its \\ "" one"'
    server.sql(f"ALTER DATABASE {QUOTED} RENAME TO {straight}")
    made = dumped(scene, "--cluster")
    server.sql(f"ALTER DATABASE {straight} RENAME TO {QUOTED}")
    assert made["scope"] == "cluster"
    assert made["dump_format"] == "plain"
    details = json.loads(scene.run("dumps", "show", made["backup_id"], "--json"))
    assert {one["name"] for one in details["databases"]} == set(made["databases"])


def test_swap_and_undo(scene: BackupScene, dump_id: str) -> None:
    server = scene.server
    server.sql("CREATE TABLE since (i int)", database="shop")
    scene.run("load", dump_id, "--into", "shop", "--swap", "--yes")
    assert server.value("SELECT to_regclass('since')::text", database="shop") is None
    record = json.loads(scene.run("runs", "list", "--json"))["runs"]
    run_id = [one["run_id"] for one in record if one["command"] == "load"][-1]
    scene.run("undo", run_id, "--yes")
    assert server.value("SELECT to_regclass('since')::text", database="shop") == "since"
    server.sql("DROP TABLE since", database="shop")
    left = server.sql("SELECT datname FROM pg_database WHERE datname ~ '^shop_'")
    assert len(left) == 1  # the loaded one is kept in turn
    server.sql(f'DROP DATABASE "{left[0][0]}"')


def test_a_part_and_a_role_that_is_missing(scene: BackupScene) -> None:
    server = scene.server
    made = dumped(scene, "shop", "--with-passwords")["backup_id"]
    server.sql("CREATE DATABASE trial")
    scene.run("load", made, "--into", "trial", "--only-large-objects", "--yes")
    assert server.value("SELECT count(*) FROM pg_largeobject_metadata", database="trial") == 3
    server.sql("DROP DATABASE trial")
    server.sql("ALTER ROLE clerk RENAME TO gone")
    said = error_of(scene, "load", made, "--into", "x", "--create", status=LoadError.exit_status)
    assert "clerk" in said
    assert f"pgrecall load {made} --globals" in said
    assert server.sql("SELECT 1 FROM pg_database WHERE datname = 'x'") == []
    scene.run("load", made, "--globals", "--yes")
    stored = server.value("SELECT rolpassword FROM pg_authid WHERE rolname = 'clerk'")
    assert stored.startswith("SCRAM")
    scene.run("load", made, "--into", "x", "--create", "--yes")
    assert server.value("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'parts'",
                        database="x") == "clerk"  # fmt: skip
    server.sql("DROP DATABASE x")
    server.sql("DROP ROLE clerk")
    server.sql("ALTER ROLE gone RENAME TO clerk")


@pytest.mark.parametrize("dump_format", ["custom", "plain", "directory"])
def test_roles_take_the_place_of_others(scene: BackupScene, dump_format: str) -> None:
    server = scene.server
    deputy = 'the "new" clerk'
    quoted = '"the ""new"" clerk"'
    made = dumped(scene, "shop", "--format", dump_format)["backup_id"]
    before = text_of_database(server, "shop")
    words = ("load", made, "--into", "shop", "--create", "--role-map", f"clerk={deputy}")
    server.sql("ALTER DATABASE shop RENAME TO shop_then")
    assert deputy in error_of(scene, *words, status=LoadError.exit_status)
    server.sql(f"CREATE ROLE {quoted}")
    said = error_of(scene, *words, "--jobs", "2", status=UsageError.exit_status)
    assert "--jobs" in said or "one job" in said
    scene.run(*words, "--yes")
    assert _statements(text_of_database(server, "shop")) == _statements(before).replace(
        "clerk", quoted
    )
    server.sql("DROP DATABASE shop")
    server.sql("ALTER DATABASE shop_then RENAME TO shop")
    server.sql(f"DROP ROLE {quoted}")


def _statements(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("--"))


def test_a_failure_leaves_the_target_as_it_was(scene: BackupScene, tmp_path: Path) -> None:
    server = scene.server
    script = tmp_path / "broken.sql.gz"
    script.write_bytes(gzip.compress(b"CREATE TABLE first (i int);\nSELECT 1/0;\n"))
    said = error_of(
        scene, "load", str(script), "--into", "fresh", "--create", status=LoadError.exit_status
    )
    assert "division by zero" in said
    assert server.sql("SELECT 1 FROM pg_database WHERE datname = 'fresh'") == []
    said = error_of(
        scene, "load", str(script), "--into", "empty", "--single-transaction",
        status=LoadError.exit_status,
    )  # fmt: skip
    assert "as it was" in said
    assert server.value("SELECT to_regclass('first')::text", database="empty") is None
    said = error_of(scene, "load", str(script), "--into", "empty", status=LoadError.exit_status)
    assert "stays there" in said
    assert server.value("SELECT to_regclass('first')::text", database="empty") == "first"
    server.sql("DROP TABLE first", database="empty")
    process = scene.start("load", str(script), "--into", "empty", "--report", "--yes", "--json")
    whole = json.loads(process.communicate(timeout=60)[0])
    assert process.returncode == LoadError.exit_status
    assert whole["errors"] == 1
    server.sql("DROP TABLE first", database="empty")


def test_a_file_that_was_cut_off(scene: BackupScene, tmp_path: Path) -> None:
    script = tmp_path / "cut.sql.gz"
    script.write_bytes(gzip.compress(b"SELECT 1;\n" * 100_000)[:-100])
    said = error_of(
        scene, "load", str(script), "--into", "cut", "--create", status=LoadError.exit_status
    )
    assert "ends before its end" in said
    assert scene.server.sql("SELECT 1 FROM pg_database WHERE datname = 'cut'") == []


def test_a_file_that_gpg_encrypted(scene: BackupScene, tmp_path: Path) -> None:
    server, secret = scene.server, tmp_path / "secret"
    secret.write_text("of the safe\n")
    secret.chmod(0o600)
    script = b"CREATE TABLE told AS SELECT generate_series(1, 20000) AS n;\n"
    path = tmp_path / "backup.sql.gz.gpg"
    words = ("load", str(path), "--into", "told", "--create")
    if shutil.which("gpg") is None:
        path.write_bytes(b"?")
        assert "no gpg on this host" in error_of(scene, *words, status=25)
        return
    encrypt = ["gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase-file"]
    path.write_bytes(
        subprocess.run(
            [*encrypt, str(secret), "--symmetric", "--output", "-"],
            input=gzip.compress(script + b"SELECT 'a longer tail';\n" * 200_000, 1),
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    )
    given = ("--passphrase", f"file:{secret}")
    scene.run(*words, *given, "--yes")
    assert server.value("SELECT count(*) FROM told", database="told") == 20_000
    server.sql("DROP DATABASE told")
    secret.write_text("another\n")
    said = error_of(scene, *words, *given, status=LoadError.exit_status)
    assert "gpg cannot decrypt" in said
    secret.write_text("of the safe\n")
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole[:-40] + bytes(40)):
        path.write_bytes(damaged)
        error_of(scene, *words, *given, status=LoadError.exit_status)
        assert server.sql("SELECT 1 FROM pg_database WHERE datname = 'told'") == []


def test_what_is_refused(scene: BackupScene, dump_id: str, tmp_path: Path) -> None:
    usage = UsageError.exit_status
    assert "no database 'nope'" in error_of(scene, "dump", "nope", status=usage)
    assert "--cluster makes one" in error_of(
        scene, "dump", "--cluster", "--format", "tar", status=usage
    )
    assert "never compressed" in error_of(
        scene, "dump", "shop", "--format", "tar", "--compress", "gzip", status=usage
    )
    assert "is no compression" in error_of(scene, "dump", "--compress", "rar", status=usage)
    assert "holds" in error_of(
        scene, "load", dump_id, "--into", "shop", status=LoadError.exit_status
    )
    assert "has no database 'new'" in error_of(
        scene, "load", dump_id, "--into", "new", "--database", "shop", status=usage
    )
    assert "there is no complete dump" in error_of(
        scene, "load", "d-20200101T000000Z-aaaa", "--into", "empty",
        status=DumpNotFoundError.exit_status,
    )  # fmt: skip
    strange = tmp_path / "zeros"
    strange.write_bytes(b"\0" * 100)
    assert "neither a dump nor SQL" in error_of(
        scene, "load", str(strange), "--into", "empty", status=usage
    )


def test_a_role_without_rights(scene: BackupScene) -> None:
    server = scene.server
    server.sql("CREATE ROLE reader LOGIN")
    server.sql("GRANT CONNECT ON DATABASE shop TO reader")
    config = scene.config.read_text()
    try:
        scene.config.write_text(config.replace('user = "postgres"', 'user = "reader"'))
        before = DumpCatalog(scene.store, scene.name).ids()
        said = error_of(scene, "dump", "shop", status=PostgresRightsError.exit_status)
        assert "permission denied" in said
        assert "pg_read_all_data" in said
        assert DumpCatalog(scene.store, scene.name).ids() == before
    finally:
        scene.config.write_text(config)
    scene.assert_server_is_clean()


def test_a_database_that_refuses_connections(scene: BackupScene) -> None:
    server = scene.server
    server.sql("CREATE DATABASE closed ALLOW_CONNECTIONS false")
    made = json.loads(scene.run("dump", "--dry-run", "--json"))["plan"]
    assert [one for one in made["left_out"] if one.startswith("closed: it refuses all")]
    assert "refuses all connections" in error_of(
        scene, "dump", "closed", status=PostgresRightsError.exit_status
    )
    server.sql("DROP DATABASE closed")


def test_tablespace_and_template(scene: BackupScene) -> None:
    """They come back with the database, unless --no-tablespaces; a failure drops a template too."""
    server = scene.server
    (scene.directory / "spare").mkdir()
    server.sql(f"CREATE TABLESPACE spare LOCATION '{scene.directory / 'spare'}'")
    server.sql("CREATE DATABASE placed TABLESPACE spare IS_TEMPLATE true")
    dump_id = dumped(scene, "placed")["backup_id"]
    about = (
        "SELECT spcname, datistemplate FROM pg_database d JOIN pg_tablespace t"
        " ON t.oid = d.dattablespace WHERE datname = 'again'"
    )
    for words, tablespace in (([], "spare"), (["--no-tablespaces"], "pg_default")):
        scene.run("load", dump_id, "--into", "again", "--create", "--yes", *words)
        assert server.sql(about) == [(tablespace, True)]
        server.sql("ALTER DATABASE again IS_TEMPLATE false")
        server.sql("DROP DATABASE again")
    server.sql("ALTER DATABASE placed IS_TEMPLATE false")
    server.sql("DROP DATABASE placed")
    server.sql("DROP TABLESPACE spare")


@pytest.mark.parametrize("point", ["load.created", "load.loaded", "load.swap", "load.renamed"])
def test_a_swap_that_is_killed(scene: BackupScene, dump_id: str, point: str) -> None:
    """The database is there under its name, with what it had; the same command works then."""
    server = scene.server
    words = ("load", dump_id, "--into", "empty", "--database", "shop", "--swap", "--yes")
    process = scene.start(*words, kill=point)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    server.wait_until(
        lambda: server.value(
            "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'pgrecall%'"
        ),
        "nothing of it is left on the server",
    )
    tables = "SELECT count(*) FROM pg_class WHERE relname = 'orders'"
    assert server.value(tables, database="empty") == 0
    scene.run(*words)
    assert server.value(tables, database="empty") == 1
    for (name,) in server.sql("SELECT datname FROM pg_database WHERE datname ~ '^empty'"):
        server.sql(f'DROP DATABASE "{name}"')
    server.sql("CREATE DATABASE empty")


def test_the_database_that_pgrecall_connects_to_is_swapped(scene: BackupScene) -> None:
    server = scene.server
    dump_id = dumped(scene, "postgres")["backup_id"]
    server.sql("CREATE TABLE since (i int)")
    with server.connect("postgres"):  # a client that stays is ended
        scene.run("load", dump_id, "--into", "postgres", "--swap", "--yes")
    assert server.value("SELECT to_regclass('since')::text") is None
    (kept,) = server.sql("SELECT datname FROM pg_database WHERE datname ~ '^postgres_before'")
    server.sql(f'DROP DATABASE "{kept[0]}"')
