"""``verify``: proof that what is stored for a server is whole."""

from __future__ import annotations

import os
from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository
from pgrecall.app.requests import VerifyRequest
from pgrecall.errors import BackupNotFoundError, PgrecallError
from pgrecall.model.findings import Finding, Severity, worst
from pgrecall.model.runs import RunFacts
from pgrecall.repository.identity import latest_generation
from pgrecall.settings import RepositorySettings
from pgrecall.system.clock import SystemClock
from pgrecall.system.throttle import Throttle
from pgrecall.verify.backups import BackupProof
from pgrecall.verify.plan import ALL, Depth
from pgrecall.verify.run import VerifyProof, VerifyRun, VerifyTask
from pgrecall.verify.wal import WalProof


class VerifiedBackup(msgspec.Struct, frozen=True, kw_only=True):
    """One backup in one repository; ``raw_bytes`` and ``pages_checked`` only at full depth."""

    repository: str
    backup_id: str
    result: Severity
    packs: int
    files: int
    stored_bytes: int
    raw_bytes: int
    pages_checked: int


class VerifiedWal(msgspec.Struct, frozen=True, kw_only=True):
    """The WAL of one generation in one repository."""

    repository: str
    generation: int
    result: Severity
    files: int
    stored_bytes: int


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``verify`` found; ``result`` is the gravest severity.

    ``stored_bytes`` were read and held to their digests (at fast depth: only asked for);
    ``records`` are the other objects that were read. The subject of a finding begins
    with its repository.
    """

    server: str
    depth: Depth
    verified_at: datetime
    duration_seconds: float
    stored_bytes: int
    records: int
    result: Severity
    backups: tuple[VerifiedBackup, ...] = ()
    wal: tuple[VerifiedWal, ...] = ()
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=self.result, stored_bytes=self.stored_bytes)


def run_verify(context: RunContext, request: VerifyRequest) -> VerifyResult:
    """Verify in the chosen repository, or in each of the server's; nothing is changed.

    A repository that cannot be reached is a finding, and the others are verified: for
    a best-effort one a warning. Raises SettingsError, and BackupNotFoundError when no
    repository has the backup that was named.
    """
    clock = SystemClock()
    began, verified_at = clock.monotonic(), clock.now()
    missing: list[PgrecallError] = []
    proofs: dict[str, VerifyProof] = {}
    try:
        for settings in context.repositories:
            proof = _verify(context, request, settings, missing)
            if proof is not None:
                proofs[settings.name] = proof
    finally:
        context.progress.done()
    if not proofs and missing:
        raise missing[0]
    backups = tuple(_backup(name, one) for name, proof in proofs.items() for one in proof.backups)
    wal = tuple(_wal(name, one) for name, proof in proofs.items() for one in proof.wal)
    findings = tuple(
        msgspec.structs.replace(finding, subject=f"{name}: {finding.subject}")
        for name, proof in proofs.items()
        for finding in proof.findings
    )
    return VerifyResult(
        server=context.server.name,
        depth=request.depth,
        verified_at=verified_at,
        duration_seconds=round(clock.monotonic() - began, 3),
        stored_bytes=sum(one.stored_bytes for one in backups)
        + sum(one.stored_bytes for one in wal),
        records=sum(proof.records for proof in proofs.values()),
        result=worst(list(findings)),
        backups=backups,
        wal=wal,
        findings=findings,
    )


def _verify(
    context: RunContext,
    request: VerifyRequest,
    settings: RepositorySettings,
    missing: list[PgrecallError],
) -> VerifyProof | None:
    verify = context.settings.verify
    try:
        opened = OpenedRepository(settings, context.environment)
        generation = latest_generation(opened.store, context.server.name)
        task = VerifyTask(
            server=context.server.name,
            wanted=request.backup_id or ALL,
            depth=request.depth,
            workers=verify.workers or 2 * (os.cpu_count() or 1),
            generation=generation.number if generation is not None else None,
        )
        run = VerifyRun(
            task,
            opened.store,
            opened.identity,
            throttle=Throttle(verify.bytes_per_second),
            progress=context.progress,
        )
        used = [request.backup_id] if request.backup_id else []
        with using(context, opened, "verify", used):
            return run.run()
    except BackupNotFoundError as error:
        missing.append(error)  # backups go to the first required repository only
        return None
    except PgrecallError as error:
        return VerifyProof(backups=(), wal=(), findings=(_unknown(settings, error),))


def _backup(repository: str, proof: BackupProof) -> VerifiedBackup:
    return VerifiedBackup(
        repository=repository,
        backup_id=proof.backup_id,
        result=worst(list(proof.findings)),
        packs=proof.packs,
        files=proof.files,
        stored_bytes=proof.stored_bytes,
        raw_bytes=proof.raw_bytes,
        pages_checked=proof.pages_checked,
    )


def _wal(repository: str, proof: WalProof) -> VerifiedWal:
    return VerifiedWal(
        repository=repository,
        generation=proof.generation,
        result=worst(list(proof.findings)),
        files=proof.files,
        stored_bytes=proof.stored_bytes,
    )


def _unknown(settings: RepositorySettings, error: PgrecallError) -> Finding:
    return Finding(
        severity="fail" if settings.role == "required" else "warn",
        code=error.code,
        subject="the repository",
        message=f"not verified: {error.message}",
        hint=error.hint or "mend what keeps it from being read, and verify again",
    )
