"""The targets of make/ops/postgresql.mk, run by make against a real server."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.errors import VerifyFailedError
from pgrecall.settings import RepositorySettings
from pgrecall.store.opening import open_store
from tests.support.clinic import Clinic, opened_clinic
from tests.support.object_servers import ACCESS_KEY, BUCKET, SECRET_KEY, s3_server
from tests.support.postgresql import Installation, Templates, run_program

ROOT = Path(__file__).resolve().parents[2]
ODD = """we're "odd" $HOME $(touch harm) `touch harm`; a/b"""
GUIDE = {
    "pg-backup-config", "pg-backup", "pg-backup-all", "pg-backup-wal", "pg-replication-status",
    "pg-backup-pvc-snapshot", "pg-backup-full", "pg-basebackup", "pg-archive-status",
    "pg-restore-full", "pg-restore", "pg-backup-verify", "pg-pitr", "pg-drill", "pg-doctor",
    "pg-rebuild-replica", "pg-promote-replica", "pg-expire",
}  # fmt: skip


class Makes:
    """``make -f make/ops/postgresql.mk`` in a directory of its own."""

    def __init__(self, clinic: Clinic, directory: Path) -> None:
        self.clinic = clinic
        self.directory = directory
        self.root = directory / "backups" / "postgresql"

    def __call__(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        # Called by make, these tests are no part of it.
        around = {
            k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
        }
        environment = {**around, **variables}
        environment["PGRECALL"] = shlex.join(self.clinic.product.command())
        return subprocess.run(
            ["make", "-f", str(ROOT / "make/ops/postgresql.mk"), *words],
            cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    def works(self, *words: str, **variables: str) -> str:
        done = self(*words, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (self.directory / "harm").exists()
        return done.stdout

    def made(self, pattern: str) -> Path:
        (found,) = self.root.glob(pattern)
        return found


@pytest.fixture(scope="module")
def clinic(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Clinic]:
    with opened_clinic(pg_templates, installations[18], tmp_path_factory) as clinic:
        name = ODD.replace('"', '""')
        clinic.server.sql(f'CREATE DATABASE "{name}"')
        clinic.server.sql("CREATE TABLE orders AS SELECT generate_series(1, 100) n", database=ODD)
        yield clinic


@pytest.fixture
def make(clinic: Clinic, tmp_path: Path) -> Makes:
    return Makes(clinic, tmp_path)


def test_help_names_every_target_of_the_guide(make: Makes) -> None:
    for words in ((), ("help",)):
        told = make.works(*words, NAMESPACE="default")
        assert GUIDE | {"help"} == {line.split()[0] for line in told.splitlines()}


@pytest.mark.parametrize("variable", ["NAMESPACE", "POD_NAME", "PRIMARY_POD"])
def test_kubernetes_is_refused_in_words(make: Makes, variable: str) -> None:
    done = make("pg-backup", f"{variable}=postgresql-0")
    assert done.returncode != 0
    assert "Kubernetes" in done.stderr
    assert make("pg-backup-pvc-snapshot").returncode != 0


def test_a_database_with_an_odd_name_comes_back_from_each_format(make: Makes) -> None:
    server = make.clinic.server
    for number, (chosen, ending) in enumerate(
        [("custom", ".dump"), ("plain", ".sql"), ("tar", ".tar"), ("directory", "-dir")]
    ):
        root = f"plain {number}"
        make.works("pg-backup", f"POSTGRES_DB={ODD}", FORMAT=chosen, BACKUP_ROOT=root)
        found = {one.name: one for one in (make.directory / root / "dumps").iterdir()}
        made = next(one for name, one in found.items() if not name.endswith(".sha256"))
        assert set(found) == {made.name, f"{made.name}.sha256"} or ending == "-dir"
        assert made.name.startswith(ODD.replace("/", "%2F") + "-")
        assert made.name.endswith(ending)
        into = f"back {number} $it's"
        make.works("pg-restore", FILE=str(made), POSTGRES_DB=into)
        assert server.value("SELECT count(*) FROM orders", database=into) == 100
        if ending == ".dump":  # without pgrecall
            assert "orders" in run_program(
                [server.installation.program("pg_restore"), "--list", made]
            )
    assert make("pg-backup", FORMAT="xml").returncode != 0
    assert "FILE" in make("pg-restore").stderr


def test_everything_as_a_script_and_its_verification(make: Makes) -> None:
    make.works("pg-backup-all")
    script = make.made("dumps/cluster-*.sql")
    assert "CREATE ROLE" in script.read_text()
    words = ("pg-backup-verify", f"BACKUP_DIR={make.root}")
    make.works(*words)
    whole = script.read_text()
    script.write_text(whole.replace("100", "200", 1))
    assert "does not have its sum" in make(*words).stdout
    script.write_text(whole[:-200])
    done = make(*words)
    assert f"Error {VerifyFailedError.exit_status}" in done.stderr
    assert "script-cut" in done.stdout or "lacks the last line" in done.stdout
    assert "BACKUP_DIR" in make("pg-backup-verify").stderr


def test_an_export_is_held_to_its_sums(make: Makes) -> None:
    made = make.clinic.product.cli("dump", "postgres", "--yes", "--json")
    dump_id = json.loads(made.stdout)["dump"]["backup_id"]
    target = make.directory / "exported here"
    assert make.clinic.product.cli("export", dump_id, "--to", str(target)).returncode == 0
    (target / "slots").mkdir()  # scripts there are not pg_dump's
    (target / "slots" / "replication-slots.sql").write_text("SELECT 1;\n")
    make.works("pg-backup-verify", BACKUP_DIR=str(target))
    dump = next(target.glob("dumps/*.dump"))
    content = dump.read_bytes()
    dump.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "does not have its sum" in make("pg-backup-verify", BACKUP_DIR=str(target)).stdout
    dump.write_bytes(b"PGDMP")
    assert "cannot be read" in make("pg-backup-verify", BACKUP_DIR=str(target)).stdout
    dump.unlink()
    assert "not there" in make("pg-backup-verify", BACKUP_DIR=str(target)).stdout


def test_configuration_backup_wal_and_a_moment(make: Makes) -> None:
    make.works("pg-backup-config")
    files = {one.name for one in make.made("config/*").iterdir()}
    assert {"postgresql.conf", "pg_hba.conf"} <= files
    assert "pg-basebackup" in make("pg-backup-wal").stderr
    make.works("pg-basebackup")
    with tarfile.open(make.made("basebackup/basebackup-*.tar.gz")) as tar:
        assert [one for one in tar.getnames() if one.endswith("basebackup/global/pg_control")]
    server, product = make.clinic.server, make.clinic.product
    server.sql("CREATE TABLE done AS SELECT 1 AS n")
    moment = server.value("SELECT clock_timestamp()::text || ''")
    server.sql("DROP TABLE done")
    make.works("pg-backup-wal")
    with tarfile.open(make.made("wal/wal-archive-*.tar.gz")) as tar:
        members = tar.getmembers()
    assert members and all(one.size == 1 << 20 for one in members)
    target = make.directory / "restored $here"
    product.copies.append(target)
    assert "TARGET_TIME" in make("pg-pitr").stderr
    assert make("pg-pitr", BASE_BACKUP="/x", TARGET_TIME=moment).returncode != 0
    assert make("pg-pitr", WAL_ARCHIVE="/nowhere", TARGET_TIME=moment, TARGET_DIR="x").returncode
    wal = str(make.made("wal/wal-archive-*.tar.gz"))
    make.works("pg-pitr", f"TARGET_TIME={moment}", TARGET_DIR=str(target), WAL_ARCHIVE=wal)
    copy = product.connected(target)
    assert copy.value("SELECT count(*) FROM done") == 1


def test_what_only_calls_a_command(make: Makes) -> None:
    assert make.clinic.product.cli("backup", "--yes").returncode == 0
    assert "archiver" in make.works("pg-archive-status")
    assert "parts were looked at" in make("pg-doctor").stdout
    make.works("pg-expire", DRY_RUN="yes")
    make.works("pg-expire")
    assert "result" in make.works("pg-drill")
    make.works("pg-replication-status")
    assert make("pg-promote-replica").returncode != 0
    assert "RESTORE.md" in make("pg-restore-full", BACKUP_DIR="/x", TARGET_DIR="/y").stderr
    assert "PRIMARY_URL" in make("pg-rebuild-replica").stderr


def test_everything_of_one_moment_goes_to_a_bucket(make: Makes, tmp_path: Path) -> None:
    with s3_server(tmp_path / "s3") as service:
        keys = {
            "AWS_ENDPOINT_URL": service.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }
        make.works("pg-backup-full", S3_BUCKET=BUCKET, **keys)
        made = make.made("full/postgresql-backup-*.tar.gz")
        settings = RepositorySettings(
            name="there", store="s3", bucket=BUCKET, prefix="postgresql/full",
            endpoint=service.endpoint, region="us-east-1", path_style=True, allow_http=True,
            access_key="env:AWS_ACCESS_KEY_ID", secret_key="env:AWS_SECRET_ACCESS_KEY",
        )  # fmt: skip
        store = open_store(settings, keys, is_anchored=False)
        assert store.read(made.name) == made.read_bytes()
    with tarfile.open(made) as tar:
        names = tar.getnames()
    for part in ("RESTORE.md", "basebackup/global/pg_control", "dumps/globals.sql", "wal/"):
        assert [one for one in names if part in one]
