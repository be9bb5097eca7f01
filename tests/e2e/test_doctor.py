"""``doctor`` on a real server that is ill: each trouble is provoked, and some are mended."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.clinic import Clinic, opened_clinic
from tests.support.postgresql import Installation, Templates
from tests.support.shifted_clock import ShiftedClock


@pytest.fixture(scope="module")
def clinic(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Clinic]:
    with opened_clinic(
        pg_templates, installations[18], tmp_path_factory, checksums=False, fsync="off"
    ) as clinic:
        yield clinic


def test_safety_is_off_and_comes_back_by_what_is_typed(clinic: Clinic) -> None:
    clinic.alter(full_page_writes="off", archive_command="cp %p /nowhere/%f")
    found = clinic.find()
    assert found["archive-command-wrong"]["severity"] == "fail"
    assert found["archive-command-wrong"]["issue"] == 2
    assert found["full-page-writes-off"]["severity"] == "fail"
    assert found["fsync-off"]["severity"] == "warn"
    assert found["backup-none"]["severity"] == "fail"
    for code in ("full-page-writes-off", "fsync-off", "archive-command-wrong"):
        clinic.type(found[code])
    mended = clinic.find()
    assert not {"full-page-writes-off", "fsync-off", "archive-command-wrong"} & mended.keys()
    clinic.type(mended["backup-none"])
    assert "backup-none" not in clinic.find()
    for_people = clinic.product.cli("doctor").stdout
    assert "type:" in for_people
    assert "parts were looked at" in for_people
    clinic.reset("fsync", "full_page_writes")


def test_archiving_is_off(clinic: Clinic) -> None:
    clinic.server.sql("ALTER SYSTEM SET archive_mode = off")
    clinic.server.sql("ALTER SYSTEM SET wal_level = minimal")
    clinic.server.sql("ALTER SYSTEM SET max_wal_senders = 0")
    clinic.server.restart()
    found = clinic.find()
    assert found["archiving-off"]["severity"] == "fail"
    assert found["wal-level-minimal"]["severity"] == "fail"
    clinic.server.sql("ALTER SYSTEM RESET max_wal_senders")
    clinic.type(found["wal-level-minimal"])
    clinic.type(clinic.find()["archiving-off"])
    assert not {"archiving-off", "wal-level-minimal"} & clinic.find().keys()
    clinic.product.end(clinic.server.pgdata)
    clinic.server.start()


def test_archiving_fails_and_what_waits(clinic: Clinic) -> None:
    right = clinic.server.value("SHOW archive_command")
    clinic.alter(archive_command="/bin/false %p")
    clinic.server.sql("SELECT pg_logical_emit_message(true, 'test', 'x'), pg_switch_wal()")
    clinic.server.wait_until(
        lambda: clinic.server.value(
            "SELECT last_failed_time > coalesce(last_archived_time, '-infinity')"
            " FROM pg_stat_archiver"
        )
    )
    status = clinic.server.pgdata / "pg_wal" / "archive_status"
    (waiting,) = list(status.glob("*.ready"))[:1]
    os.utime(waiting, (time.time() - 1000, time.time() - 1000))
    found = clinic.find()
    assert found["archiving-fails"]["severity"] == "fail"
    assert any("archive_command fails" in line for line in found["archiving-fails"]["evidence"])
    assert found["archive-behind"]["severity"] == "fail"
    clinic.alter(archive_command=right.replace("'", "''"))
    clinic.type(found["archiving-fails"], "--repository", "one")
    assert not {"archiving-fails", "archive-behind"} & clinic.find().keys()


def test_slots_keep_wal_and_lose_it(clinic: Clinic) -> None:
    server = clinic.server
    server.sql("SELECT pg_create_physical_replication_slot('forgotten', true)")
    found = clinic.find()
    assert found["slot-keeps-wal"]["subject"] == "forgotten"
    assert "forgotten keeps" in found["slots-unbounded"]["evidence"][0]
    clinic.type(found["slot-keeps-wal"], "--yes")
    assert not {"slot-keeps-wal", "slots-unbounded"} & clinic.find().keys()
    assert server.value("SHOW max_slot_wal_keep_size") == "10GB"
    clinic.alter(max_slot_wal_keep_size="1MB")
    server.sql("SELECT pg_create_physical_replication_slot('starved', true)")
    for _ in range(12):
        clinic.product.switch()
    server.sql("CHECKPOINT")
    lost = clinic.find()["slot-lost"]
    assert (lost["subject"], lost["issue"]) == ("starved", 5)
    clinic.type(lost, "--yes")
    assert "slot-lost" not in clinic.find()
    clinic.reset("max_slot_wal_keep_size")


def test_rights_are_missing(clinic: Clinic) -> None:
    server = clinic.server
    server.sql("CREATE ROLE weak LOGIN")
    with clinic.configured(user='"weak"'):
        found = clinic.find()
        assert found["rights-missing"]["issue"] == 7
        for _ in range(6):  # one of each right
            if "rights-missing" not in found:
                break
            clinic.type(found["rights-missing"])
            found = clinic.find()
        assert "rights-missing" not in found
    server.sql("DROP OWNED BY weak; DROP ROLE weak")


def test_a_standby_that_does_not_archive(clinic: Clinic, tmp_path: Path) -> None:
    receiver = subprocess.Popen(
        [clinic.server.installation.program("pg_receivewal"), *clinic.server.client_options(),
         "-D", str(tmp_path), "--no-loop"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        clinic.server.wait_until(
            lambda: clinic.server.value("SELECT count(*) FROM pg_stat_replication")
        )
        assert clinic.find()["standby-hole"]["severity"] == "warn"
    finally:
        receiver.terminate()
        receiver.wait()


def test_disks_clocks_agents_and_targets(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = clinic.find("--least-free", "100")
    assert "PGDATA and pg_wal" in found["disk-filling"]["evidence"][0]
    assert "disk-filling" not in clinic.find("--least-free", "0")
    targets = "[targets]\nbackup_age_seconds = 0.001\nrpo_seconds = 0.001\nrto_seconds = 1\n"
    targets += 'drill_age_seconds = 0.001\n[schedule]\nbackup = "0 3 1 1 *"\n'
    clinic.server.sql("CREATE TABLE work AS SELECT 1 AS n")
    with clinic.configured(targets):
        found = clinic.find()
    assert {"backup-old", "rpo-missed", "rto-not-measured", "drill-old", "agent-down"} <= set(found)
    with monkeypatch.context() as patched:
        clock = ShiftedClock(tmp_path, patched)
        clock.jump(timedelta(seconds=30))
        assert clinic.find()["clock-skew"]["severity"] == "warn"
        clock.jump(timedelta(hours=1))
        assert clinic.find()["clock-skew"]["severity"] == "fail"


def test_runs_that_failed_or_were_left_out_and_a_secret(clinic: Clinic, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    with clinic.configured(user=f'"postgres"\npassword = "file:{secret}"'):
        found = clinic.find()
    assert found["other"]["evidence"][0].startswith("secret-readable:")
    missed = {"PGRECALL_TRIGGER": '{"by": "schedule", "missed": 3}'}
    assert clinic.product.cli("backup", "--yes", environment=missed).returncode == 0
    assert clinic.find()["schedule-missed"]["subject"] == "backup"
    with clinic.configured(data_directory=f'"{tmp_path}"'):
        assert clinic.product.cli("backup", "--yes").returncode != 0
    failed = clinic.find()["run-failed"]
    assert failed["subject"] in failed["commands"][0]
    clinic.type(failed)


def test_a_directory_and_a_repository_of_another(clinic: Clinic, tmp_path: Path) -> None:
    with clinic.configured(data_directory=f'"{tmp_path}"'):
        found = clinic.find()
    assert found["data-directory-unreadable"]["severity"] == "fail"
    server = clinic.server
    other = f'[servers.other]\nhost = "{server.host}"\nport = {server.port}\nuser = "postgres"\n'
    with clinic.configured(other):
        assert clinic.find("--server", "other")["archive-of-another"]["severity"] == "fail"


def test_a_recovery_that_cannot_work(clinic: Clinic, tmp_path: Path) -> None:
    target = tmp_path / "restored copy"
    clinic.product.backup()
    clinic.product.restore(target)
    words = ("--target-dir", str(target))
    assert "restore-command-wrong" not in clinic.find(*words)
    conf = target / "postgresql.auto.conf"
    before = conf.read_text()
    for wrong in ("cp /archive/%f %p", "/nowhere/pgrecall wal fetch %f %p", ""):
        conf.write_text(before + f"restore_command = '{wrong}'\n")
        found = clinic.find(*words)
        assert found["restore-command-wrong"]["issue"] == 3, wrong
        clinic.type(found["restore-command-wrong"])
        assert "restore-command-wrong" not in clinic.find(*words)
    (target / "postgresql.conf").write_text("this = 'is' no configuration\n")
    unseen = clinic.find(*words)["not-looked-at"]
    assert "cannot be read" in unseen["evidence"][0]


def test_checksums_are_enabled_and_a_server_that_is_down_is_started(clinic: Clinic) -> None:
    server = clinic.server
    clinic.type(clinic.find()["checksums-off"])
    assert "checksums-off" not in clinic.find()
    clinic.product.end(server.pgdata)
    found = clinic.find()
    assert found["server-unreachable"]["severity"] == "fail"
    assert "not-looked-at" not in found
    clinic.type(found["server-unreachable"])
    assert "server-unreachable" not in clinic.find()


def test_everything_is_broken_and_nothing_crashes(clinic: Clinic) -> None:
    repository = Path(clinic.product.repository.path)
    repository.rename(repository.with_name("elsewhere"))
    try:
        found = clinic.find()
        assert found["repository-unreachable"]["severity"] == "fail"
        clinic.product.end(clinic.server.pgdata)
        with clinic.configured(data_directory='"/nowhere"'):
            found = clinic.find()
        wanted = {"server-unreachable", "repository-unreachable", "data-directory-unreadable"}
        assert wanted <= found.keys()
        for_people = clinic.product.cli("doctor").stdout
        assert "not looked at: server" in for_people
    finally:
        repository.with_name("elsewhere").rename(repository)
