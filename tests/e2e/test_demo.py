"""The demonstration: it proves what it says, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import pgrecall.cli.commands.demo as demo_command
from pgrecall.app.demo_report import DemoReport, Proof
from pgrecall.app.demo_workload import Known, compare
from pgrecall.cli.tree import run
from pgrecall.errors import CheckFailedError, InterruptedRunError, UsageError
from tests.support.demo import QUICK, DemoRun, assert_nothing_left, processes_of

KNOWN = Known(
    orders=10, orders_md5="a", orders_after_point=2, accounts=5, accounts_sum=7, history=3,
    history_sum=7,
)  # fmt: skip

# What the caller's shell says of other servers is of no concern here.
OF_OTHER_SERVERS = {
    "PGHOST": "/nowhere",
    "PGOPTIONS": "-c nonsense=1",
    "PGSERVICE": "none",
    "PGRECALL_CONFIG": "/nowhere",
    "PGRECALL_SERVERS__MAIN__PORT": "1",
}


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary directory with a short name, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        yield Path(name)


@pytest.fixture
def start(place: Path) -> Iterator[Any]:
    """``start(*arguments)`` starts a demonstration; all are ended with the test."""
    runs: list[DemoRun] = []

    def begin(*arguments: str) -> DemoRun:
        runs.append(DemoRun(place, *QUICK, *arguments))
        return runs[-1]

    yield begin
    for started in runs:
        started.kill()


def proven(report: dict[str, Any]) -> bool:
    return bool(report["proofs"]) and all(
        proof["known"] == proof["found"] for proof in report["proofs"]
    )


def test_it_tells_the_story_and_proves_it(place: Path, start: Any) -> None:
    told = start()
    assert told.wait() == 0, told.text
    lines = told.text.splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    for number in range(1, 10):
        assert any(line.startswith(f"{number}  ") for line in lines), told.text
    for command in ("init", "check", "backup", "restore"):
        assert f"$ pgrecall {command}" in told.text
    assert "recovery stopping before commit of transaction" in told.text
    assert "DIFFERS" not in told.text
    assert "Proven:" in told.text
    assert "RPO reached: 0 rows lost" in told.text
    assert_nothing_left(place)


def test_two_at_a_time_in_json(place: Path, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OF_OTHER_SERVERS.items():
        monkeypatch.setenv(name, value)
    both = [start("--json"), start("--json")]
    for told in both:
        assert told.wait() == 0, told.text
        report = json.loads(told.text)
        assert report["schema"] == "pgrecall/demo/1"
        assert report["is_proven"] is True
        assert proven(report)
        orders = next(proof for proof in report["proofs"] if proof["what"] == "orders: rows")
        assert orders["found"] == "20,500"
        assert report["loss"]["rows"] == 0
        assert report["times"]["rto_seconds"] > report["times"]["recovery_seconds"] > 0
        assert report["sizes"]["backup_stored_bytes"] < report["sizes"]["backup_raw_bytes"]
        assert report["kept"] is None
    assert_nothing_left(place)


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (r"^1  ", signal.SIGINT),
        (r"^2  ", signal.SIGTERM),
        pytest.param(r"pgrecall init", signal.SIGINT, marks=pytest.mark.slow),
        (r"^4  ", signal.SIGTERM),
        pytest.param(r"^5  ", signal.SIGINT, marks=pytest.mark.slow),
        (r"segment with the accident", signal.SIGTERM),
        pytest.param(r"^8  ", signal.SIGINT, marks=pytest.mark.slow),
    ],
    ids=["initdb", "load", "restart", "backup", "writes", "restore", "proof"],
)
def test_interrupted_it_leaves_nothing(
    place: Path, start: Any, line: str, number: signal.Signals
) -> None:
    told = start()
    told.wait_for(line)
    assert told.end(number) == InterruptedRunError.exit_status, told.text
    assert number.name in told.text
    assert_nothing_left(place)


def test_kept_it_can_be_looked_at_and_ended(place: Path, start: Any) -> None:
    directory = place / "kept"
    told = start("--json", "--keep", "--directory", str(directory))
    try:
        assert told.wait() == 0, told.text
        kept = json.loads(told.text)["kept"]
        for name, orders in (("connect_to_restored", "20500"), ("connect_to_server", "")):
            answer = ask(kept[name], "SELECT count(*) FROM orders")
            assert answer.stdout.strip() == orders, answer
        assert archives(kept["connect_to_server"]) == "on"
        assert archives(kept["connect_to_restored"]) == "off"
    finally:
        for pgdata in ("server", "restored"):
            if (directory / pgdata / "postmaster.pid").exists():
                line = next(line for line in kept["stop"] if line.endswith(f"/{pgdata}"))
                subprocess.run(line, shell=True, check=True, capture_output=True)
        assert processes_of(directory) == []
        subprocess.run(kept["remove"], shell=True, check=True)
    assert_nothing_left(place)


def ask(connect: str, query: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        f'{connect} -X -A -t -c "{query}"', shell=True, capture_output=True, text=True, check=False
    )


def archives(connect: str) -> str:
    return ask(connect, "SHOW archive_mode").stdout.strip()


def test_a_directory_with_something_in_it_is_refused(place: Path, start: Any) -> None:
    precious = place / "full" / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    told = start("--directory", str(precious.parent))
    assert told.wait() == UsageError.exit_status
    assert "is not empty" in told.text
    assert precious.read_text() == "mine"


def test_an_empty_directory_is_used_and_left_empty(place: Path, start: Any) -> None:
    directory = place / "empty"
    directory.mkdir()
    told = start("--directory", str(directory))
    told.wait_for(r"^2  ")
    assert (directory / "server" / "PG_VERSION").exists()
    told.end(signal.SIGINT)
    assert list(directory.iterdir()) == []
    directory.rmdir()
    assert_nothing_left(place)


# --- what it says when the proof fails ------------------------------------------------


def test_what_differs_is_found() -> None:
    assert all(proof.is_proven for proof in compare(KNOWN, KNOWN))
    for name in KNOWN.__struct_fields__:
        other = msgspec.structs.replace(KNOWN, **{name: "x" if name == "orders_md5" else 999})
        assert not all(proof.is_proven for proof in compare(KNOWN, other)), name
    assert [proof.is_proven for proof in compare(KNOWN, None)] == [False]


def test_a_failed_proof_is_a_failed_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = failed_report()
    monkeypatch.setattr(demo_command, "is_needed", lambda: False)
    monkeypatch.setattr(demo_command, "run_demo", lambda *arguments: report)
    before = dict(os.environ)
    try:
        assert run(["demo"]) == CheckFailedError.exit_status
        assert "DIFFERS" in capsys.readouterr().out
        assert run(["demo", "--json"]) == CheckFailedError.exit_status
        assert json.loads(capsys.readouterr().out)["is_proven"] is False
    finally:
        os.environ.update(before)


def failed_report() -> DemoReport:
    return msgspec.convert(
        {
            "is_proven": False, "version": "18.6", "accident_xid": 700, "stopped": "",
            "proofs": [msgspec.to_builtins(Proof("orders: rows", "10", "no such table"))],
            "sizes": {
                "backup_files": 1, "backup_raw_bytes": 1, "backup_stored_bytes": 1,
                "backup_seconds": 1, "wal_segments": 1, "wal_raw_bytes": 1,
                "wal_stored_bytes": 1,
            },
            "times": {
                "load_seconds": 1, "archive_seconds": 1, "restore_seconds": 1,
                "recovery_seconds": 1, "rto_seconds": 1,
            },
            "loss": {
                "rows": 10, "last_commit_at": None, "accident_at": "2026-11-22T20:16:37Z",
                "margin_seconds": 0,
            },
        },
        DemoReport,
    )  # fmt: skip
