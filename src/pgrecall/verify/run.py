"""Verify a server's backups and WAL in one repository, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pgrecall.model.findings import Finding
from pgrecall.model.manifest import Completion
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.identity import RepositoryIdentity, read_generation
from pgrecall.repository.retention_log import read_state
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.store.base import Store
from pgrecall.system.progress import Progress
from pgrecall.system.throttle import Throttle
from pgrecall.verify.backups import BackupProof, BackupVerifier
from pgrecall.verify.plan import ALL, Depth, chosen_backups
from pgrecall.verify.records import damaged_records
from pgrecall.verify.wal import WalProof, WalVerifier


class VerifyTask(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be proven: ``wanted`` is the id of a backup, or ``all``."""

    server: str
    wanted: str = ALL
    depth: Depth
    workers: int
    generation: int | None = None


class VerifyProof(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it. ``records``: objects besides backups and WAL that were read.

    ``findings``: of the catalog, then of records, backups and WAL.
    """

    backups: tuple[BackupProof, ...]
    wal: tuple[WalProof, ...]
    records: int = 0
    findings: tuple[Finding, ...]


class VerifyRun:
    """One verification of one repository; reads only."""

    def __init__(
        self,
        task: VerifyTask,
        store: Store,
        identity: RepositoryIdentity,
        *,
        throttle: Throttle,
        progress: Progress,
    ) -> None:
        self._task = task
        self._store = store
        self._identity = identity
        self._throttle = throttle
        self._progress = progress

    def run(self) -> VerifyProof:
        """Prove everything; damage becomes findings.

        Raises StoreError: what could not be read is neither whole nor damaged.
        BackupNotFoundError: there is no such backup.
        """
        task = self._task
        catalog = Catalog(self._store, task.server)
        self._progress.phase("catalog")
        complete, damaged = catalog.survey()
        wants_all = task.wanted == ALL
        chosen = chosen_backups(complete, task.wanted)
        findings = list(damaged) if wants_all else []
        records = 0
        if wants_all:
            self._progress.phase("records")
            records, problems = damaged_records(
                self._store, task.server, self._identity, task.workers
            )
            findings += problems
        self._progress.phase("backups")
        self._progress.start(sum(backup.totals.stored_bytes for backup in chosen))
        verifier = BackupVerifier(catalog, task.depth, self._throttle, task.workers)
        backups = [verifier.verify(backup, self._progress.advance) for backup in chosen]
        self._progress.phase("WAL")
        wal = [self._wal(number, chosen) for number in self._generations(chosen)]
        findings += [finding for proof in backups for finding in proof.findings]
        findings += [finding for proof in wal for finding in proof.findings]
        return VerifyProof(
            backups=tuple(backups), wal=tuple(wal), records=records, findings=tuple(findings)
        )

    def _generations(self, chosen: Sequence[Completion]) -> list[int]:
        """Those of the backups; where there are none, the one that is archived to now."""
        numbers = {backup.generation for backup in chosen}
        if not numbers and self._task.generation is not None:
            numbers = {self._task.generation}
        return sorted(numbers)

    def _wal(self, number: int, chosen: Sequence[Completion]) -> WalProof:
        task = self._task
        generation = read_generation(self._store, task.server, number)
        archive = WalArchive(self._store, task.server, generation)
        verifier = WalVerifier(archive, self._identity, task.depth, self._throttle, task.workers)
        backups = [backup for backup in chosen if backup.generation == number]
        verifier.expect_expired(read_state(self._store, task.server).hidden_wal(number))
        is_whole = task.wanted == ALL
        return verifier.verify(backups, self._progress.advance, is_whole=is_whole)
