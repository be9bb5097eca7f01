"""Every run that matters leaves a record, and the journal never costs a run anything."""

from __future__ import annotations

import json
import os
import pwd
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pgrecall.errors import ConfirmationError, RepositoryError, StoreAbsentError
from pgrecall.further_errors import RunsBrokenError
from pgrecall.model.runs import RUN_ID_VARIABLE, TRIGGER_VARIABLE, RunRecord, Trigger
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.journal import Journal
from pgrecall.store.opening import open_store
from tests.support.postgresql import SUPERUSER, ServerFactory
from tests.support.product import SERVER, Product


@pytest.fixture
def product(pg_factory: ServerFactory, tmp_path: Path) -> Product:
    return Product.start(pg_factory, tmp_path)


def records(product: Product) -> list[RunRecord]:
    found, findings = Journal(open_store(product.repository, {}), SERVER).runs(
        datetime.now(UTC) - timedelta(days=1)
    )
    assert findings == []
    return found


def told(product: Product, *words: str) -> Any:
    return json.loads(product.cli(*words, "--json").stdout)


def test_runs_are_kept_with_what_they_came_to(product: Product, tmp_path: Path) -> None:
    assert product.cli("backup", "--dry-run").returncode == 0
    assert product.cli("backups", "list").returncode == 0
    assert product.cli("server", "upgrade", "--yes").returncode == 0
    first = records(product)
    assert [one.command for one in first] == ["server upgrade"]
    unconfirmed = product.cli("wal", "enable", "--role", "x" * 9, "--replace")
    assert unconfirmed.returncode == ConfirmationError.exit_status, unconfirmed.stderr
    assert records(product) == first
    assert product.cli("backup").returncode == 0
    assert product.cli("check", "--no-switch").returncode == 0
    target = tmp_path / "restored"
    product.copies.append(target)
    assert product.cli("restore", "--target-dir", str(target), "--start").returncode == 0
    backup, check, restore = records(product)[1:]
    assert [one.command for one in (backup, check, restore)] == ["backup", "check", "restore"]
    assert {one.trigger.by for one in (backup, check, restore)} == {"user"}
    assert backup.outcome == "ok"
    assert backup.backup_id == restore.backup_id
    assert backup.raw_bytes > backup.stored_bytes > 0
    assert backup.rto_seconds is None
    assert restore.rto_seconds is not None
    assert 0 < restore.rto_seconds <= restore.duration_seconds
    product.close()


def test_the_trail_is_listed_shown_and_proven(product: Product, tmp_path: Path) -> None:
    first = product.backup()
    assert first.run_heads == ()
    assert product.cli("wal", "switch").returncode == 0
    (listed,) = told(product, "runs", "list", "--command", "wal switch")["runs"]
    assert (listed["outcome"], listed["host"]) == ("ok", socket.gethostname())
    assert listed["user"] == pwd.getpwuid(os.geteuid()).pw_name
    assert product.cli("check", "--no-switch").returncode == 0
    assert told(product, "runs", "list", "--outcome", "fail")["runs"] == []
    check = records(product)[-1]
    shown = told(product, "runs", "show", check.run_id)["run"]
    assert (shown["command"], shown["role"]) == ("check", SUPERUSER)
    assert shown["pid"] > 0
    assert {one["code"] for one in shown["findings"]} > {"rights", "repository"}
    held = product.cli("hold", "add", first.backup_id, "--reason", "case 4711")
    assert held.returncode == 0, held.stderr
    assert records(product)[-1].plan["reason"] == "case 4711"

    proof = told(product, "runs", "verify")
    assert (proof["result"], proof["records"], proof["findings"]) == ("ok", 3, [])
    assert product.cli("backup").returncode == 0
    assert records(product)[-1].plan["server"] == SERVER
    (signed,) = {
        head
        for one in Catalog(open_store(product.repository, {}), SERVER).complete()
        for head in one.run_heads
    }
    assert (signed.writer, signed.sequence) == (socket.gethostname(), 3)
    for sequence, record in ((3, records(product)[2]), (4, records(product)[3])):
        product.path_of(
            layout.chain_key(SERVER, first.repository_id, socket.gethostname(), sequence)
        ).unlink()
        product.path_of(layout.run_key(SERVER, record.run_id)).unlink()
    cut = product.cli("runs", "verify")
    assert cut.returncode == RunsBrokenError.exit_status
    assert f"{socket.gethostname()}/3: is missing: the chain was cut off" in cut.stdout
    unknown = product.cli("runs", "show", "r-20261122T201637Z-7k3q")
    assert unknown.returncode == RepositoryError.exit_status
    Path(product.repository.path).rename(tmp_path / "away")
    assert product.cli("runs", "list").returncode == StoreAbsentError.exit_status
    assert product.cli("runs", "verify").returncode == RunsBrokenError.exit_status


def test_failures_are_kept_with_their_error(product: Product) -> None:
    product.server.configure(archive_command="false")
    product.server.reload()
    failed = product.cli("check", "--json")
    product.server.stop()
    unreachable = product.cli("backup")
    check, backup = records(product)
    assert (check.outcome, check.error_code, check.exit_status) == (
        "fail", "check-failed", failed.returncode,
    )  # fmt: skip
    assert (backup.outcome, backup.error_code) == ("fail", "postgres-unreachable")
    assert backup.exit_status == unreachable.returncode
    assert "cannot connect" in backup.message


def test_the_schedule_names_its_runs(product: Product) -> None:
    run_id = "r-20261122T201637Z-7k3q"
    trigger = Trigger("schedule", datetime(2026, 11, 22, 20, tzinfo=UTC), True, 2)
    environment = {
        RUN_ID_VARIABLE: run_id,
        TRIGGER_VARIABLE: msgspec.json.encode(trigger).decode(),
    }
    assert product.cli("check", "--no-switch", environment=environment).returncode == 0
    data = product.path_of(layout.run_key(SERVER, run_id)).read_bytes()
    assert b'"missed":2' in data
    # The same identity twice: the first record stays, the run is none the worse.
    again = product.cli("check", "--no-switch", environment=environment)
    assert again.returncode == 0
    assert "has a run of this identity already" in again.stderr
    assert product.path_of(layout.run_key(SERVER, run_id)).read_bytes() == data


def test_a_journal_that_cannot_be_written_only_warns(product: Product) -> None:
    runs = Path(product.repository.path, layout.runs_prefix(SERVER).rstrip("/"))
    runs.write_text("a file where the directory belongs")
    done = product.cli("backup")
    assert done.returncode == 0, done.stderr
    assert "the run is not in the journal" in done.stderr
