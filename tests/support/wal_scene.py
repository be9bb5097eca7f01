"""A data directory with WAL as PostgreSQL writes it, and repositories to push it into."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.repository import layout
from pgrecall.repository.identity import (
    COPY_MARKER,
    System,
    add_generation,
    create_repository,
    latest_generation,
)
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import RepositorySettings, ServerSettings, Settings, WalSettings
from pgrecall.store.local import LocalStore
from pgrecall.store.opening import open_store, prepare_store
from pgrecall.wal.fetch import FetchResult, fetch_file
from pgrecall.wal.push import PushResult, push_file
from tests.support.wal_builder import RM_HEAP, RM_XACT, RM_XLOG, WalBuilder, commit, restore_point
from tests.unit.test_control import build

NOW = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)
SYSTEM = 7_000_000_000_000_000_001


def build_segments(
    count: int = 1,
    *,
    segment_bytes: int = 1 << 20,
    timeline: int = 1,
    system: int = SYSTEM,
    salt: int = 0,
) -> dict[str, bytes]:
    """``count`` whole segments from segment 3 on, by name; ``salt`` makes other content."""
    builder = WalBuilder(start=3 * segment_bytes, segment_bytes=segment_bytes)
    builder.timeline = timeline
    builder.system_identifier = system
    builder.add(RM_XLOG, 0x70, restore_point(800_000_000_000_000, b"before"))
    while builder.position < builder.start + count * segment_bytes - 100_000:
        builder.add(RM_HEAP, 0, bytes([salt & 0xFF]) * 60_000, xid=1000)
        info, data = commit(800_000_000_000_000 + builder.position)
        builder.add(RM_XACT, info, data, xid=1000)
    return {
        segment_name(timeline, builder.start + number * segment_bytes, segment_bytes): content
        for number, content in enumerate(builder.segments())
    }


class Scene:
    """One server called ``main``, its PGDATA, and local repositories ``one``, ``two`` ..."""

    def __init__(
        self, path: Path, *, roles: tuple[str, ...] = ("required",), segment_bytes: int = 1 << 20
    ) -> None:
        self.path = path
        self.segment_bytes = segment_bytes
        self.pgdata = self.make_pgdata("pgdata")
        names = ("one", "two", "three")[: len(roles)]
        self.server = ServerSettings(name="main", data_directory=str(self.pgdata))
        self.settings = Settings(
            servers={"main": self.server},
            repositories={
                name: RepositorySettings(
                    name=name, role=role, store="local", path=str(path / name), retries=0
                )
                for name, role in zip(names, roles, strict=True)
            },
            wal=WalSettings(),
        )
        for name in names:
            self.make_repository(name)

    def make_pgdata(self, name: str, system: int = SYSTEM) -> Path:
        pgdata = self.path / name
        (pgdata / "pg_wal").mkdir(parents=True)
        (pgdata / "global").mkdir()
        control = build(1300, at_0=system, at_228=self.segment_bytes)
        (pgdata / "global" / "pg_control").write_bytes(control)
        return pgdata

    def make_repository(self, name: str) -> None:
        repository = self.settings.repositories[name]
        prepare_store(repository)
        store = open_store(repository, {}, is_anchored=False)
        create_repository(store, NOW)
        add_generation(store, "main", System(SYSTEM, 18, self.segment_bytes, 8192), NOW)

    def mark_copy(self, pgdata: Path, restore_id: str) -> None:
        (pgdata / COPY_MARKER).write_text(json.dumps({"restore_id": restore_id}))

    def write(self, name: str, content: bytes, pgdata: Path | None = None) -> Path:
        path = (pgdata or self.pgdata) / "pg_wal" / name
        path.write_bytes(content)
        return path

    def push(self, path: Path) -> PushResult:
        return push_file(self.settings, self.server, str(path), pgdata="", environment={})

    def push_new(self, name: str, content: bytes) -> PushResult:
        return self.push(self.write(name, content))

    def fetch(self, name: str, destination: Path | None = None) -> FetchResult | None:
        target = destination or self.pgdata / "pg_wal" / "RECOVERYXLOG"
        return fetch_file(self.settings, self.server, name, str(target), pgdata="", environment={})

    def fetched(self, name: str) -> bytes:
        """What a fetch delivers; it must deliver."""
        target = self.pgdata / "pg_wal" / "RECOVERYXLOG"
        target.unlink(missing_ok=True)
        assert self.fetch(name) is not None
        return target.read_bytes()

    def store(self, name: str = "one") -> LocalStore:
        return LocalStore(str(self.path / name))

    def object_path(self, name: str, repository: str = "one") -> Path:
        return self.path / repository / layout.wal_key("main", 1, WalFile(name))

    def archive(self, repository: str = "one") -> WalArchive:
        store = self.store(repository)
        generation = latest_generation(store, "main")
        assert generation is not None
        return WalArchive(store, "main", generation)
