"""``recoverable`` as a user types it, beside ``restore --dry-run``."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pgrecall.errors import StoreAbsentError, TargetUnreachableError, UsageError
from pgrecall.model.targets import parse_time
from tests.e2e.command_line import CommandLine, Outcome, Scene
from tests.support.json_schema import require_valid
from tests.support.postgresql import ServerFactory

NO = TargetUnreachableError.exit_status


@pytest.fixture
def scene(capsys: pytest.CaptureFixture[str], pg_factory: ServerFactory, tmp_path: Path) -> Scene:
    server = pg_factory(segment_mib=1, autovacuum="off")
    cli = CommandLine(capsys, tmp_path / "pgrecall.toml", "main")
    scene = Scene(cli, server, tmp_path / "repository")
    server.sql("CREATE TABLE t (at timestamptz DEFAULT clock_timestamp())")
    return scene


def write(scene: Scene, count: int = 5) -> datetime:
    """Commit so many rows; when the last was about to be."""
    for _ in range(count):
        scene.server.sql("INSERT INTO t DEFAULT VALUES")
    at = scene.server.value("SELECT max(at) FROM t")
    assert isinstance(at, datetime)
    return at


def switch(scene: Scene) -> str:
    return str(scene.cli("wal", "switch", "--json").document["segment"])


def back_up(scene: Scene) -> str:
    return str(scene.cli("backup", "--json").document["backup"]["backup_id"])


def ranges(scene: Scene, status: int = 0) -> dict[str, Any]:
    outcome = scene.cli("recoverable", "--json")
    assert outcome.status == status, outcome
    require_valid(outcome.document)
    return outcome.document


def dry_run(scene: Scene, tmp_path: Path, *target: str) -> Outcome:
    copy = str(tmp_path / "nowhere")
    return scene.cli("restore", *target, "--target-dir", copy, "--dry-run", "--json")


def object_of(scene: Scene, segment: str) -> Path:
    (found,) = scene.repository.rglob(segment)
    return found


def test_yes_no_and_the_plan_of_a_restore_agree(scene: Scene, tmp_path: Path) -> None:
    first = back_up(scene)
    began = write(scene)
    switch(scene)
    write(scene)
    lost = switch(scene)
    write(scene)
    switch(scene)
    second = back_up(scene)
    ended = write(scene)
    switch(scene)
    object_of(scene, lost).unlink()

    chance = random.Random(began.microsecond)
    span = (ended - began) + timedelta(seconds=2)
    verdicts = set()
    for _ in range(25):
        at = str(began - timedelta(seconds=1) + span * chance.random())
        said = scene.cli("recoverable", "--at", at, "--json")
        require_valid(said.document)
        answer = said.document["answer"]
        planned = dry_run(scene, tmp_path, "--to-time", at)
        assert (said.status, planned.status) in {(0, 0), (NO, NO)}, (at, said, planned)
        verdicts.add(answer["is_reachable"])
        if answer["is_reachable"]:
            plan = planned.document["plan"]
            assert answer["backup_id"] == plan["backup_id"]
            assert answer["segments"] == plan["wal_segments"] == len(answer["segment_names"])
            assert answer["wal_bytes"] == plan["wal_bytes"]
            assert answer["stops_at_lsn"] == plan["stops_at_lsn"]
            assert lost not in answer["segment_names"]
        else:
            assert answer["reason"]
    assert verdicts == {True, False}

    (generation,) = ranges(scene)["generations"]
    (path,) = generation["paths"]
    found = [[mark["backup_id"] for mark in one["backups"]] for one in path["ranges"]]
    assert found == [[first], [second]]
    people = scene.cli("recoverable")
    assert people.status == 0
    assert "newest moment" in people.out
    assert any(line.split()[1:3] == ["missing", lost] for line in people.out.splitlines()[1:])
    assert "timeline 1" in people.out
    assert "░" in people.out or "." in people.out
    refused = scene.cli("recoverable", "--at", str(began - timedelta(days=1)))
    assert refused.status == NO
    assert refused.out.startswith("no, because ")
    granted = scene.cli("recoverable", "--at", str(ended))
    assert granted.out.startswith("yes: ")
    assert "pgrecall restore --to-time" in granted.out


def test_wal_that_ends_inside_a_segment_is_a_gap_for_both(scene: Scene, tmp_path: Path) -> None:
    back_up(scene)
    before = write(scene)
    switch(scene)
    write(scene)
    current = str(scene.server.value("SELECT pg_walfile_name(pg_current_wal_lsn())"))
    half = int(scene.server.value("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")) % (1 << 20)
    after = write(scene)
    switch(scene)
    write(scene)
    switch(scene)
    stored = object_of(scene, current)
    raw = tmp_path / current
    assert scene.cli("wal", "fetch", current, str(raw)).status == 0
    stored.unlink()
    content = bytearray(raw.read_bytes())
    content[half + 200 : half + 300] = b"\xff" * 100
    raw.write_bytes(content)
    pushed = scene.cli("wal", "push", str(raw))
    assert pushed.status == 0, pushed

    (gap,) = ranges(scene)["generations"][0]["paths"][0]["gaps"]
    assert (gap["cause"], gap["first_missing"]) == ("damaged", current)
    assert scene.cli("recoverable", "--at", str(before)).status == 0
    assert dry_run(scene, tmp_path, "--to-time", str(before)).status == 0
    # Behind it recovery would end, and promote without a word.
    late = str(after + timedelta(seconds=1))
    assert scene.cli("recoverable", "--at", late).status == NO
    refused = dry_run(scene, tmp_path)
    assert refused.status == NO
    assert current in refused.document["error"]["message"]
    assert dry_run(scene, tmp_path, "--to-time", late).status == NO


def test_nothing_and_an_outage_are_different(scene: Scene) -> None:
    document = ranges(scene, NO)
    assert document["newest_at"] is None
    assert {finding["code"] for finding in document["findings"]} == {"backup-none"}
    scene.repository.rename(scene.repository.with_name("away"))
    assert scene.cli("recoverable").status == StoreAbsentError.exit_status


def test_new_wal_moves_the_newest_moment(scene: Scene) -> None:
    back_up(scene)
    first = ranges(scene)
    at = write(scene)
    switch(scene)
    second = ranges(scene)
    newest = parse_time(second["newest_at"])
    assert parse_time(first["newest_at"]) < at
    assert timedelta(0) <= newest - at < timedelta(seconds=5)


@pytest.mark.parametrize(
    "words",
    [
        ("--at", "2026-11-22 10:00:00"),
        ("--at", "yesterday"),
        ("--at-lsn", "x"),
        ("--at-lsn", "0/1", "--at-xid", "7"),
        ("--exclusive",),
        ("--at-name", "x", "--exclusive"),
        ("--timeline", "1"),
    ],
)
def test_what_makes_no_sense_is_refused(scene: Scene, words: tuple[str, ...]) -> None:
    assert scene.cli("recoverable", *words).status == UsageError.exit_status
