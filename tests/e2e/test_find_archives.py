"""``find`` and ``wal index`` on archives that are old, branched, full of holes; and name maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pgrecall.app.naming import NameMapResult, record_names
from pgrecall.codec.compression import make_frame_encoder
from pgrecall.codec.wal_scan import scan_segment
from pgrecall.model.wal_files import SEGMENT, WalFile
from pgrecall.model.wal_index import WalIndex
from pgrecall.repository import layout
from pgrecall.repository.identity import open_repository
from pgrecall.repository.name_maps import NameMaps
from pgrecall.repository.wal_objects import WalContent, WalHeader, WalObjectWriter
from pgrecall.store.opening import open_store
from tests.support.json_schema import require_valid
from tests.support.postgresql import ServerFactory
from tests.support.product import SERVER, Product

ROWS = 300


@pytest.fixture
def product(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[Product]:
    product = Product.start(pg_factory, tmp_path)
    try:
        yield product
    finally:
        product.close()


def answer(product: Product, *words: str) -> dict[str, Any]:
    finished = product.cli(*words, "--json")
    assert finished.returncode == 0, finished.stderr
    document: dict[str, Any] = json.loads(finished.stdout)
    require_valid(document)
    return document


def codes(document: dict[str, Any]) -> set[str]:
    return {one["code"] for one in document["findings"] if one["severity"] != "ok"}


def fill(product: Product, table: str) -> None:
    product.server.sql(f"CREATE TABLE {table} AS SELECT generate_series(1, {ROWS}) AS n")


def age(product: Product) -> list[str]:
    """Store every segment anew as it was stored before indexes told of tables."""
    archive = product.archive()
    store = open_store(product.repository, {})
    identity = open_repository(store)
    names = [segment.name for segment in archive.segments(1)]
    for name in names:
        content = archive.read(name)
        index = scan_segment(content, WalFile(name).start(archive.segment_bytes)).index
        index.knowledge = None
        key = layout.wal_key(SERVER, archive.generation.number, WalFile(name))
        product.path_of(key).unlink()
        header = WalHeader(name, SEGMENT)
        header.system_identifier = archive.generation.system_identifier
        header.segment_bytes = archive.segment_bytes
        header.pushed_at = datetime.now(UTC)
        body = WalContent(content, index.to_bytes(), identity.raw_key())
        assert WalObjectWriter(header, body, make_frame_encoder("zstd", 1)).write(store, key)
    return names


def test_old_segments_are_unknown_until_they_are_indexed(product: Product) -> None:
    fill(product, "orders")
    product.backup()
    product.server.sql("DROP TABLE orders")
    product.switch()
    fill(product, "others")
    product.switch()
    names = age(product)

    before = answer(product, "find", "--dropped", "orders")
    assert before["found"] == []
    assert "segments-not-indexed" in codes(before)
    assert before["searched"][0]["unknown_segments"] == len(names)

    planned = answer(product, "wal", "index", "--dry-run")
    assert (planned["plan"]["to_index"], planned["indexed"]) == (len(names), 0)
    objects = product.objects()
    first = answer(product, "wal", "index", "--yes", "--to", names[0])
    assert first["indexed"] == 1
    rest = answer(product, "wal", "index", "--yes")
    assert rest["indexed"] == len(names) - 1
    assert answer(product, "wal", "index", "--yes")["plan"]["to_index"] == 0
    now = product.objects()
    assert {path: now[path] for path in objects} == objects, "segments are not changed"

    after = answer(product, "find", "--dropped", "orders")
    assert [one["name"] for one in after["found"]] == ["postgres.public.orders"]
    assert codes(after) == set()


def test_a_damaged_segment_is_named_and_the_others_are_indexed(product: Product) -> None:
    fill(product, "orders")
    product.switch()
    fill(product, "others")
    product.switch()
    names = age(product)
    key = layout.wal_key(SERVER, 1, WalFile(names[0]))
    path = product.path_of(key)
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    result = answer(product, "wal", "index", "--yes")
    assert result["indexed"] == len(names) - 1
    assert [(one["severity"], one["subject"]) for one in result["findings"]] == [("fail", names[0])]


def test_a_lost_index_object_of_another_place_is_refused(product: Product) -> None:
    fill(product, "orders")
    product.switch()
    fill(product, "others")
    product.switch()
    names = age(product)[:2]
    answer(product, "wal", "index", "--yes")
    one, other = (product.path_of(layout.wal_index_key(SERVER, 1, WalFile(name))) for name in names)
    one.chmod(0o600)
    one.write_bytes(other.read_bytes())
    finished = product.cli("find", "--deletes")
    assert finished.returncode != 0
    assert "another segment" in finished.stderr


def test_both_branches_after_a_promotion(product: Product, tmp_path: Path) -> None:
    fill(product, "orders")
    product.backup()
    product.switch()
    server = product.server
    server.sql("SELECT pg_create_restore_point('fork')")
    server.sql("DROP TABLE orders")
    product.switch()
    found = answer(product, "find", "--dropped", "orders")["found"]
    assert "--timeline" not in found[0]["restore"]

    # Production itself goes back, and drops the table once more on its new timeline.
    server.stop()
    server.pgdata.rename(tmp_path / "before")
    words = found[0]["restore"].split()[1:]
    finished = product.cli(*words, "--take-over", "--yes")
    assert finished.returncode == 0, finished.stderr
    server.start()
    server.wait_until(lambda: not server.value("SELECT pg_is_in_recovery()"))
    assert server.value("SELECT count(*) FROM orders") == ROWS
    server.sql("DROP TABLE orders")
    product.switch()

    document = answer(product, "find", "--dropped", "orders")
    assert [one["timeline"] for one in document["found"]] == [1, 2]
    assert codes(document) == set()
    assert (
        answer(product, "find", "--dropped", "orders", "--timeline", "2")["searched"][0]["timeline"]
        == 2
    )
    points = answer(product, "find", "--restore-points")["found"]
    assert [(one["timeline"], one["name"]) for one in points] == [(1, "fork")]
    for one in document["found"]:
        target = tmp_path / f"copy{one['timeline']}"
        product.copies.append(target)
        words = [*one["restore"].split()[1:], "--target-dir", str(target), "--start", "--yes"]
        assert f"--timeline {one['timeline']}" in one["restore"]
        finished = product.cli(*words)
        assert finished.returncode == 0, finished.stderr
        assert product.connected(target).value("SELECT count(*) FROM orders") == ROWS
        product.end(target)


def test_without_any_map_the_oid_is_shown(product: Product) -> None:
    fill(product, "orders")
    oid = product.server.value("SELECT 'orders'::regclass::oid::int")
    product.switch()
    created_in = [segment.name for segment in product.archive().segments(1)]
    product.server.sql("DROP TABLE orders")
    product.switch()
    for name in created_in:
        product.path_of(layout.wal_key(SERVER, 1, WalFile(name))).unlink()
    document = answer(product, "find", "--dropped", "orders")
    assert [one["name"] for one in document["found"]] == [
        f"oid {oid} of database oid 5, name unknown"
    ]
    assert codes(document) == {"table-not-known", "no-backup-before"}
    assert [one["restore"] for one in document["found"]] == [""]


def test_at_wal_level_logical_and_across_tablespaces(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    product = Product.start(pg_factory, tmp_path, wal_level="logical")
    fill(product, "emptied")
    fill(product, "moved")
    product.backup()
    server = product.server
    server.sql("TRUNCATE emptied")
    (tmp_path / "elsewhere").mkdir()
    server.sql(f"CREATE TABLESPACE elsewhere LOCATION '{tmp_path}/elsewhere'")
    server.sql("ALTER TABLE moved SET TABLESPACE elsewhere")
    server.sql("REINDEX DATABASE postgres")
    server.sql("DROP TABLE moved")
    product.switch()
    truncated = answer(product, "find", "--truncated", "*")["found"]
    assert [(one["what"], one["name"]) for one in truncated] == [
        ("truncated", "postgres.public.emptied")
    ]
    dropped = answer(product, "find", "--dropped", "*")["found"]
    assert [(one["what"], one["name"]) for one in dropped] == [("dropped", "postgres.public.moved")]


def test_a_rewritten_catalog_is_said_and_names_still_come_from_maps(product: Product) -> None:
    fill(product, "orders")
    product.backup()
    product.server.sql("VACUUM FULL pg_class")
    product.server.sql("DROP TABLE orders")
    product.switch()
    document = answer(product, "find", "--dropped", "orders")
    assert [one["name"] for one in document["found"]] == ["postgres.public.orders"]
    assert codes(document) == {"catalog-rewritten"}


def test_a_gap_in_the_archive_is_counted_and_walked_over(product: Product) -> None:
    fill(product, "orders")
    product.backup()
    product.switch()
    fill(product, "between")
    lost = product.switch()
    product.server.sql("DROP TABLE orders")
    product.switch()
    product.path_of(layout.wal_key(SERVER, 1, WalFile(lost))).unlink()
    document = answer(product, "find", "--dropped", "orders")
    assert [one["name"] for one in document["found"]] == ["postgres.public.orders"]
    assert document["searched"][0]["gaps"] == 1


def test_temporary_tables_are_nobodys_loss(product: Product) -> None:
    fill(product, "orders")
    product.backup()
    with product.server.connect() as connection:
        for number in range(30):
            connection.execute(f"CREATE TEMP TABLE scratch{number} (n int)".encode())
        connection.execute("CREATE TABLE empty (n int)")
        connection.execute("BEGIN")
        connection.execute("DROP TABLE scratch1, orders, empty")
        connection.execute("COMMIT")
    product.switch()
    found = answer(product, "find", "--dropped", "*")["found"]
    assert [one["name"] for one in found] == ["postgres.public.empty", "postgres.public.orders"]


@pytest.mark.parametrize("compression", ["pglz", "on"])
def test_rows_in_compressed_page_images(
    pg_factory: ServerFactory, tmp_path: Path, compression: str
) -> None:
    product = Product.start(pg_factory, tmp_path, wal_compression=compression)
    product.backup()
    for text in (
        "CREATE TABLE made AS SELECT 1 AS n",
        "CHECKPOINT",
        "ALTER TABLE made RENAME TO renamed",
        "CHECKPOINT",
        "DROP TABLE renamed",
    ):
        product.server.sql(text)
    product.switch()
    found = answer(product, "find", "--dropped", "*")["found"]
    assert [one["name"] for one in found] == ["postgres.public.renamed"]


# --- name maps ---------------------------------------------------------------------


def record(product: Product) -> NameMapResult:
    return record_names(product.context())


def test_a_map_that_did_not_change_is_stored_once(product: Product) -> None:
    product.server.sql("CREATE DATABASE shop")
    fill(product, "orders")
    first, second = record(product), record(product)
    assert (first.databases, first.changed_maps, first.findings) == (4, 3, ())
    assert (second.changed_maps, second.relations) == (0, first.relations)
    fill(product, "others")
    assert record(product).changed_maps == 1
    maps = NameMaps(open_store(product.repository, {}), SERVER, product.archive().generation)
    places = maps.places([1])
    assert len(places) == 3
    stored = maps.record(places[-1])
    (entry,) = [entry for entry in stored.databases if entry.name == "postgres"]
    names = maps.names(entry.digest)
    found = {relation.name: relation for relation in names.relations}
    oid, file, ctid = product.server.sql(
        "SELECT oid::int8, relfilenode::int8, ctid::text FROM pg_class WHERE relname = 'others'"
    )[0]
    other = found["others"]
    assert (other.oid, other.file) == (oid, file)
    assert f"({other.block},{other.offset})" == ctid


def test_a_database_that_cannot_be_read_is_named(product: Product) -> None:
    server = product.server
    server.sql("CREATE DATABASE closed")
    server.sql("CREATE ROLE keeper LOGIN; GRANT EXECUTE ON FUNCTION pg_control_system() TO keeper")
    server.sql("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    text = product.config.read_text(encoding="utf-8")
    product.config.write_text(text.replace('user = "postgres"', 'user = "keeper"'))
    result = record(product)
    assert [(one.code, one.subject) for one in result.findings] == [("names-not-read", "closed")]
    maps = NameMaps(open_store(product.repository, {}), SERVER, product.archive().generation)
    stored = maps.record(maps.places([1])[0])
    problems = {entry.name: entry.problem for entry in stored.databases if entry.problem}
    assert set(problems) == {"closed", "template0"}


def test_a_backup_without_names_is_a_backup(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Path(product.repository.path, "servers", SERVER, "names")
    names.mkdir(parents=True)
    names.chmod(0o500)
    try:
        backup = product.backup()
    finally:
        names.chmod(0o700)
    assert backup.finding_count == 1
    assert backup.worst == "warn"


def test_index_survives_its_json() -> None:
    assert WalIndex.from_bytes(WalIndex(0x3000000, 1 << 20, 1).to_bytes()).knowledge is None


def test_people_read_it_too(product: Product) -> None:
    fill(product, "orders")
    product.backup()
    product.server.sql("DROP TABLE orders")
    product.switch()
    shown = product.cli("find", "--dropped", "orders")
    assert shown.returncode == 0
    assert "postgres.public.orders" in shown.stdout
    assert "pgrecall restore --to-lsn" in shown.stdout
    refused = product.cli("find")
    assert refused.returncode != 0
    assert "--restore-points" in refused.stderr
