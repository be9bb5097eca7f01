"""Verify a server's backups and WAL in one repository, phase by phase."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from pgrecall.errors import (
    CorruptObjectError,
    ObjectMissingError,
    PgrecallError,
    ReportedError,
    RepositoryError,
    StoreError,
)
from pgrecall.model.damage import DIGESTS_DAMAGED, DamagedObject
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import Completion
from pgrecall.model.verifications import Verification
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.dump_catalog import AnyCompletion, DumpCatalog
from pgrecall.repository.identity import RepositoryIdentity, read_generation
from pgrecall.repository.origins import accepted_ids
from pgrecall.repository.retention_log import read_state
from pgrecall.repository.verifications import Verifications
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.store.base import Store
from pgrecall.system.clock import Clock
from pgrecall.system.progress import Progress
from pgrecall.system.throttle import Throttle
from pgrecall.verify.backups import BackupProof, BackupVerifier
from pgrecall.verify.plan import ALL, Depth, chosen_backups, chosen_dumps
from pgrecall.verify.progress import ProgressLog, resumable
from pgrecall.verify.records import damaged_records
from pgrecall.verify.wal import WalProof, WalVerifier

_log = logging.getLogger(__name__)


class VerifyTask(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be proven: ``wanted`` is the id of a backup, or ``all``.

    ``resume``: go on where the last verification of the same was interrupted.
    ``is_partial``: backups alone, without WAL; and nothing is recorded but marks.
    """

    server: str
    run_id: str
    wanted: str = ALL
    depth: Depth
    workers: int
    generation: int | None = None
    resume: bool = False
    is_partial: bool = False


class VerifyProof(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it. ``records``: objects besides backups and WAL that were read.

    ``findings``: of the catalog, then of records, backups and WAL. ``damage``: every object
    that is damaged or missing; ``referring``: by its key, the backups that need it.
    ``stopped``: what kept the rest from being verified. ``resumed``: the run that it goes
    on from; ``skipped``: the backups that were proven by that.
    """

    backups: tuple[BackupProof, ...] = ()
    wal: tuple[WalProof, ...] = ()
    records: int = 0
    damage: tuple[DamagedObject, ...] = ()
    referring: dict[str, tuple[str, ...]] = {}
    findings: tuple[Finding, ...] = ()
    stopped: PgrecallError | None = None
    resumed: str = ""
    skipped: tuple[str, ...] = ()


class VerifyRun:
    """One verification of one repository; writes marks of damage, and how far it came."""

    def __init__(
        self,
        task: VerifyTask,
        store: Store,
        identity: RepositoryIdentity,
        *,
        clock: Clock,
        throttle: Throttle,
        progress: Progress,
    ) -> None:
        self._task = task
        self._store = store
        self._identity = identity
        self._clock = clock
        self._throttle = throttle
        self._progress = progress
        self._catalog = Catalog(store, task.server)
        self._log: ProgressLog
        self._findings: list[Finding] = []
        self._damage: list[DamagedObject] = []
        self._backups: list[BackupProof] = []
        self._wal: list[WalProof] = []
        self._skipped: list[str] = []
        self._records = 0
        self._resumed = ""

    def run(self) -> VerifyProof:
        """Prove everything; damage becomes findings, and marks of the backups.

        A store that fails ends it: what was found until then comes back, with what
        ``stopped`` it. Raises BackupNotFoundError: there is no such backup.
        """
        stopped: PgrecallError | None = None
        self._progress.phase("catalog")
        try:
            complete, damaged = self._catalog.survey()
            chosen = chosen_backups(complete, self._task.wanted)
            dumps, broken = DumpCatalog(self._store, self._task.server).survey()
            chosen_too = chosen_dumps(dumps, self._task.wanted)
            with self._recorded():
                self._verify([*chosen, *chosen_too], [*damaged, *broken])
            referring = self._mark_others(complete)
        except StoreError as error:
            stopped, referring = error, {}
        return VerifyProof(
            backups=tuple(self._backups),
            wal=tuple(self._wal),
            records=self._records,
            damage=tuple(self._damage),
            referring=referring,
            findings=tuple(self._findings),
            stopped=stopped,
            resumed=self._resumed,
            skipped=tuple(self._skipped),
        )

    # --- phases ----------------------------------------------------------------------

    def _verify(self, chosen: Sequence[AnyCompletion], damaged: Sequence[Finding]) -> None:
        if self._task.wanted == ALL:
            self._take(damaged, _damaged_completions(self._task.server, damaged))
            self._verify_records()
        self._verify_backups(chosen)
        if self._task.is_partial:
            return
        backups = [one for one in chosen if isinstance(one, Completion)]
        if chosen and not backups and self._task.wanted != ALL:
            return  # a dump, which needs no WAL
        self._progress.phase("WAL")
        for number in self._generations(backups):
            self._verify_wal(number, backups)

    def _verify_records(self) -> None:
        self._progress.phase("records")
        task = self._task
        proof = damaged_records(
            self._store, task.server, self._identity, task.workers, self._throttle
        )
        self._records = proof.records
        self._take(proof.findings(), proof.damage)

    def _verify_backups(self, chosen: Sequence[AnyCompletion]) -> None:
        self._progress.phase("backups")
        left = [one for one in chosen if not self._log.is_proven(one.backup_id)]
        self._skipped = [one.backup_id for one in chosen if one not in left]
        self._progress.start(sum(backup.totals.stored_bytes for backup in left))
        marked = self._catalog.damage.damaged()
        verifier = BackupVerifier(
            self._catalog,
            self._task.depth,
            self._throttle,
            self._task.workers,
            accepted=self._accepted(),
        )
        for backup in left:
            skips = self._log.proven_packs(backup.backup_id)
            try:
                proof = verifier.verify(backup, self._progress.advance, skips=skips)
            except ReportedError:
                self._take_backup(verifier.so_far(skips=skips))
                raise
            self._take_backup(proof)
            harmful = [one for one in proof.damage if one.code != DIGESTS_DAMAGED]
            if isinstance(backup, Completion) and (harmful or backup.backup_id in marked):
                self._mark(backup.backup_id, harmful)

    def _take_backup(self, proof: BackupProof) -> None:
        self._backups.append(proof)
        self._findings += proof.findings
        self._damage += proof.damage
        self._log.backup(proof)

    def _generations(self, chosen: Sequence[Completion]) -> list[int]:
        """Those of the backups; where there are none, the one that is archived to now."""
        numbers = {backup.generation for backup in chosen}
        if not numbers and self._task.generation is not None:
            numbers = {self._task.generation}
        return sorted(numbers)

    def _verify_wal(self, number: int, chosen: Sequence[Completion]) -> None:
        task = self._task
        try:
            generation = read_generation(self._store, task.server, number)
        except (ObjectMissingError, CorruptObjectError) as error:
            key = layout.generation_key(task.server, number)
            if key not in {one.key for one in self._damage}:
                one = DamagedObject(key=key, code="record-damaged", message=error.message)
                self._take([_record_lost(one)], [one])
            return
        archive = WalArchive(self._store, task.server, generation)
        verifier = WalVerifier(archive, self._identity, task.depth, self._throttle, task.workers)
        verifier.expect_expired(read_state(self._store, task.server).hidden_wal(number))
        backups = [backup for backup in chosen if backup.generation == number]
        try:
            verifier.verify(
                backups,
                self._progress.advance,
                is_whole=task.wanted == ALL,
                skips=self._log.proven_wal(number),
            )
        finally:
            proof = verifier.so_far()
            self._wal.append(proof)
            self._findings += proof.findings
            self._damage += proof.damage
            self._log.wal(proof)

    # --- records -----------------------------------------------------------------------

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Have it written how far the verification comes, however it ends."""
        task, now = self._task, self._clock.now()
        records = Verifications(self._store, task.server)
        earlier = resumable(records, task.wanted, task.depth) if task.resume else None
        self._resumed = earlier.run_id if earlier is not None else ""
        record = Verification(
            number=1,
            run_id=task.run_id,
            server=task.server,
            wanted=task.wanted,
            depth=task.depth,
            started_at=now,
            recorded_at=now,
            is_complete=False,
            result="ok",
        )
        self._log = ProgressLog(records, self._clock, record, earlier)
        is_complete = False
        try:
            yield
            is_complete = True
        finally:
            try:
                if not task.is_partial:
                    self._log.write(is_complete=is_complete)
            except StoreError as error:
                _log.warning("how far the verification came is not recorded: %s", error)

    def _take(self, findings: Sequence[Finding], damage: Sequence[DamagedObject]) -> None:
        self._findings += findings
        self._damage += damage
        self._log.findings(list(findings))

    def _accepted(self) -> frozenset[str]:
        try:
            return accepted_ids(self._store, self._identity)
        except CorruptObjectError:  # found among the records
            return frozenset({self._identity.repository_id})

    # --- marks -------------------------------------------------------------------------

    def _mark(self, backup_id: str, damage: Sequence[DamagedObject]) -> None:
        try:
            self._catalog.damage.settle(
                backup_id,
                damage,
                self._task.depth,
                run_id=self._task.run_id,
                now=self._clock.now(),
            )
        except StoreError as error:
            finding = Finding(
                severity="warn",
                code="mark-not-written",
                subject=backup_id,
                message=f"what was found cannot be recorded in the repository: {error.message}",
                hint="until it is, a restore may choose this backup: verify with credentials that"
                " can write",
            )
            self._take([finding], [])

    def _mark_others(self, complete: Sequence[Completion]) -> dict[str, tuple[str, ...]]:
        """Mark every other backup that refers to a damaged pack; by key, who refers to it."""
        own = layout.backups_prefix(self._task.server)
        packs = {
            one.key: one
            for one in self._damage
            if one.code.startswith("pack-") and one.key.startswith(own)
        }
        if not packs:
            return {}
        verified = {proof.backup_id for proof in self._backups if proof.is_done}
        referring: dict[str, list[str]] = {key: [] for key in packs}
        for backup in complete:
            needed = packs.keys() & self._pack_keys(backup)
            for key in needed:
                referring[key].append(backup.backup_id)
            if needed and backup.backup_id not in verified:
                known = self._catalog.damage.newest(backup.backup_id)
                before = known.objects if known is not None and known.state == "damaged" else ()
                self._mark(backup.backup_id, [*before, *(packs[key] for key in sorted(needed))])
        return {key: tuple(ids) for key, ids in referring.items()}

    def _pack_keys(self, backup: Completion) -> set[str]:
        try:
            entries = self._catalog.manifest(backup).packs()
        except (CorruptObjectError, ObjectMissingError, RepositoryError):
            return set()  # it has a finding of its own, or a verification of all gives it one
        server = self._task.server
        return {
            layout.pack_key(server, entry.owner or backup.backup_id, entry.number)
            for entry in entries
        }


def _damaged_completions(server: str, findings: Sequence[Finding]) -> list[DamagedObject]:
    """The completion records behind the findings of the catalog."""
    return [
        DamagedObject(
            key=layout.complete_key(server, finding.subject),
            code="completion-damaged",
            message=finding.message,
        )
        for finding in findings
    ]


def _record_lost(one: DamagedObject) -> Finding:
    return Finding(
        severity="fail",
        code=one.code,
        subject=one.key,
        message=one.message,
        hint="nothing of this generation can be restored without it: pgrecall repair",
    )
