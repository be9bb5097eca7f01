"""What docs/format.md prints restores the files of a backup without pgrecall."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

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


def store_backup(store: Store, compression: str) -> dict[bytes, bytes]:
    """A backup of four files: one over two frames, three small ones in one frame.

    The name of one is not UTF-8.
    """
    contents = {
        b"PG_VERSION": b"18\n",
        b"base/1/1259": bytes(range(256)) * 5000,
        b"global/1262": b"small",
        b"global/\xff\xfe latin": b"odd",
    }
    header = PackHeader(repository_id="r", server=SERVER, backup_id=BACKUP, number=0)
    pack = PackWriter(store.writer(layout.pack_key(SERVER, BACKUP, 0)), header, compression, 1)
    big = contents[b"base/1/1259"]
    pack.add(big[: 1 << 20], [(b"base/1/1259", 0, 1 << 20)])
    pack.add(big[1 << 20 :], [(b"base/1/1259", 1 << 20, len(big) - (1 << 20))])
    names = (b"PG_VERSION", b"global/1262", b"global/\xff\xfe latin")
    small = b"".join(contents[name] for name in names)
    pack.add(small, [(name, 0, len(contents[name])) for name in names])
    with pack.finish() as writer:
        assert writer.commit()
        size = writer.size
    manifest = ManifestWriter(store, SERVER, BACKUP, "r")
    manifest.add_packs([PackEntry(0, size, pack.footer_digest)])
    manifest.add_files(_entries(contents))
    stored = manifest.finish(_root(manifest))
    Catalog(store, SERVER).add(_completion(stored, compression))
    return contents


def _entries(contents: dict[bytes, bytes]) -> list[FileEntry]:
    runs = {
        b"PG_VERSION": Run(0, 2, 0, 0, 3),
        b"base/1/1259": Run(0, 0, 0, 0, len(contents[b"base/1/1259"])),
        b"global/1262": Run(0, 2, 3, 0, 5),
        b"global/\xff\xfe latin": Run(0, 2, 8, 0, 3),
    }
    entries = [FileEntry(name, "d", 0o700, 0, 0, 0) for name in ("base", "base/1", "global")]
    for name, run in runs.items():
        text = name.decode(errors="replace")
        raw_path = "" if text.encode() == name else name.hex()
        entries.append(
            FileEntry(text, "f", 0o600, 0, 0, 0, run.length, 0, (run,), raw_path=raw_path)
        )
    return sorted(entries, key=lambda entry: entry.path_bytes().split(b"/"))


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


def _completion(stored: StoredManifest, compression: str) -> Completion:
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
        compression=f"{compression}:1",
        has_wal=False,
        totals=Totals(files=4, directories=3, raw_bytes=0, stored_bytes=0, packs=1),
        manifest_bytes=stored.root_bytes,
        manifest_digest=stored.root_digest,
    )


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_the_recipe_restores_every_file(tmp_path: Path, compression: str) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    contents = store_backup(LocalStore(str(root)), compression)
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
        os.fsencode(path.relative_to(target)): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    } == contents
