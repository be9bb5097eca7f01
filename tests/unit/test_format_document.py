"""What docs/format.md prints restores the files of a backup without pgrecall."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from pgrecall.model.findings import Finding
from pgrecall.model.manifest import (
    Completion,
    FileEntry,
    ManifestRoot,
    PackEntry,
    Run,
    ServerFactsRecord,
    Totals,
    WalRange,
)
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.manifests import ManifestWriter, StoredManifest
from pgrecall.repository.packs import PackHeader, PackWriter
from pgrecall.store.base import Store
from pgrecall.store.local import LocalStore

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "format.md"
BACKUP = "b-20261122T201637Z-7k3q"
SERVER = "shop"
NOW = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)


def store_backup(store: Store) -> dict[str, bytes]:
    """A backup of three files: one over two frames, two small ones in one frame."""
    contents = {
        "PG_VERSION": b"18\n",
        "base/1/1259": bytes(range(256)) * 5000,
        "global/1262": b"small",
    }
    header = PackHeader(repository_id="r", server=SERVER, backup_id=BACKUP, number=0)
    pack = PackWriter(store.writer(layout.pack_key(SERVER, BACKUP, 0)), header, "zstd", 1)
    big = contents["base/1/1259"]
    pack.add(big[: 1 << 20], [(b"base/1/1259", 0, 1 << 20)])
    pack.add(big[1 << 20 :], [(b"base/1/1259", 1 << 20, len(big) - (1 << 20))])
    small = contents["PG_VERSION"] + contents["global/1262"]
    pack.add(small, [(b"PG_VERSION", 0, 3), (b"global/1262", 0, 5)])
    with pack.finish() as writer:
        assert writer.commit()
        size = writer.size
    manifest = ManifestWriter(store, SERVER, BACKUP, "r")
    manifest.add_packs([PackEntry(0, size, pack.footer_digest)])
    manifest.add_files(_entries(contents))
    stored = manifest.finish(_root(manifest))
    Catalog(store, SERVER).add(_completion(stored))
    return contents


def _entries(contents: dict[str, bytes]) -> list[FileEntry]:
    runs = {
        "PG_VERSION": Run(0, 2, 0, 0, 3),
        "base/1/1259": Run(0, 0, 0, 0, len(contents["base/1/1259"])),
        "global/1262": Run(0, 2, 3, 0, 5),
    }
    entries = [FileEntry(name, "d", 0o700, 0, 0, 0) for name in ("base", "base/1", "global")]
    for name, run in runs.items():
        entries.append(FileEntry(name, "f", 0o600, 0, 0, 0, run.length, 0, (run,)))
    return sorted(entries, key=lambda entry: entry.path.split("/"))


def _root(manifest: ManifestWriter) -> ManifestRoot:
    server = ServerFactsRecord(
        version_num=180006,
        version="18.6",
        catalog_version=1,
        block_bytes=8192,
        relation_segment_bytes=1 << 30,
        segment_bytes=16 << 20,
        data_checksums=1,
        data_directory="/data",
        max_connections=100,
        max_worker_processes=8,
        max_wal_senders=10,
        max_prepared_transactions=0,
        max_locks_per_transaction=64,
    )
    return ManifestRoot(
        backup_id=BACKUP,
        repository_id="r",
        digest="blake3",
        kind="full",
        source="local",
        system_identifier="1",
        backup_label=b"START WAL LOCATION",
        tablespace_map=b"",
        wal_range=WalRange(1, "0/2000028", "0/2000100"),
        server=server,
        findings=(Finding("warn", "link-followed", "a link"),),
        parts=manifest.parts,
    )


def _completion(stored: StoredManifest) -> Completion:
    return Completion(
        backup_id=BACKUP,
        repository_id="r",
        server=SERVER,
        generation=1,
        system_identifier="1",
        kind="full",
        source="local",
        version_num=180006,
        segment_bytes=16 << 20,
        timeline=1,
        start_lsn="0/2000028",
        stop_lsn="0/2000100",
        started_at=NOW,
        stopped_at=NOW,
        completed_at=NOW,
        duration_seconds=1.0,
        label="test",
        compression="zstd:1",
        has_wal=False,
        totals=Totals(files=3, directories=3, raw_bytes=0, stored_bytes=0, packs=1),
        manifest_bytes=stored.root_bytes,
        manifest_digest=stored.root_digest,
    )


def test_the_recipe_restores_every_file(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    contents = store_backup(LocalStore(str(root)))
    (recipe,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    target = tmp_path / "restored"
    target.mkdir()
    backup = root / layout.backup_prefix(SERVER, BACKUP)
    subprocess.run(
        [sys.executable, "-I", "-c", recipe, str(backup), str(target)],
        check=True,
        capture_output=True,
    )
    assert {
        str(path.relative_to(target)): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    } == contents
