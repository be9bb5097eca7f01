"""Freeze the format: ``make freeze NAME=...`` (``python -m tests.formats.freeze NAME``).

Makes two small repositories with the code as it is and keeps them in ``tests/formats/NAME``, for
every later version to read: ``plain`` (a full backup and two incremental ones, WAL, name maps,
runs, a verification, a hold, an expired backup) and ``encrypted`` (a full and an incremental
backup, and WAL, by a passphrase). ``expected.json`` says what is to be found in them.

Small, because they stay in git for ever: the cluster has one database, of whose catalogs the parts
that no server needs are removed; the plain one is stored uncompressed, for xz to compress.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.support.encryption import EncryptedProduct
from tests.support.matrix import matrix_directory
from tests.support.postgresql import (
    Installation,
    PostgresServer,
    ServerFactory,
    Templates,
    find_installations,
)
from tests.support.product import SERVER, Product

HERE = Path(__file__).parent
MAJOR = 18
PASSPHRASE = "correct horse battery staple"

_SHRINK = (
    "UPDATE pg_database SET datistemplate = false, datallowconn = true",
    "DROP DATABASE template0",
    "DROP DATABASE template1",
    "DROP SCHEMA information_schema CASCADE",
    "DELETE FROM pg_collation WHERE collname NOT IN ('default', 'C', 'POSIX', 'ucs_basic')",
    *(
        f"TRUNCATE {table}"
        for table in ("pg_description", "pg_shdescription", "pg_conversion", "pg_init_privs")
    ),
    "TRUNCATE pg_depend, pg_statistic",
    "DELETE FROM pg_rewrite WHERE ev_class::regclass::text ~ '^pg_(stat_|statio_|stats|seq|shmem)'"
    " AND ev_class::regclass::text !~ 'archiver|activity|replication|receiver'",
    "VACUUM FULL",
    "CHECKPOINT",
    "SELECT pg_switch_wal()",
    "CHECKPOINT",  # what was written until here is not archived
)


def freeze(directory: Path, work: Path) -> None:
    """Write the archives and what is in them below ``directory``."""
    directory.mkdir(parents=True)
    expected: dict[str, Any] = {"postgres": MAJOR, "server": SERVER, "passphrase": PASSPHRASE}
    installation = find_installations(matrix_directory(HERE.parents[1]))[MAJOR]
    templates = Templates(work)
    for name, kind in (("plain", Product), ("encrypted", EncryptedProduct)):
        place = work / name
        place.mkdir()
        factory = ServerFactory(templates, installation, place)
        try:
            product = _product(kind, place, _small_server(factory, installation))
            expected[name] = _fill(product, is_plain=name == "plain")
        finally:
            factory.destroy()
        _pack(Path(product.repository.path), directory / f"{name}.tar.xz")
    text = json.dumps(expected, indent=1, sort_keys=True)
    (directory / "expected.json").write_text(text + "\n", encoding="utf-8")


def _small_server(factory: ServerFactory, installation: Installation) -> PostgresServer:
    server = factory(
        installation,
        segment_mib=1,
        archive_mode="off",
        autovacuum="off",
        full_page_writes="off",
        min_wal_size="2MB",
        max_wal_size="4MB",
    )
    with server.connect() as connection:
        connection.autocommit = True
        connection.execute("SET allow_system_table_mods = on")
        for statement in _SHRINK:
            connection.execute(statement)
    server.stop()
    return server


def _product(kind: type[Product], place: Path, server: PostgresServer) -> Product:
    product = kind(place, server)
    codec = 'compression = "none"' if kind is Product else 'compression = "zstd"\nlevel = 19'
    text = product.config.read_text(encoding="utf-8").replace("level = 1\n", codec + "\n", 1)
    wal = 'retry_seconds = 0\ncompression = "none"' if kind is Product else "retry_seconds = 0"
    text = text.replace("retry_seconds = 0", wal, 1)
    product.config.write_text(text, encoding="utf-8")
    server.configure(archive_mode="on", summarize_wal="on")
    server.start()
    return product


def _fill(product: Product, *, is_plain: bool) -> dict[str, Any]:
    """Backups, WAL, and the records beside them; what is to be found."""
    server = product.server
    server.sql("CREATE TABLE kept AS SELECT n, repeat('x', n % 50) AS t"
               " FROM generate_series(1, 500) AS n")  # fmt: skip
    backups = [_backup(product)]
    for number in range(2 if is_plain else 1):
        server.sql(f"UPDATE kept SET n = n + 7000 WHERE n % 7 = {number}")
        backups.append(_backup(product))
    server.sql("INSERT INTO kept VALUES (-1, 'behind the last backup')")
    product.switch()
    expired: list[str] = []
    if is_plain:
        _run(product, "verify", "--full")
        _run(product, "hold", "add", backups[0], "--reason", "a frozen hold")
        _run(product, "expire", backups[1], "--yes")
        expired = [backups.pop(1)]
    rows, total = server.sql("SELECT count(*), sum(n) FROM kept")[0]
    server.stop()
    return {"backups": backups, "expired": expired, "rows": rows, "sum": total}


def _backup(product: Product) -> str:
    return str(_run(product, "backup")["backup"]["backup_id"])


def _run(product: Product, *words: str) -> dict[str, Any]:
    done = product.cli(*words, "--json")
    if done.returncode:
        raise SystemExit(f"{words}: {done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _pack(repository: Path, archive: Path) -> None:
    with (
        lzma.open(archive, "wb", preset=9 | lzma.PRESET_EXTREME) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted(repository.rglob("*")):
            if path.is_file():
                info = tar.gettarinfo(str(path), str(path.relative_to(repository)))
                info.uname = info.gname = ""
                info.uid = info.gid = 0
                with path.open("rb") as file:
                    tar.addfile(info, file)


def main() -> None:
    """Freeze."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the version or the change, for example 0.4")
    parser.add_argument("--into", type=Path, default=HERE, help="where to make the directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgrecall-freeze-") as work:
        freeze(options.into / options.name, Path(work))


if __name__ == "__main__":
    main()
