"""Repositories that earlier versions made are listed, verified, restored and started by this one.

``freeze.py`` made them; see README.md beside it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.postgres.instance import running_postmaster
from pgrecall.postgres.tools import embedded_bin_directory
from pgrecall.system.processes import wait_until_gone
from tests.support.encryption import secret_file
from tests.support.product import reap

HERE = Path(__file__).parent
FROZEN = sorted(path.parent.name for path in HERE.glob("*/expected.json"))
KINDS = ("plain", "encrypted")


class Frozen:
    """One frozen repository, unpacked; ``expected`` is what its maker wrote down."""

    def __init__(self, name: str, kind: str, directory: Path) -> None:
        whole = json.loads((HERE / name / "expected.json").read_text(encoding="utf-8"))
        self.expected: dict[str, Any] = whole[kind]
        self.directory = directory
        self.repository = directory / "repository"
        with tarfile.open(HERE / name / f"{kind}.tar.xz") as archive:
            archive.extractall(self.repository, filter="data")
        keys = ""
        if kind == "encrypted":
            secret = secret_file(directory, whole["passphrase"])
            keys = f'encryption = "passphrase"\npassphrase = "file:{secret}"\n'
        self.config = directory / "pgrecall.toml"
        self.config.write_text(
            f'[servers.{whole["server"]}]\ndata_directory = "{directory}/never"\n'
            f'bin_directory = "{embedded_bin_directory()}"\n'
            f'[repositories.one]\npath = "{self.repository}"\n{keys}',
            encoding="utf-8",
        )

    def run(self, *words: str) -> dict[str, Any]:
        """What the program answers; it must end well."""
        done = subprocess.run(
            [*pgrecall_command(), "--config", str(self.config), *words, "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(params=[(name, kind) for name in FROZEN for kind in KINDS], ids="-".join)
def frozen(request: pytest.FixtureRequest, tmp_path: Path) -> Frozen:
    name, kind = request.param
    return Frozen(name, kind, tmp_path)


def test_a_format_is_frozen() -> None:
    assert FROZEN


def test_it_is_listed_verified_restored_and_started(frozen: Frozen) -> None:
    backups, expired = frozen.expected["backups"], frozen.expected["expired"]
    listed = frozen.run("backups", "list")["backups"]
    assert [one["backup_id"] for one in listed] == backups
    everything = frozen.run("backups", "list", "--expired")["backups"]
    assert sorted(one["backup_id"] for one in everything) == sorted(backups + expired)
    holds = frozen.run("holds")["holds"]
    assert [one["item_id"] for one in holds] == (backups[:1] if expired else [])

    verified = frozen.run("verify", "--full")
    assert verified["result"] == "ok", verified["findings"]
    found = frozen.run("recoverable")["generations"][0]["paths"][0]
    assert [one["backup_id"] for one in found["ranges"][0]["backups"]] == backups

    for number, backup_id in enumerate(backups):
        target = frozen.directory / f"restored{number}"
        try:
            frozen.run("restore", "--backup", backup_id, "--target-dir", str(target), "--start",
                       "--yes")  # fmt: skip
            assert _rows(target) == (frozen.expected["rows"], frozen.expected["sum"])
        finally:
            _end(target)


def _rows(pgdata: Path) -> tuple[int, int]:
    """Rows of the table and the sum of its numbers: those behind the last backup are among them."""
    lines = (pgdata / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    with psycopg.connect(
        host=lines[4], port=int(lines[3]), user="postgres", dbname="postgres"
    ) as connection:
        row = connection.execute("SELECT count(*), sum(n) FROM kept").fetchone()
        assert row is not None
        return row[0], row[1]


def _end(pgdata: Path) -> None:
    pid = running_postmaster(pgdata) if pgdata.exists() else None
    if pid is not None:
        os.kill(pid, signal.SIGQUIT)
        while running_postmaster(pgdata) == pid:
            reap(pid)
            wait_until_gone(pid, 0.02)
