"""Tables that were dropped or spoilt come back beside the living ones."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.backup_scene import BackupScene, shared_scene
from tests.support.postgresql import Installation, Templates

SHOP = r"""
CREATE SCHEMA "odd ""s";
CREATE TABLE people (id int PRIMARY KEY);
INSERT INTO people SELECT generate_series(1, 10);
CREATE TABLE orders (id serial PRIMARY KEY, who int REFERENCES people, note text);
CREATE INDEX orders_note ON orders (note);
INSERT INTO orders (who, note) SELECT i % 10 + 1, 'note ' || i FROM generate_series(1, 500) i;
CREATE TABLE "odd ""s"."Größe" AS SELECT 1 AS one;
CREATE TABLE "odd ""s".orders AS SELECT 2 AS two;
CREATE TABLE parts (id int, at date) PARTITION BY RANGE (at);
CREATE TABLE parts_old PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
INSERT INTO parts SELECT i, '2020-05-05' FROM generate_series(1, 100) i;
"""


@pytest.fixture(scope="module")
def scene(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BackupScene]:
    with shared_scene(pg_templates, installations[18], tmp_path_factory, autovacuum="off") as scene:
        server = scene.server
        server.sql("CREATE DATABASE shop")
        server.sql(SHOP, database="shop")
        scene.run("backup", "--yes")
        server.sql("INSERT INTO orders (who, note) VALUES (1, 'the last one')", database="shop")
        scene.run("restore-point", "before", "--yes")
        server.sql("DROP TABLE orders, parts", database="shop")
        server.sql("TRUNCATE people", database="shop")
        scene.run("wal", "switch", "--yes")
        (scene.directory / "copies").mkdir()
        scene.config.write_text(
            scene.config.read_text()
            + f"[drill]\ndirectory = {json.dumps(str(scene.directory / 'copies'))}\n"
        )
        yield scene


def rescued(scene: BackupScene, *words: str, status: int = 0) -> dict[str, Any]:
    process = scene.start("rescue", *words, "--to-name", "before", "--database", "shop", "--json")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == status, (output, errors)
    assert list((scene.directory / "copies").iterdir()) == []
    result: dict[str, Any] = json.loads(output)
    return result


def test_dropped_tables_come_back_in_a_schema_of_their_own(scene: BackupScene) -> None:
    server = scene.server
    result = rescued(scene, "public.orders", "parts", "people", "--schema", 'back "again')
    assert {(one["was"], one["rows"]) for one in result["tables"]} == {
        ("public.orders", 501), ("public.parts", 0), ("public.parts_old", 100),
        ("public.people", 10),
    }  # fmt: skip
    assert [one["code"] for one in result["findings"]] == ["foreign-key-left-out"]
    count = 'SELECT count(*) FROM "back ""again".{}'
    assert server.value(count.format("orders"), database="shop") == 501
    assert server.value(count.format("parts"), database="shop") == 100
    indexes = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'back \"again'"
    assert server.value(indexes, database="shop") == 3
    # The living ones are as they were.
    assert server.value("SELECT count(*) FROM people", database="shop") == 0
    assert server.value("SELECT to_regclass('public.orders')::text", database="shop") is None


def test_under_another_name_in_another_database(scene: BackupScene) -> None:
    result = rescued(
        scene, 'odd "s.Größe', "--into", "postgres", "--schema", "kept", "--as", "it's"
    )
    assert [one["now"] for one in result["tables"]] == ["kept.it's"]
    assert scene.server.value('SELECT one FROM kept."it\'s"') == 1


def test_what_is_refused(scene: BackupScene) -> None:
    def said(*words: str) -> str:
        error = rescued(scene, *words, status=2)["error"]
        return f"{error['message']} | {error['hint']}"

    assert "several tables" in said("orders")
    assert "no table 'nope'" in said("nope")
    assert "has no database 'never'" in said("people", "--into", "never")
    assert "has a schema 'public' already" in said("people", "--schema", "public")
    assert "--as names one table" in said("people", "parts", "--as", "x")
    process = scene.start("rescue", "people", "--json")
    output, _ = process.communicate(timeout=60)
    assert "at which moment" in json.loads(output)["error"]["message"]


def test_a_role_that_is_gone(scene: BackupScene) -> None:
    """A failure changes nothing; --no-owner does without the role."""
    server = scene.server
    server.sql("CREATE ROLE gone")
    server.sql("CREATE TABLE owned AS SELECT 1 AS n", database="shop")
    server.sql("ALTER TABLE owned OWNER TO gone", database="shop")
    scene.run("restore-point", "owned", "--yes")
    server.sql("DROP TABLE owned", database="shop")
    server.sql("DROP ROLE gone")
    scene.run("wal", "switch", "--yes")
    words = ("rescue", "owned", "--to-name", "owned", "--database", "shop", "--schema", "o")
    assert 'role "gone" does not exist' in scene.run(*words, status=49)
    schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'o'"
    assert server.value(schemas, database="shop") == 0
    scene.run(*words, "--no-owner")
    assert server.value("SELECT n FROM o.owned", database="shop") == 1


def test_find_gives_the_command_that_rescues_a_table(scene: BackupScene) -> None:
    server = scene.server
    name = '"-odd ""s"."Ta\'b le"'
    server.sql('CREATE SCHEMA "-odd ""s"', database="shop")
    server.sql(f"CREATE TABLE {name} AS SELECT generate_series(1, 7) AS n", database="shop")
    scene.run("wal", "switch", "--yes")
    scene.run("backup", "--yes")
    server.sql(f"DROP TABLE {name}", database="shop")
    scene.run("wal", "switch", "--yes")
    found = json.loads(scene.run("find", "--dropped", f"shop.{name}", "--json"))["found"]
    command = shlex.split(found[0]["rescue"])
    assert command[:2] == ["pgrecall", "rescue"]
    assert command[-2:] == ["--", "-odd \"s.Ta'b le"]
    process = scene.start(*command[1:2], "--yes", "--json", *command[2:])
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, (output, errors)
    schema = json.loads(output)["new_schema"]
    scene.run("rescue", name, *command[2:-2], "--yes", "--json")
    assert server.value(f'SELECT count(*) FROM {schema}."Ta\'b le"', database="shop") == 7
