"""``verify``: proof that what is stored for a server is whole."""

from __future__ import annotations

import os
from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
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
from pgrecall.verify.plan import Depth
from pgrecall.verify.run import VerifyProof, VerifyRun, VerifyTask
from pgrecall.verify.wal import WalProof


class RepositoryProof(msgspec.Struct, frozen=True, kw_only=True):
    """One repository: what was proven there."""

    repository: str
    role: str
    backups: tuple[BackupProof, ...]
    wal: tuple[WalProof, ...]
    result: Severity
    findings: tuple[Finding, ...]


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``verify`` found; ``result`` is the gravest severity of all repositories.

    ``stored_bytes`` were read and held to their digests (at fast depth: only asked for).
    """

    server: str
    depth: Depth
    verified_at: datetime
    duration_seconds: float
    stored_bytes: int
    result: Severity
    repositories: tuple[RepositoryProof, ...]

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
    proofs = []
    try:
        for settings in context.repositories:
            proof = _verify(context, request, settings, missing)
            if proof is not None:
                proofs.append(proof)
    finally:
        context.progress.done()
    if not proofs and missing:
        raise missing[0]
    read = [one.stored_bytes for proof in proofs for one in proof.backups]
    read += [one.stored_bytes for proof in proofs for one in proof.wal]
    return VerifyResult(
        server=context.server.name,
        depth=request.depth,
        verified_at=verified_at,
        duration_seconds=round(clock.monotonic() - began, 3),
        stored_bytes=sum(read),
        result=worst([finding for proof in proofs for finding in proof.findings]),
        repositories=tuple(proofs),
    )


def _verify(
    context: RunContext,
    request: VerifyRequest,
    settings: RepositorySettings,
    missing: list[PgrecallError],
) -> RepositoryProof | None:
    verify = context.settings.verify
    try:
        opened = OpenedRepository(settings, context.environment)
        generation = latest_generation(opened.store, context.server.name)
        task = VerifyTask(
            server=context.server.name,
            wanted=request.backup_id or "all",
            depth=request.depth,
            workers=verify.workers or 2 * (os.cpu_count() or 1),
            generation=generation.number if generation is not None else None,
        )
        found = VerifyRun(
            task,
            opened.store,
            opened.identity,
            throttle=Throttle(verify.bytes_per_second),
            progress=context.progress,
        ).run()
    except BackupNotFoundError as error:
        missing.append(error)  # backups go to the first required repository only
        return None
    except PgrecallError as error:
        found = VerifyProof(backups=(), wal=(), findings=(_unknown(settings, error),))
    return RepositoryProof(
        repository=settings.name,
        role=settings.role,
        backups=found.backups,
        wal=found.wal,
        result=worst(list(found.findings)),
        findings=found.findings,
    )


def _unknown(settings: RepositorySettings, error: PgrecallError) -> Finding:
    return Finding(
        severity="fail" if settings.role == "required" else "warn",
        code=error.code,
        subject=settings.name,
        message=f"not verified: {error.message}",
        hint=error.hint or "mend what keeps it from being read, and verify again",
    )
