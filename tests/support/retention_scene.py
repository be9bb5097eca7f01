"""A server in memory whose backups are tiny and whose clock the test moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from pgrecall.model.ids import BACKUP, new_id
from pgrecall.model.lsn import Lsn
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
from pgrecall.model.policies import Policy
from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.identity import System, add_generation, create_repository
from pgrecall.repository.leases import LeaseKind, LeaseRecord, new_lease
from pgrecall.repository.manifests import ManifestWriter
from pgrecall.repository.records import encode_record
from pgrecall.repository.retention_log import append_any, read_state
from pgrecall.retention.fates import ExpiryPlan
from pgrecall.retention.plan import ExpiryWishes
from pgrecall.retention.purge import Purged, PurgeRun, PurgeTask
from pgrecall.retention.purge_plan import PurgePlan
from pgrecall.retention.run import Author, ExpireRun, bring_back
from pgrecall.store.base import Store
from pgrecall.store.memory import MemoryStore

SIZE = 16 << 20
SYSTEM = 7_000_000_000_000_000_077
GRACE = timedelta(days=3)
PACK_BYTES = 64


class RetentionScene:
    """One server ``main``; each hour it writes one segment of timeline 1.

    In memory, or in ``store``, whose clock nobody moves.
    """

    def __init__(self, store: Store | None = None) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.memory = MemoryStore(now=lambda: self.now)
        self.store: Store = store or self.memory
        self.whole: Store = self.store
        self.identity = create_repository(self.store, self.now)
        self.generation = add_generation(
            self.store, "main", System(SYSTEM, 18, SIZE, 8192), self.now
        )
        self.hours = 0
        self.runs = 0

    @property
    def catalog(self) -> Catalog:
        return Catalog(self.store, "main")

    # --- what a server does -----------------------------------------------------------

    def days(self, count: int) -> list[str]:
        """A backup in the first hour of each of so many days; their ids."""
        found = []
        for _ in range(count):
            found.append(self.backup())
            self.work(23)
        return found

    def work(self, hours: int) -> None:
        """Time goes by, and WAL is archived."""
        for _ in range(hours):
            self.now += timedelta(hours=1)
            name = segment_name(1, self.hours * SIZE, SIZE)
            self.store.put(layout.wal_key("main", 1, WalFile(name)), [b"w" * 10])
            self.hours += 1

    def wait(self, time: timedelta) -> None:
        """Time goes by, and nothing else."""
        self.now += time

    def backup(
        self,
        refers_to: dict[str, list[int]] | None = None,
        *,
        completes: bool = True,
        packs: int = 2,
    ) -> str:
        """A backup of two packs, and of packs of older ones; the segment of its WAL follows."""
        backup_id = new_id(BACKUP, self.now)
        started = self.hours * SIZE
        entries = []
        for number in range(1, packs + 1):
            self.store.put(layout.pack_key("main", backup_id, number), [b"p" * PACK_BYTES])
            entries.append(PackEntry(number, PACK_BYTES, "00" * 32))
        for owner, numbers in (refers_to or {}).items():
            entries += [PackEntry(number, PACK_BYTES, "00" * 32, owner) for number in numbers]
        writer = ManifestWriter(self.store, "main", backup_id, self.identity.repository_id)
        writer.add_packs(entries)
        run = Run(0, 0, 0, 0, 1)
        writer.add_files([FileEntry("one", "f", 0o600, 0, 0, 0, 1, 0, (run,))])
        stored = writer.finish(self._root(backup_id, started, writer))
        if completes:
            self.work(1)
            record = self._completion(backup_id, started, packs, tuple(refers_to or {}))
            self.catalog.add(
                msgspec.structs.replace(
                    record,
                    manifest_bytes=stored.root_bytes,
                    manifest_digest=stored.root_digest,
                )
            )
        return backup_id

    def _root(self, backup_id: str, start: int, writer: ManifestWriter) -> ManifestRoot:
        facts = ServerFactsRecord(
            version_num=180006, version="18.6", catalog_version=1, block_bytes=8192,
            relation_segment_bytes=1 << 30, segment_bytes=SIZE, data_checksums=1,
            data_directory="/pgdata", max_connections=1, max_worker_processes=1,
            max_wal_senders=1, max_prepared_transactions=0, max_locks_per_transaction=64,
        )  # fmt: skip
        wal = WalRange(1, str(Lsn(start + 1000)), str(Lsn(start + 6000)))
        return ManifestRoot(
            backup_id=backup_id, repository_id=self.identity.repository_id, digest="blake3",
            kind="full", source="local", system_identifier=str(SYSTEM), backup_label=b"",
            tablespace_map=b"", wal_range=wal, server=facts, parts=tuple(writer.parts),
        )  # fmt: skip

    def _completion(
        self, backup_id: str, start: int, packs: int, refers_to: tuple[str, ...]
    ) -> Completion:
        totals = Totals(
            files=1, directories=0, raw_bytes=1, stored_bytes=packs * PACK_BYTES, packs=packs
        )
        return Completion(
            backup_id=backup_id, repository_id=self.identity.repository_id, server="main",
            generation=1, system_identifier=str(SYSTEM),
            kind="incremental" if refers_to else "full", source="local", version_num=180006,
            segment_bytes=SIZE, timeline=1, start_lsn=str(Lsn(start + 1000)),
            stop_lsn=str(Lsn(start + 6000)), started_at=self.now, stopped_at=self.now,
            completed_at=self.now, duration_seconds=1.0, label="pgrecall", compression="none",
            has_wal=False, totals=totals, manifest_bytes=0, manifest_digest="",
            references=refers_to,
        )  # fmt: skip

    # --- what runs do -----------------------------------------------------------------

    def author(self) -> Author:
        self.runs += 1
        return Author(f"r-20260101T000000Z-{self.runs:04d}", self.now, self.now)

    def expire_run(self, author: Author | None = None) -> ExpireRun:
        return ExpireRun(self.store, "main", "one", author or self.author())

    def wishes(self, policy: Policy, *chosen: str) -> ExpiryWishes:
        return ExpiryWishes(policy=policy, now=self.now, chosen=frozenset(chosen))

    def expire(self, policy: Policy, *chosen: str) -> ExpiryPlan:
        """As the command does with --yes."""
        run = self.expire_run()
        plan = run.plan(self.wishes(policy, *chosen))
        if plan.changes:
            run.carry_out(plan)
        return plan

    def undo(self, wanted: str) -> None:
        bring_back(self.store, "main", wanted, self.author())

    def purge_run(self) -> PurgeRun:
        task = PurgeTask(
            server="main", repository="one", grace=GRACE, longest_pause=timedelta(days=45)
        )
        return PurgeRun(self.store, task, self.author())

    def purge(self) -> tuple[PurgePlan, Purged | None]:
        """As the command does with --yes."""
        run = self.purge_run()
        plan = run.plan()
        return plan, run.carry_out(plan) if plan.changes else None

    def hold(self, item_id: str, until: datetime | None = None) -> None:
        self.catalog.get(item_id)
        record = self.author().record(kind="hold", items={item_id: "why not"}, until=until)
        append_any(self.store, "main", record)

    def release(self, item_id: str) -> None:
        append_any(
            self.store, "main", self.author().record(kind="release", items={item_id: "released"})
        )

    def lease(self, kind: LeaseKind, *items: str) -> LeaseRecord:
        """That of a run on another host, which renews it no more: as if it was killed."""
        record = new_lease(kind, items, lasts_seconds=900, run_id="r-other")
        key = layout.lease_key("main", record.lease_id, 1)
        assert self.store.put(key, [encode_record(msgspec.to_builtins(record))])
        return record

    # --- what there is ----------------------------------------------------------------

    def listed(self) -> list[str]:
        complete, findings = self.catalog.survey()
        assert not findings
        return [backup.backup_id for backup in complete]

    def segments(self) -> set[int]:
        """Numbers of the segments that are stored."""
        prefix = layout.wal_prefix("main", 1, 1)
        return {
            WalFile(info.key.rpartition("/")[2]).start(SIZE) // SIZE
            for info in self.whole.list(prefix)
        }

    def visible_segments(self) -> set[int]:
        """Those that have not expired."""
        hidden = read_state(self.whole, "main").wal
        return {
            number
            for number in self.segments()
            if not any(span.start <= number * SIZE < span.end for span in hidden)
        }

    def objects_of(self, backup_id: str) -> list[str]:
        prefix = layout.backup_prefix("main", backup_id)
        return [info.key.removeprefix(prefix) for info in self.whole.list(prefix)]

    def require_whole(self, backup_id: str) -> None:
        """A kept backup: every object that it needs is there, and its WAL."""
        catalog = Catalog(self.whole, "main")
        completion = catalog.get(backup_id)
        manifest = catalog.manifest(completion)
        for pack in manifest.packs():
            key = layout.pack_key("main", pack.owner or backup_id, pack.number)
            assert self.whole.head(key) is not None, (backup_id, key)
        assert len(list(manifest.files())) == 1
        first = Lsn.parse(completion.start_lsn) // SIZE
        last = (Lsn.parse(completion.stop_lsn) - 1) // SIZE
        assert set(range(first, last + 1)) <= self.visible_segments(), backup_id

    def require_sealed(self) -> None:
        """Every completion record that is still there opens a whole backup."""
        for backup_id in self.listed():
            self.require_whole(backup_id)
