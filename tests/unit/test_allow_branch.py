"""``wal allow-branch``: the records of branches that may go on, and who writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pgrecall.cli.entry import main
from pgrecall.errors import (
    BranchNotLeftError,
    ConfirmationError,
    CorruptObjectError,
    RepositoryError,
    StoreAbsentError,
    UsageError,
)
from pgrecall.model.forks import Fork
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import history_name
from pgrecall.repository import layout
from pgrecall.repository.branches import (
    allowed_forks,
    archived_timelines,
    branch_records,
    read_branch,
    record_branch,
)
from pgrecall.repository.records import encode_record
from pgrecall.store.memory import MemoryStore
from tests.support.json_schema import require_valid
from tests.support.wal_scene import NOW, Scene

AT = Lsn(0x380000)


def test_records_of_branches_come_back_and_are_written_once() -> None:
    store = MemoryStore()
    forks = [Fork(1, 2, AT), Fork(1, 4, Lsn(AT + 8))]
    for fork in (*forks, forks[0]):
        record_branch(store, "shop 'ü'", 2, fork, ("zwei wären einer zu viel", NOW))
    found = branch_records(store, "shop 'ü'", 2)
    assert [(branch.number, branch.fork) for branch in found] == [(1, forks[0]), (2, forks[1])]
    assert (found[0].reason, found[0].said_at) == ("zwei wären einer zu viel", NOW)
    assert branch_records(store, "shop 'ü'", 1) == []


def test_the_newest_record_of_a_fork_counts() -> None:
    store = MemoryStore()
    one, other = Fork(1, 2, AT), Fork(1, 4, Lsn(AT + 8))

    def say(fork: Fork, *, is_allowed: bool) -> int | None:
        record = record_branch(store, "main", 1, fork, ("", NOW), is_allowed=is_allowed)
        return None if record is None else record.number

    def allowed() -> set[Fork]:
        return allowed_forks(branch_records(store, "main", 1))

    assert say(one, is_allowed=False) is None, "nothing had allowed it"
    assert [say(fork, is_allowed=True) for fork in (one, other)] == [1, 2]
    assert say(one, is_allowed=False) == 3
    assert allowed() == {other}
    assert say(one, is_allowed=False) is None
    assert say(one, is_allowed=True) == 4
    assert allowed() == {one, other}


def test_who_knows_no_revocation_does_not_take_one_for_leave() -> None:
    store = MemoryStore()
    for is_allowed in (True, False):
        record_branch(store, "main", 1, Fork(1, 2, AT), ("", NOW), is_allowed=is_allowed)
    stored = json.loads(store.read(layout.branch_key("main", 1, 2)))
    assert "allowed_at" not in stored, "an older pgrecall finds no field that it needs, and fails"


@pytest.mark.parametrize(
    "fields",
    [
        {"number": 2},
        {"number": 1, "timeline": 1},
        {
            "number": 1,
            "timeline": 1,
            "left_by": 2,
            "left_at": "nowhere",
            "reason": "",
            "allowed_at": "2026-11-22T20:16:37Z",
        },
    ],
)
def test_a_damaged_record_allows_nothing(fields: dict[str, object]) -> None:
    store = MemoryStore()
    store.put(layout.branch_key("main", 1, 1), [encode_record(fields)])
    with pytest.raises(CorruptObjectError):
        read_branch(store, "main", 1, 1)


def test_timelines_are_told_by_their_directories_alone() -> None:
    store = MemoryStore()
    for name in ("00000001/x", "0000000A/x", "tails/x", "gaps/x", "0000000b/x", "00000003"):
        store.put(layout.wal_prefix("main", 1) + name, [b""])
    assert archived_timelines(store, "main", 1) == [1, 10]


# --- the command --------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Two required repositories and one of best effort; timeline 2 has left timeline 1."""
    scene = Scene(tmp_path, roles=("required", "required", "best-effort"))
    tables = "".join(
        f'[repositories.{name}]\nstore = "local"\npath = {json.dumps(repository.path)}\n'
        f'role = "{repository.role}"\nretries = 0\n'
        for name, repository in scene.settings.repositories.items()
    )
    config = tmp_path / "pgrecall.toml"
    config.write_text(f'[servers.main]\ndata_directory = "{scene.pgdata}"\n{tables}')
    monkeypatch.setenv("PGRECALL_CONFIG", str(config))
    scene.push_new(history_name(2), f"1\t{AT}\tno target\n".encode())
    return scene


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Status and document of ``wal allow-branch``, held to its schema."""
    capsys.readouterr()
    status = main(["wal", "allow-branch", *words, "--json"])
    document = json.loads(capsys.readouterr().out)
    require_valid(document)
    return status, document


def recorded(scene: Scene) -> dict[str, list[tuple[int, Fork, str]]]:
    return {
        name: [
            (branch.number, branch.fork, branch.reason)
            for branch in branch_records(scene.store(name), "main", 1)
        ]
        for name in scene.settings.repositories
    }


def test_it_is_recorded_in_every_required_repository(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing: dict[str, list[object]] = {"one": [], "two": [], "three": []}
    status, document = said(capsys, "1", "--dry-run")
    assert (status, document["outcome"]) == (0, "nothing was changed")
    planned = {"left_by": 2, "left_at": str(AT), "allows": ["one", "two"], "revokes": []}
    assert document["plan"]["forks"] == [planned]
    status, document = said(capsys, "1")
    assert status == ConfirmationError.exit_status
    assert recorded(scene) == nothing
    status, document = said(capsys, "1", "--reason", "zweimal befördert", "--yes")
    assert (status, document["recorded"]) == (0, {"one": [1], "two": [1]})
    written = [(1, Fork(1, 2, AT), "zweimal befördert")]
    assert recorded(scene) == {"one": written, "two": written, "three": []}
    # Again: nothing to do, and nobody is asked. Then one that comes later.
    status, document = said(capsys, "1")
    assert (status, document["outcome"]) == (0, "nothing to do: recorded already")
    scene.push_new(history_name(4), f"1\t{Lsn(AT + 8)}\n".encode())
    status, document = said(capsys, "1", "--yes")
    assert document["recorded"] == {"one": [2], "two": [2]}
    assert recorded(scene)["one"][1:] == [(2, Fork(1, 4, Lsn(AT + 8)), "")]


def test_it_is_taken_back_where_it_was_allowed(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    status, document = said(capsys, "1", "--revoke")
    assert (status, document["outcome"]) == (0, "nothing to do: nothing allows it")
    assert said(capsys, "1", "--yes")[0] == 0
    status, document = said(capsys, "1", "--revoke", "--dry-run")
    (planned,) = document["plan"]["forks"]
    assert (planned["allows"], planned["revokes"]) == ([], ["one", "two"])
    assert said(capsys, "1", "--revoke")[0] == ConfirmationError.exit_status
    status, document = said(capsys, "1", "--revoke", "--reason", "doch nicht", "--yes")
    assert (status, document["outcome"]) == (0, "revoked")
    assert document["recorded"] == {"one": [2], "two": [2]}
    assert recorded(scene)["two"][1:] == [(2, Fork(1, 2, AT), "doch nicht")]
    # And once more the other way round.
    assert said(capsys, "1", "--yes")[1]["recorded"] == {"one": [3], "two": [3]}
    assert said(capsys, "3", "--revoke", "--yes")[0] == BranchNotLeftError.exit_status


def test_what_one_repository_does_not_know_yet_is_recorded_there_too(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.object_path(history_name(2), "one").unlink()
    record_branch(scene.store("two"), "main", 1, Fork(1, 2, AT), ("", NOW))
    status, document = said(capsys, "1", "--yes")
    assert (status, document["recorded"]) == (0, {"one": [1], "two": []})


@pytest.mark.parametrize("timeline", ["2", "3"])
def test_a_timeline_that_nothing_has_left_is_refused(
    scene: Scene, capsys: pytest.CaptureFixture[str], timeline: str
) -> None:
    status, document = said(capsys, timeline, "--yes")
    assert status == BranchNotLeftError.exit_status
    assert f"timeline {timeline}" in document["error"]["message"]
    assert said(capsys, "0")[0] == UsageError.exit_status


def test_nothing_is_recorded_while_a_required_repository_is_away(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    (scene.path / "two").rename(scene.path / "away")
    status, _ = said(capsys, "1", "--yes")
    assert status in {StoreAbsentError.exit_status, RepositoryError.exit_status}
    (scene.path / "away").rename(scene.path / "two")
    assert recorded(scene)["one"] == []
    # One of best effort refuses nobody, and is not needed.
    (scene.path / "three").rename(scene.path / "gone")
    assert said(capsys, "1", "--yes")[0] == 0
    assert said(capsys, "1", "--repository", "three")[0] != 0
