"""``restore.on_fetch_error``: a recovery that waits for its store, and one that stops."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pgrecall.errors import EXIT_PROVEN_ABSENT
from tests.support.archive_scene import Archive

RETRY = '[restore]\non_fetch_error = "retry"\n'


def make(tmp_path: Path, more: str = "") -> Archive:
    archive = Archive(tmp_path)
    archive.write_config(more)
    assert archive.push_it().returncode == 0
    (tmp_path / "one").rename(tmp_path / "away")
    return archive


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_by_default_an_outage_ends_the_fetch_at_once(tmp_path: Path) -> None:
    archive = make(tmp_path)
    assert archive.fetch_it().returncode not in (0, 1, EXIT_PROVEN_ABSENT)
    assert not archive.delivered.exists()


def test_told_to_retry_it_waits_for_the_store(tmp_path: Path) -> None:
    archive = make(tmp_path, RETRY)
    process = archive.start("wal", "fetch", archive.name, "pg_wal/RECOVERYXLOG")
    try:
        assert "trying again" in first_line(process)
        (tmp_path / "away").rename(tmp_path / "one")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    assert archive.delivered.read_bytes() == archive.content


def test_what_is_proven_absent_is_not_waited_for(tmp_path: Path) -> None:
    archive = make(tmp_path, RETRY)
    (tmp_path / "away").rename(tmp_path / "one")
    assert archive.fetch_it("0000000100000000000000FF").returncode == EXIT_PROVEN_ABSENT


def test_the_operator_ends_it(tmp_path: Path) -> None:
    archive = make(tmp_path, RETRY)
    process = archive.start("wal", "fetch", archive.name, "pg_wal/RECOVERYXLOG")
    try:
        assert "trying again" in first_line(process)
        process.terminate()
        assert process.wait(60) not in (0, 1, EXIT_PROVEN_ABSENT)
    finally:
        process.kill()
        process.communicate()


def test_a_standby_is_answered_at_once(tmp_path: Path) -> None:
    archive = make(tmp_path, RETRY)
    (archive.pgdata / "standby.signal").touch()
    assert archive.fetch_it().returncode not in (0, 1, EXIT_PROVEN_ABSENT)
