"""The JSON Schemas in docs/json: complete, and true of what commands print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pgrecall.cli.entry import main
from pgrecall.cli.schemas import SCHEMAS, json_schema, schema_files
from pgrecall.errors import CheckFailedError
from tests.support.json_schema import ROOT, require_valid, violations
from tests.support.wal_scene import Scene, build_segments

NAME = "000000010000000000000003"
#: Printed by light modules, which name their schema themselves.
BESIDE_EMIT = {"wal-push/1", "wal-fetch/1", "error/1"}


def test_every_schema_that_is_printed_is_described() -> None:
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "src/pgrecall/cli/commands").glob("*.py"))
    )
    emitted = set(re.findall(r'emit\(.*?"([a-z-]+/\d+)"\)', source, re.DOTALL))
    assert emitted | BESIDE_EMIT == set(SCHEMAS)


def test_the_directory_holds_no_other_file() -> None:
    there = {f"json/{path.name}" for path in (ROOT / "docs/json").iterdir()}
    assert there == set(schema_files())


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_describe_objects_with_their_name(name: str) -> None:
    schema = json_schema(name)
    assert schema["type"] == "object"
    assert schema["properties"]["schema"] == {"const": f"pgrecall/{name}"}
    assert schema["required"][0] == "schema"
    references = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)))
    assert references == set(schema.get("$defs", {}))
    # The validator knows every keyword in every part.
    for part in [schema, *schema.get("$defs", {}).values()]:
        violations({}, part, schema, "$")


def test_the_validator_finds_what_is_wrong() -> None:
    schema = json_schema("wal-push/1")
    good: dict[str, Any] = {
        "schema": "pgrecall/wal-push/1",
        "name": NAME,
        "outcome": "created",
        "stored_bytes": 1,
        "warnings": [],
    }
    assert violations(good, schema, schema, "$") == []
    for change in (
        {"schema": "pgrecall/wal-push/2"},
        {"name": 1},
        {"outcome": "lost"},
        {"stored_bytes": True},
        {"stored_bytes": 1.5},
        {"warnings": [None]},
        {"more": 1},
    ):
        assert violations({**good, **change}, schema, schema, "$"), change
    assert violations({"schema": "pgrecall/wal-push/1"}, schema, schema, "$")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A data directory that is the working directory, and a configuration that is found there."""
    scene = Scene(tmp_path, roles=("required", "best-effort"))
    tables = "".join(
        f'[repositories.{name}]\nstore = "local"\npath = {json.dumps(repository.path)}\n'
        f'role = "{repository.role}"\n'
        for name, repository in scene.settings.repositories.items()
    )
    config = tmp_path / "pgrecall.toml"
    config.write_text(f'[servers.main]\ndata_directory = "{scene.pgdata}"\n{tables}')
    monkeypatch.setenv("PGRECALL_CONFIG", str(config))
    monkeypatch.chdir(scene.pgdata)
    return scene


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Status and the one document on standard output, held to its schema."""
    status = main([*words, "--json"])
    document = json.loads(capsys.readouterr().out)
    require_valid(document)
    return status, document


def test_what_the_archive_commands_print(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    ((name, content),) = build_segments(1).items()
    path = str(scene.write(name, content))
    for outcome in ("created", "already-stored"):
        status, document = printed(capsys, "wal", "push", path)
        assert (status, document["outcome"], document["warnings"]) == (0, outcome, [])
    (scene.path / "two").rename(scene.path / "away")
    status, document = printed(capsys, "wal", "push", path)
    assert status == 0
    assert "'two'" in document["warnings"][0]
    status, document = printed(capsys, "wal", "fetch", name, "RECOVERYXLOG")
    assert (status, document["outcome"]) == (0, "delivered")
    (scene.path / "away").rename(scene.path / "two")
    status, document = printed(capsys, "wal", "fetch", "0000000100000000000000FF", "RECOVERYXLOG")
    assert (status, document["outcome"]) == (64, "absent")


def test_what_others_print_without_a_server(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(capsys, "version")[0] == 0
    assert printed(capsys, "completion", "bash")[0] == 0
    assert printed(capsys, "backups", "list")[1]["backups"] == []
    assert printed(capsys, "check")[0] == CheckFailedError.exit_status
    for words in (
        ("wal", "push", "nonsense"),
        ("wal", "fetch", "nonsense", "there"),
        ("wal", "psh"),
        ("backups", "show", "b-20261122T201637Z-7k3q"),
        ("backup",),
        ("restore",),
    ):
        status, document = printed(capsys, *words)
        assert document["schema"] == "pgrecall/error/1", words
        assert document["error"]["exit_status"] == status
