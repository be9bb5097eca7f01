"""The product with several repositories: one that backups go to, others beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pgrecall.app.context import RunContext, Surroundings
from pgrecall.app.copying import CopyResult, run_copy
from pgrecall.app.repairing import RepairResult, run_repair
from pgrecall.app.requests import CopyRequest, RepairRequest, VerifyRequest
from pgrecall.app.verifying import VerifyResult, run_verify
from pgrecall.model.findings import Finding
from pgrecall.model.ids import BACKUP, RUN, new_id
from pgrecall.model.manifest import Completion
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.identity import create_repository
from pgrecall.repository.manifests import ManifestWriter
from pgrecall.repository.opening import open_store
from pgrecall.settings import RepositorySettings, load_settings
from pgrecall.store.opening import prepare_store
from pgrecall.system.clock import SystemClock
from pgrecall.system.progress import NoProgress
from tests.support.encryption import make_encrypted
from tests.support.product import SERVER, Product


class Filled:
    """A product whose repository "one" has two full backups and the WAL behind; all is archived."""

    def __init__(self, product: Product) -> None:
        self.product = product
        product.server.sql("CREATE TABLE kept AS SELECT n, repeat('x', n % 900) AS t"
                           " FROM generate_series(1, 20000) AS n")  # fmt: skip
        self.first = product.backup()
        product.server.sql("UPDATE kept SET n = n + 1 WHERE n % 7 = 0")
        # Without this the first look at the rows would write hint bits, and so WAL, later.
        product.server.sql("VACUUM FREEZE kept")
        product.switch()
        self.second = product.backup(full=True)
        product.switch()
        status = product.server.pgdata / "pg_wal" / "archive_status"
        product.server.wait_until(lambda: not list(status.glob("*.ready")), "all WAL archived")
        self.root = Path(product.repository.path)


class Repositories:
    """Adds repositories to a product's configuration; the server archives into "one" alone."""

    def __init__(self, product: Product) -> None:
        self.product = product
        # WAL is pushed by the first configuration: what the others hold is copied.
        self.config = product.directory / "several.toml"
        self.config.write_text(product.config.read_text(encoding="utf-8"), encoding="utf-8")
        self.environment: dict[str, str] = dict(os.environ)

    def add(self, name: str, **settings: object) -> RepositorySettings:
        """A new directory, best effort unless another role is given; an empty repository in it."""
        path = str(self.product.directory / name)
        lines = {"store": "local", "path": path, "role": "best-effort", "retries": 0, **settings}
        self._write(name, lines)
        made = self.settings(name)
        self._create(made)
        return made

    def add_made(self, settings: RepositorySettings, environment: Mapping[str, str]) -> None:
        """One whose settings were made elsewhere (S3)."""
        self.environment |= environment
        values = {name: getattr(settings, name) for name in type(settings).fields}
        lines = {key: value for key, value in values.items() if value and key != "name"}
        self._write(settings.name, lines)
        self._create(self.settings(settings.name))

    def _write(self, name: str, lines: Mapping[str, object]) -> None:
        with self.config.open("a", encoding="utf-8") as file:
            file.write(f"[repositories.{name}]\n")
            file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())

    def _create(self, settings: RepositorySettings) -> None:
        prepare_store(settings)
        if settings.encryption:
            make_encrypted(settings)
            return
        store = open_store(settings, self.environment, is_anchored=False)
        create_repository(store, SystemClock().now())

    def settings(self, name: str) -> RepositorySettings:
        """The settings of one."""
        return load_settings(str(self.config), self.environment).repository(name)

    def root(self, name: str) -> Path:
        """The directory of one."""
        return Path(self.settings(name).path)

    def catalog(self, name: str) -> Catalog:
        """The backups in one."""
        return Catalog(open_store(self.settings(name), self.environment), SERVER)

    def context(self, repository: str | None = None, *, dry_run: bool = False) -> RunContext:
        """What a command is given; a run of its own."""
        settings = load_settings(str(self.config), self.environment)
        surroundings = Surroundings(
            environment=self.environment,
            progress=NoProgress(),
            run_id=new_id(RUN, SystemClock().now()),
            approve=_refuse if dry_run else self.product.approvals,
        )
        return RunContext(settings, surroundings, repository_name=repository)

    def copy(self, backup_id: str = "", *, dry_run: bool = False, **request: Any) -> CopyResult:
        """From "one" to "two", unless said otherwise."""
        wanted = {"source": "one", "target": "two", "backup_id": backup_id, **request}
        return run_copy(self.context(dry_run=dry_run), CopyRequest(**wanted))

    def verify(self, name: str | None = None, **request: Any) -> VerifyResult:
        """Verify one repository, or all."""
        return run_verify(self.context(name), VerifyRequest(**request))

    def repair(
        self, name: str | None = None, *, dry_run: bool = False, **request: Any
    ) -> RepairResult:
        """Repair one repository, or all."""
        return run_repair(self.context(name, dry_run=dry_run), RepairRequest(**request))

    def failures(self, name: str | None = None, **request: Any) -> list[Finding]:
        """What a verification fails."""
        found = self.verify(name, **request).findings
        return [finding for finding in found if finding.severity == "fail"]

    def command(self, *words: str) -> list[str]:
        """The argv of the program."""
        return [
            str(self.config) if word == str(self.product.config) else word
            for word in self.product.command(*words)
        ]


def _refuse(plan: msgspec.Struct, *, question: str = "") -> bool:
    """As --dry-run does."""
    del plan, question
    return False


def objects_of(root: Path, *, below: str = "") -> dict[str, bytes]:
    """Every object's bytes by its key."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted((root / below).rglob("*"))
        if path.is_file()
    }


def flip(path: Path, place: float = 0.5) -> None:
    """Change one bit of a file, so far into it."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x10
    path.write_bytes(content)


def referring(catalog: Catalog, backup: Completion) -> Completion:
    """Add a backup that has no pack of its own: it refers to those of ``backup``."""
    store, server = catalog.store, catalog.server
    manifest = catalog.manifest(backup)
    backup_id = new_id(BACKUP, SystemClock().now())
    writer = ManifestWriter(store, server, backup_id, manifest.root.repository_id)
    packs = [
        msgspec.structs.replace(entry, owner=entry.owner or backup.backup_id)
        for entry in manifest.packs()
    ]
    writer.add_packs(packs)
    writer.add_digests(
        msgspec.structs.replace(entry, owner=entry.owner or backup.backup_id)
        for entry in manifest.digests()
    )
    writer.add_files(manifest.files())
    root = msgspec.structs.replace(manifest.root, backup_id=backup_id, parts=writer.parts)
    stored = writer.finish(root)
    made = msgspec.structs.replace(
        backup,
        backup_id=backup_id,
        kind="incremental",
        references=tuple(sorted({entry.owner for entry in packs})),
        manifest_bytes=stored.root_bytes,
        manifest_digest=stored.root_digest,
    )
    catalog.add(made)
    return made


def remove(catalog: Catalog, backup: Completion) -> None:
    """Take a backup's own objects away again."""
    for info in list(catalog.store.list(layout.backup_prefix(catalog.server, backup.backup_id))):
        catalog.store.delete(info.key)
