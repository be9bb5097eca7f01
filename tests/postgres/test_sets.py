"""Recovery sets: made of parts of one moment, kept together, brought back whole."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.errors import DestinationError, VerifyFailedError, WalMissingError
from pgrecall.postgres.instance import running_postmaster
from pgrecall.repository.identity import create_repository, read_generation
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.store.local import LocalStore
from pgrecall.system.clock import SystemClock
from pgrecall.system.processes import wait_until_gone
from tests.support.backup_scene import BackupScene, shared_scene, wait_until
from tests.support.by_the_book import by_the_book, carry_out
from tests.support.dumped_text import text_of_server
from tests.support.postgresql import (
    Installation,
    PostgresServer,
    ServerFactory,
    Templates,
    free_port,
)

STRANGE = 'it\'s "odd" ü'
QUOTED = '"' + STRANGE.replace('"', '""') + '"'


def fill(server: PostgresServer, space: Path) -> None:
    space.mkdir()
    server.sql("CREATE ROLE clerk LOGIN PASSWORD 'secret' VALID UNTIL '2040-01-01'")
    server.sql(f"CREATE ROLE {QUOTED}; GRANT clerk TO {QUOTED} WITH ADMIN OPTION")
    server.sql(f"CREATE TABLESPACE fast LOCATION '{space}'")
    server.sql("CREATE DATABASE shop OWNER clerk TABLESPACE fast")
    server.sql(f"CREATE DATABASE {QUOTED} OWNER {QUOTED}")
    server.sql(f"COMMENT ON DATABASE {QUOTED} IS 'it has one'")
    server.sql("ALTER DATABASE shop SET work_mem = '7MB'")
    server.sql("CREATE TABLE orders AS SELECT generate_series(1, 2000) AS n", database="shop")
    server.sql("SELECT lo_from_bytea(0, 'large')", database="shop")
    server.sql(f"CREATE TABLE {QUOTED} AS SELECT 'ü' AS x", database=STRANGE)
    server.sql("CREATE TABLE here AS SELECT 1 AS one")
    server.sql("SELECT pg_create_physical_replication_slot('standby_1', true)")
    server.sql("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(
        pg_templates, installations[18], tmp_path_factory, autovacuum="off", wal_level="logical"
    ) as scene:
        fill(scene.server, scene.directory / "space")
        yield scene


class Copies:
    """The servers that restores leave running; they are ended with the test."""

    def __init__(self, scene: BackupScene) -> None:
        self._scene = scene
        self._directories: list[Path] = []

    def restore(
        self, set_id: str, directory: Path, *words: str, status: int = 0, **options: Any
    ) -> dict[str, Any]:
        """``set restore``; what it printed."""
        self._directories.append(directory)
        call = ("set", "restore", set_id, "--target-dir", str(directory), "--yes", "--json")
        printed = self._scene.run(*call, *words, status=status, **options)
        result: dict[str, Any] = json.loads(printed) if status == 0 else {}
        return result

    def connected(self, result: dict[str, Any]) -> PostgresServer:
        """A handle for SQL."""
        server = PostgresServer(self._scene.server.installation, self._directories[-1])
        os.rmdir(server.host)
        server.host, server.port = result["host"], result["port"]
        return server

    def end(self) -> None:
        """End all of them."""
        for directory in self._directories:
            pid = running_postmaster(directory)
            if pid is not None:
                os.kill(pid, signal.SIGQUIT)
                assert wait_until_gone(pid, 60.0)


@pytest.fixture(scope="module")
def made(scene: BackupScene) -> dict[str, Any]:
    """A set of everything; what came later is not in it."""
    words = ("set", "create", "--proofs", "--with-passwords", "--yes", "--json")
    result: dict[str, Any] = json.loads(scene.run(*words))
    result["text"] = text_of_server(scene.server)
    scene.server.sql("CREATE TABLE later (n int)", database="shop")
    scene.server.sql("CREATE ROLE later")
    return result


@pytest.fixture
def copies(scene: BackupScene) -> Iterator[Copies]:
    copies = Copies(scene)
    yield copies
    copies.end()


def test_it_has_parts_of_one_moment(scene: BackupScene, made: dict[str, Any]) -> None:
    record = made["recovery_set"]
    listed = json.loads(scene.run("sets", "list", "--json"))["sets"]
    assert [one["set_id"] for one in listed] == [record["set_id"]]
    shown = json.loads(scene.run("sets", "show", record["set_id"], "--json"))
    assert shown["recovery_set"] == record
    assert "findings" not in shown or shown["findings"] == []
    assert {one["name"] for one in record["slots"]} == {"standby_1", "feed"}
    assert {"shop", STRANGE, "postgres"} <= set(record["databases"])
    # The snapshots of the dump and the restore point lie within moments of each other.
    dump = json.loads(scene.run("dumps", "show", record["dump_id"], "--json"))
    for database in dump["databases"]:
        assert database["snapshot_at"] <= record["point"]["created_at"]
    points = json.loads(scene.run("find", "--restore-points", "--json"))
    assert record["set_id"] in json.dumps(points)


def test_verify_proves_every_part_and_the_wal(scene: BackupScene, made: dict[str, Any]) -> None:
    record = made["recovery_set"]
    proof = json.loads(scene.run("verify", record["set_id"], "--json"))
    assert {one["backup_id"] for one in proof["backups"]} == {
        record["backup_id"],
        record["dump_id"],
    }
    assert proof["result"] == "ok"


def unequal(result: dict[str, Any]) -> list[str]:
    return [str(one) for one in result["checks"] if one["result"] != "ok"]


def moved(text: str, scene: BackupScene, space: Path) -> str:
    """What pg_dumpall says of a server, had its tablespace been elsewhere."""
    return text.replace(str(scene.directory / "space"), str(space))


def test_from_the_backup(
    scene: BackupScene, made: dict[str, Any], copies: Copies, tmp_path: Path
) -> None:
    record, target, space = made["recovery_set"], tmp_path / "copy", tmp_path / "space"
    words = ("--tablespace-map", f"{scene.directory / 'space'}={space}")
    result = copies.restore(record["set_id"], target, *words)
    assert unequal(result) == [], result["checks"]
    assert record["set_id"] in result["started"]["stopped"]
    assert {one["name"]: one["is_made"] for one in result["slots"]} == {
        "standby_1": True,
        "feed": True,
    }
    copy = copies.connected(result)
    assert text_of_server(copy) == moved(made["text"], scene, space)
    # The same command again finds it there, and examines it once more.
    again = copies.restore(record["set_id"], target, *words)
    assert again["plan"]["goes_on"]
    assert unequal(again) == []


def test_from_the_dumps_into_a_new_server(
    scene: BackupScene, made: dict[str, Any], copies: Copies, tmp_path: Path
) -> None:
    record, target, space = made["recovery_set"], tmp_path / "copy", tmp_path / "space"
    space.mkdir(mode=0o700)
    words = ("--logical", "--jobs", "2", "--tablespace-map", f"fast={space}")
    result = copies.restore(record["set_id"], target, *words)
    assert all("'settings'" in one for one in unequal(result)), result["checks"]
    assert any("rows and hashes" in one["what"] for one in result["checks"])
    copy = copies.connected(result)
    assert text_of_server(copy) == moved(made["text"], scene, space)
    made_slots = {one["name"]: one["is_made"] for one in result["slots"]}
    assert made_slots == {"standby_1": True, "feed": True}
    assert not (target / "pgrecall_unfinished_set.json").exists()
    call = ("set", "restore", record["set_id"], "--logical", "--target-dir", str(target), "--yes")
    assert "a server runs on" in scene.run(*call, status=52)


def test_production_is_never_replaced(scene: BackupScene, made: dict[str, Any]) -> None:
    before = text_of_server(scene.server)
    errors = scene.run(
        "set", "restore", made["recovery_set"]["set_id"], "--logical", "--yes", status=59
    )
    assert "'shop'" in errors
    assert "template1" not in errors
    assert text_of_server(scene.server) == before


def test_retention_keeps_what_belongs_to_it(scene: BackupScene, made: dict[str, Any]) -> None:
    """Its parts and its WAL stay as long as it does, whatever the policy says of them."""
    record = made["recovery_set"]
    scene.run("hold", "add", record["set_id"], "--reason", "case 4711")
    scene.run("dump", "--yes")
    scene.run("backup", "--full", "--yes")
    text = scene.config.read_text()
    policy = '[retention]\npolicy = "tight"\n[policies.tight]\nkeep_last = 1\n'
    scene.config.write_text(text + policy + "pitr_window_hours = 1\n")
    try:
        plan = json.loads(scene.run("expire", "--dry-run", "--json"))["plan"]
        fates = {one["item_id"]: one for one in plan["items"]}
        assert "hold: case 4711" in fates[record["set_id"]]["why"]
        for part in (record["backup_id"], record["dump_id"]):
            assert f"part of the set {record['set_id']}" in fates[part]["why"]
        reasons = [why for one in plan["wal"] for why in one["why"]]
        assert f"it leads to the moment of {record['set_id']}" in reasons
        # By name neither goes while the set stays.
        plan = json.loads(scene.run("expire", record["backup_id"], "--dry-run", "--json"))["plan"]
        assert {one["fate"] for one in plan["items"]} == {"stays"}
    finally:
        scene.config.write_text(text)


def test_exported_it_comes_back_by_its_own_book(
    scene: BackupScene, made: dict[str, Any], pg_factory: ServerFactory, tmp_path: Path
) -> None:
    """One archive; both ways that its book describes give what pg_dumpall said of the server."""
    record, installation = made["recovery_set"], scene.server.installation
    words = ("export", record["set_id"], "--to", f"{tmp_path}/", "--format", "tar")
    assert "hashes of passwords" in scene.run(*words, status=2)
    scene.run(*words, "--plain-passwords")
    (archive,) = tmp_path.iterdir()
    assert re.fullmatch(r"postgresql-backup-\d{8}-\d{6}\.tar\.gz", archive.name)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="tar")
    (book,) = tmp_path.glob("*/RESTORE.md")
    (book.parent / "config").stat()
    data, socket = tmp_path / "data", Path(tempfile.mkdtemp(prefix="pg-"))
    port = free_port()
    options = f"-p {port} -k {socket} -c listen_addresses="
    try:
        carry_out(
            book.parent, installation, "From the base backup",
            PGDATA=str(data), SERVER_OPTIONS=options, PGPORT=str(port), PGHOST=str(socket),
            PGUSER="postgres",
        )  # fmt: skip
        copy = pg_factory.adopt(data)
        os.rmdir(copy.host)
        copy.host, copy.port = str(socket), port
        wait_until(lambda: not copy.value("SELECT pg_is_in_recovery()"), "the recovery is over")
        oid = scene.server.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'")
        space = Path(f"{data}.{oid}")
        assert text_of_server(copy) == moved(made["text"], scene, space)
        assert "recovery_target" not in (data / "postgresql.auto.conf").read_text()
        assert copy.value("SHOW archive_mode") == "off"
    finally:
        pid = running_postmaster(data)
        if pid is not None:
            os.kill(pid, signal.SIGQUIT)
            assert wait_until_gone(pid, 60.0)
    globals_sql = book.parent / "dumps" / "globals.sql"
    here = tmp_path / "fast"
    here.mkdir(mode=0o700)
    text = globals_sql.read_text().replace(str(scene.directory / "space"), str(here))
    globals_sql.write_text(text)
    with pytest.raises(subprocess.CalledProcessError):
        carry_out(book.parent, installation, "From the dumps")  # the sum has noticed
    sums = book.parent / "SHA256SUMS"
    lines = [one for one in sums.read_text().splitlines() if not one.endswith("globals.sql")]
    sums.write_text("\n".join(lines) + "\n")
    fresh = pg_factory(name="fresh", autovacuum="off")
    by_the_book(book.parent, fresh)
    assert text_of_server(fresh) == moved(made["text"], scene, here)


def test_wal_and_captures_as_plain_files(
    scene: BackupScene, made: dict[str, Any], tmp_path: Path
) -> None:
    record = made["recovery_set"]
    segment = record["point"]["segment"]
    scene.run("export", "--wal", f"{segment}..{segment}", "--to", str(tmp_path / "wal"))
    plain = tmp_path / "wal" / "wal" / segment
    assert plain.read_bytes() == WalArchive(
        scene.store, scene.name, read_generation(scene.store, scene.name, 1)
    ).read(segment)
    scene.run("export", record["capture_id"], "--to", str(tmp_path / "capture"))
    assert (tmp_path / "capture/config/pg_hba.conf").read_text()
    assert "feed" in (tmp_path / "capture/slots/replication-slots.sql").read_text()
    missing = "0000000100000009000000FF"
    errors = scene.run(
        "export", "--wal", f"{segment}..{missing}", "--to", str(tmp_path / "none"),
        status=WalMissingError.exit_status,
    )  # fmt: skip
    assert "is not in" in errors
    assert not (tmp_path / "none").exists()


def test_an_export_that_is_killed_or_finds_no_room(
    scene: BackupScene, made: dict[str, Any], tmp_path: Path
) -> None:
    """Nothing has its name before it is whole; the next one clears what the killed one left."""
    target = tmp_path / "out"
    words = ("export", made["recovery_set"]["backup_id"], "--to", str(target))
    scene.run(*words, kill="export.written", status=-signal.SIGKILL)
    assert not target.exists()
    limit = (1 << 20, 1 << 20)
    errors = scene.run(
        *words, status=DestinationError.exit_status,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert "HINT" in errors
    assert list(tmp_path.iterdir()) == []
    scene.run(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_it_goes_to_the_other_repositories(pg_factory: ServerFactory, tmp_path: Path) -> None:
    """With its parts, its capture and its WAL, where copies are kept; there it can be verified."""
    scene = BackupScene(tmp_path, pg_factory(autovacuum="off"))
    other = tmp_path / "other"
    shutil.copytree(scene.repository, other)
    store = LocalStore(str(other))
    store.delete("repository.json")
    create_repository(store, SystemClock().now())
    with scene.config.open("a") as config:
        config.write(
            f'[repositories.two]\nstore = "local"\npath = "{other}"\nrole = "best-effort"\n'
            "copies_backups = true\n"
        )
    scene.archive()
    made = json.loads(scene.run("set", "create", "--no-passwords", "--yes", "--json"))
    set_id = made["recovery_set"]["set_id"]
    assert made["findings"] == [
        one for one in made["findings"] if one["code"].startswith("capture-")
    ]
    assert set_id in scene.run("sets", "list", "--repository", "two")
    proof = json.loads(scene.run("verify", set_id, "--repository", "two", "--json"))
    assert len(proof["backups"]) == 2
    # Without the last segment its restore point cannot be reached, and no part of it is damaged.
    (segment,) = other.rglob(made["recovery_set"]["point"]["segment"])
    segment.unlink()
    verify = scene.start("verify", set_id, "--repository", "two", "--json")
    proof = json.loads(verify.communicate()[0])
    failed = {one["code"]: one for one in proof["findings"] if one["severity"] == "fail"}
    assert verify.returncode == VerifyFailedError.exit_status
    assert set_id in failed["set-wal"]["subject"]
