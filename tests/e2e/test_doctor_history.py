"""``doctor`` and what has happened: dumps, loads, restores, drills, stored bytes, gaps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.further_errors import DrillFailedError
from pgrecall.repository import layout
from pgrecall.repository.identity import create_repository
from pgrecall.store.local import LocalStore
from pgrecall.system.clock import SystemClock
from tests.support.clinic import Clinic, opened_clinic
from tests.support.postgresql import Installation, Templates
from tests.support.product import SERVER


@pytest.fixture(scope="module")
def clinic(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Clinic]:
    with opened_clinic(pg_templates, installations[18], tmp_path_factory) as clinic:
        server = clinic.server
        server.sql("CREATE DATABASE shop")
        server.sql("CREATE TABLE orders AS SELECT generate_series(1, 100) AS n", database="shop")
        clinic.product.backup()
        yield clinic


def test_a_dump_that_runs_out_of_memory(clinic: Clinic, tmp_path: Path) -> None:
    real = clinic.server.installation.bin_directory
    for program in real.iterdir():
        (tmp_path / program.name).symlink_to(program)
    small = tmp_path / "pg_dump"
    small.unlink()
    small.write_text(f'#!/bin/sh\nulimit -v 200000\nexec "{real}/pg_dump" "$@"\n')
    small.chmod(0o755)
    clinic.server.sql(
        "CREATE TABLE large AS SELECT decode(repeat('00', 60 << 20), 'hex') AS content",
        database="shop",
    )
    with clinic.configured(bin_directory=json.dumps(str(tmp_path))):
        done = clinic.product.cli("dump", "shop", "--yes")
        assert done.returncode != 0
        assert "out of memory" in done.stderr
        found = clinic.find()["dump-out-of-memory"]
        assert (found["severity"], found["issue"]) == ("fail", 1)
        clinic.type(found, "--yes")
        assert "dump-out-of-memory" not in clinic.find()
    clinic.server.sql("DROP TABLE large", database="shop")


def test_large_objects_that_a_dump_left_out(clinic: Clinic) -> None:
    clinic.server.sql("CREATE DATABASE pictures")
    clinic.server.sql("CREATE TABLE names (n int); SELECT lo_create(0)", database="pictures")
    assert clinic.product.cli("dump", "pictures", "--table", "names", "--yes").returncode == 0
    found = clinic.find()["large-objects-left-out"]
    assert (found["severity"], found["issue"], found["subject"]) == ("fail", 8, "pictures")
    clinic.type(found, "--yes")
    assert "large-objects-left-out" not in clinic.find()


def test_a_dump_that_may_not_read(clinic: Clinic) -> None:
    clinic.server.sql("CREATE ROLE reader LOGIN; GRANT pg_read_all_settings TO reader")
    with clinic.configured(user='"reader"'):
        assert clinic.product.cli("dump", "shop", "--no-globals", "--yes").returncode != 0
        refused = [
            one
            for one in json.loads(clinic.product.cli("doctor", "--json").stdout)["diagnoses"]
            if one["code"] == "rights-missing" and "permission denied" in one["evidence"][0]
        ]
        clinic.type(refused[0], "--yes")
        told = clinic.product.cli("doctor", "--json").stdout
    assert "permission denied" not in told
    clinic.server.sql("DROP OWNED BY reader; DROP ROLE reader")


def test_a_load_that_lacks_a_role_and_one_that_is_slow(clinic: Clinic) -> None:
    server = clinic.server
    server.sql("CREATE ROLE keeper")
    server.sql("CREATE DATABASE kept")
    server.sql("CREATE TABLE things (n int); ALTER TABLE things OWNER TO keeper", database="kept")
    made = clinic.product.cli("dump", "kept", "--yes", "--json")
    dump_id = json.loads(made.stdout)["dump"]["backup_id"]
    server.sql("DROP DATABASE kept")
    server.sql("DROP ROLE keeper")
    load = clinic.product.cli("load", dump_id, "--into", "kept", "--create", "--yes")
    assert load.returncode != 0
    found = clinic.find()["role-missing"]
    assert (found["severity"], found["issue"]) == ("fail", 7)
    clinic.type(found, "--yes")
    with clinic.configured("[targets]\nrto_seconds = 0.001\n"):
        found = clinic.find()
    assert "role-missing" not in found
    assert (found["load-slow"]["severity"], found["load-slow"]["issue"]) == ("warn", 4)
    clinic.type(found["load-slow"], "--yes")
    assert "load-slow" not in clinic.find()


def test_targets_out_of_range_and_restores_that_are_slow(clinic: Clinic, tmp_path: Path) -> None:
    product = clinic.product
    away = ("--to-time", "2001-01-01 00:00:00+00", "--target-dir", str(tmp_path / "past"))
    assert product.cli("restore", *away).returncode != 0
    found = clinic.find()["target-out-of-range"]
    assert (found["severity"], found["issue"]) == ("fail", 3)
    clinic.type(found)  # what can be reached, and a dry run of it
    target = tmp_path / "restored"
    product.copies.append(target)
    assert product.cli("restore", "--target-dir", str(target), "--start").returncode == 0
    with clinic.configured("[targets]\nrto_seconds = 0.001\n"):
        found = clinic.find()
    assert "target-out-of-range" not in found
    assert (found["restore-slow"]["severity"], found["restore-slow"]["issue"]) == ("fail", 4)


def test_drills(clinic: Clinic, tmp_path: Path) -> None:
    found = clinic.find()
    assert "run-failed" not in found or "restore" not in found["run-failed"]["evidence"][0]
    clinic.type(found["never-drilled"])
    assert "never-drilled" not in clinic.find()
    check = tmp_path / "no-orders.sql"
    check.write_text("SELECT 1 / 0")
    with clinic.configured(f"[drill]\nchecks = [{json.dumps(str(check))}]\n"):
        done = clinic.product.cli("drill")
    assert done.returncode == DrillFailedError.exit_status, done.stdout + done.stderr
    found = clinic.find()["drill-failed"]
    assert (found["severity"], found["issue"]) == ("fail", 6)
    clinic.type(found)
    assert "drill-failed" not in clinic.find()


def test_stored_bytes_are_damaged_and_healed(clinic: Clinic, tmp_path: Path) -> None:
    second = tmp_path / "second"
    LocalStore(str(second)).create_root()
    create_repository(LocalStore(str(second)), SystemClock().now())
    more = '[repositories.two]\nstore = "local"\nrole = "best-effort"\n'
    more += f"path = {json.dumps(str(second))}\n"
    with clinic.configured(more):
        backup = clinic.product.cli("backup", "--full", "--yes", "--json", "--repository", "one")
        backup_id = json.loads(backup.stdout)["backup"]["backup_id"]
        copied = clinic.product.cli("copy", "--from", "one", "--to", "two", "--yes")
        assert copied.returncode == 0, copied.stderr
        prefix = layout.backup_prefix(SERVER, backup_id)
        store = LocalStore(clinic.product.repository.path)
        pack = next(one.key for one in store.list(prefix) if "pack-" in one.key)
        path = clinic.product.path_of(pack)
        content = path.read_bytes()
        path.write_bytes(content[:-200] + b"?" + content[-199:])
        assert clinic.product.cli("verify", "--repository", "one").returncode != 0
        found = clinic.find()["backup-damaged"]
        assert (found["severity"], found["issue"]) == ("fail", 6)
        assert backup_id in found["subject"]
        clinic.type(found, "--yes")
        assert "backup-damaged" not in clinic.find()


def test_a_gap_and_a_timeline_without_history(clinic: Clinic) -> None:
    product, server = clinic.product, clinic.server
    lost = product.switch()
    product.switch()
    store = LocalStore(product.repository.path)
    (key,) = [one.key for one in store.list(f"servers/{SERVER}/wal/") if lost in one.key]
    product.path_of(key).unlink()
    found = clinic.find()["wal-gap"]
    assert (found["severity"], found["issue"]) == ("fail", 3)
    assert lost in "".join(found["evidence"])
    clinic.type(found, "--yes")
    product.switch()
    assert clinic.find()["wal-gap"]["severity"] == "warn"
    # Another timeline, as after a failover.
    server.stop()
    (server.pgdata / "standby.signal").touch()
    server.start()
    server.sql("SELECT pg_promote()")
    product.switch()
    (key,) = [one.key for one in store.list(f"servers/{SERVER}/wal/") if ".history" in one.key]
    product.path_of(key).unlink()
    found = clinic.find()["history-missing"]
    assert (found["severity"], found["issue"]) == ("fail", 3)
    clinic.type(found)
    assert "history-missing" not in clinic.find()
