"""Dumps and drills of every version of PostgreSQL, each with its own tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.backup_scene import BackupScene
from tests.support.dumped_text import text_of_database
from tests.support.postgresql import Installation, ServerFactory

FILL = """
CREATE ROLE clerk;
CREATE ROLE boss;
GRANT clerk TO boss WITH ADMIN OPTION;
CREATE DATABASE shop;
ALTER DATABASE shop SET search_path = 'sales', '"odd, name"';
REVOKE CONNECT ON DATABASE shop FROM PUBLIC;
"""
SHOP = """
CREATE SCHEMA sales;
CREATE TABLE sales.orders (id int PRIMARY KEY, note text, at timestamptz DEFAULT now(), f float8);
INSERT INTO sales.orders (id, note, f) SELECT i, md5(i::text), i / 7.0
 FROM generate_series(1, 2000) i;
ALTER TABLE sales.orders OWNER TO clerk;
SELECT lo_from_bytea(70000, 'large');
COMMENT ON LARGE OBJECT 70000 IS 'one';
"""


def run(scene: BackupScene, *words: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(scene.run(*words, "--yes", "--json"))
    return result


def test_dump_load_and_drill(
    installation: Installation, pg_factory: ServerFactory, tmp_path: Path
) -> None:
    server = pg_factory(installation, autovacuum="off")
    for statement in FILL.strip().splitlines():
        server.sql(statement)
    server.sql(SHOP, database="shop")
    scene = BackupScene(tmp_path, server)
    scene.archive()
    made = run(scene, "dump", "--proofs")
    dump_id = made["dump"]["backup_id"]
    if not (installation.bin_directory / "pg_dump").exists():
        # Only the server is installed: a newer pg_dump does, and a server of its version.
        assert "a newer one reads older servers" in made["plan"]["reasons"][0]
        drilled = run(scene, "drill", dump_id)["drill"]
        assert drilled["result"] == "ok", drilled["findings"]
        assert drilled["version_num"] // 10_000 > installation.major
        return
    before = text_of_database(server, "shop")
    assert made["plan"]["tool"].startswith(f"pg_dump {installation.major}.")
    run(scene, "load", dump_id, "--into", "shop", "--swap")
    assert text_of_database(server, "shop") == before
    for dump_format in ("plain", "directory", "tar"):
        again = run(scene, "dump", "shop", "--format", dump_format)["dump"]["backup_id"]
        run(scene, "load", again, "--into", f"from_{dump_format}", "--create")
        assert server.value(
            "SELECT count(*) FROM sales.orders", database=f"from_{dump_format}"
        ) == (2000)
    run(scene, "dump", "--cluster")
    only = run(scene, "dump", "shop", "--only-large-objects")["dump"]["backup_id"]
    server.sql("CREATE DATABASE large")
    run(scene, "load", only, "--into", "large")
    assert server.value("SELECT count(*) FROM pg_largeobject_metadata", database="large") == 1
    drilled = run(scene, "drill", dump_id)["drill"]
    assert drilled["result"] == "ok", drilled["findings"]
    run(scene, "backup")
    drilled = json.loads(scene.run("drill", "--at", "immediate", "--json"))["drill"]
    codes = [one["code"] for one in drilled["findings"]]
    assert codes == ([] if server.installation.major >= 14 else ["amcheck-missing"])
