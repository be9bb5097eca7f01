"""``verify``: proof that what is stored for a server is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository
from pgrecall.app.requests import VerifyRequest
from pgrecall.app.verifying_sets import verify_set
from pgrecall.errors import BackupNotFoundError, PgrecallError
from pgrecall.further_errors import SetNotFoundError
from pgrecall.model.findings import Finding, Severity, worst
from pgrecall.model.ids import SET, kind_of
from pgrecall.model.runs import RunFacts
from pgrecall.repository.identity import generation_numbers
from pgrecall.settings import RepositorySettings
from pgrecall.system.clock import SystemClock
from pgrecall.system.throttle import Throttle
from pgrecall.verify.backups import BackupProof
from pgrecall.verify.plan import ALL, Depth
from pgrecall.verify.run import VerifyProof, VerifyRun, VerifyTask
from pgrecall.verify.wal import WalProof


class VerifiedBackup(msgspec.Struct, frozen=True, kw_only=True):
    """One backup in one repository; ``raw_bytes`` and ``pages_checked`` only at full depth.

    ``is_done`` False: the store failed, or the run was interrupted, before its end.
    """

    repository: str
    backup_id: str
    result: Severity
    packs: int
    files: int
    stored_bytes: int
    raw_bytes: int
    pages_checked: int
    is_done: bool = True


class VerifiedWal(msgspec.Struct, frozen=True, kw_only=True):
    """The WAL of one generation in one repository."""

    repository: str
    generation: int
    result: Severity
    files: int
    stored_bytes: int


class Damaged(msgspec.Struct, frozen=True, kw_only=True):
    """A damaged or missing object; ``backups``: those that need it (its blast radius)."""

    repository: str
    key: str
    code: str
    message: str
    backups: tuple[str, ...] = ()


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``verify`` found; ``result`` is the gravest severity.

    ``stored_bytes`` were read and held to their digests (at fast depth: only asked for);
    ``records`` are the other objects that were read. The subject of a finding begins
    with its repository. ``skipped_backups``: proven by the run that this one went on from.
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
    damage: tuple[Damaged, ...] = ()
    skipped_backups: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=self.result, stored_bytes=self.stored_bytes)


def run_verify(context: RunContext, request: VerifyRequest) -> VerifyResult:
    """Verify in the chosen repository, or in each of the server's.

    A backup that is damaged is marked in its repository, so that no plan chooses it; one
    that is whole again loses its mark. A repository that cannot be reached, or no longer,
    is a finding, and the others are verified: for a best-effort one a warning. Raises
    SettingsError, and BackupNotFoundError when no repository has the backup that was named.
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
        stored_bytes=sum(one.read_bytes for proof in proofs.values() for one in proof.backups)
        + sum(one.stored_bytes for one in wal),
        records=sum(proof.records for proof in proofs.values()),
        result=worst(list(findings)),
        backups=backups,
        wal=wal,
        damage=tuple(one for name, proof in proofs.items() for one in _damaged(name, proof)),
        skipped_backups=tuple(one for proof in proofs.values() for one in proof.skipped),
        findings=findings,
    )


def _verify(
    context: RunContext,
    request: VerifyRequest,
    settings: RepositorySettings,
    missing: list[PgrecallError],
) -> VerifyProof | None:
    try:
        opened = OpenedRepository(settings, context.environment)
        proof = _proof(context, opened, request)
    except (BackupNotFoundError, SetNotFoundError) as error:
        missing.append(error)  # backups go to the first required repository only
        return None
    except PgrecallError as error:
        return VerifyProof(findings=(unknown_finding(settings, error, "not verified"),))
    if proof.stopped is None:
        return proof
    unknown = unknown_finding(settings, proof.stopped, "not all of it was verified")
    return msgspec.structs.replace(proof, findings=(*proof.findings, unknown))


def _proof(context: RunContext, opened: OpenedRepository, request: VerifyRequest) -> VerifyProof:
    def verify(wanted: str) -> VerifyProof:
        return verify_opened(
            context, opened, wanted=wanted, depth=request.depth, resume=request.resume
        )

    if kind_of(request.backup_id) == SET:
        return verify_set(opened, context.server.name, request.backup_id, verify)
    return verify(request.backup_id or ALL)


def verify_opened(
    context: RunContext,
    opened: OpenedRepository,
    *,
    wanted: str,
    depth: Depth,
    resume: bool = False,
    is_partial: bool = False,
) -> VerifyProof:
    """Verify in one repository that is open; raises BackupNotFoundError, StoreError."""
    verify = context.settings.verify
    numbers = generation_numbers(opened.store, context.server.name)
    task = VerifyTask(
        server=context.server.name,
        run_id=context.run_id,
        wanted=wanted,
        depth=depth,
        workers=verify.workers or 2 * (os.cpu_count() or 1),
        generation=numbers[-1] if numbers else None,
        resume=resume,
        is_partial=is_partial,
    )
    run = VerifyRun(
        task,
        opened.store,
        opened.identity,
        clock=SystemClock(),
        throttle=Throttle(verify.bytes_per_second),
        progress=context.progress,
    )
    with using(context, opened, "verify", [wanted] if wanted != ALL else []):
        return run.run()


def _damaged(repository: str, proof: VerifyProof) -> Iterator[Damaged]:
    owners: dict[str, list[str]] = {}
    for backup in proof.backups:
        for one in backup.damage:
            owners.setdefault(one.key, []).append(backup.backup_id)
    seen: set[tuple[str, str, str]] = set()
    for one in proof.damage:
        place = (one.key, one.code, one.message)
        if place not in seen:
            seen.add(place)
            yield Damaged(
                repository=repository,
                key=one.key,
                code=one.code,
                message=one.message,
                backups=proof.referring.get(one.key) or tuple(sorted(owners.get(one.key, ()))),
            )


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
        is_done=proof.is_done,
    )


def _wal(repository: str, proof: WalProof) -> VerifiedWal:
    return VerifiedWal(
        repository=repository,
        generation=proof.generation,
        result=worst(list(proof.findings)),
        files=proof.files,
        stored_bytes=proof.stored_bytes,
    )


def unknown_finding(settings: RepositorySettings, error: PgrecallError, what: str) -> Finding:
    """For a repository that failed: a failure, or for a best-effort one a warning."""
    return Finding(
        severity="fail" if settings.role == "required" else "warn",
        code=error.code,
        subject="the repository",
        message=f"{what}: {error.message}",
        hint=error.hint or "mend what keeps it from being read, and verify again",
    )
