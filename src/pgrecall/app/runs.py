"""``runs list``, ``runs show`` and ``runs verify``: the audit trail of a server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository
from pgrecall.errors import PgrecallError, RepositoryError
from pgrecall.model.findings import Finding, Severity, worst
from pgrecall.model.ids import RUN, check_id
from pgrecall.model.runs import Outcome, RunRecord
from pgrecall.repository.chain_proof import (
    ChainFacts,
    ChainProof,
    Signed,
    copied_heads,
    prove_chains,
    signed_heads,
)
from pgrecall.repository.journal import Journal
from pgrecall.system.clock import SystemClock

_USUAL_HISTORY = timedelta(days=7)


class RunsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``since`` None: the last seven days. ``command`` and ``outcome`` empty: all."""

    since: datetime | None = None
    command: str = ""
    outcome: str = ""


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line: who ran what, where, and what came of it. Bytes are those stored or read."""

    ended_at: datetime
    command: str
    outcome: Outcome
    took_seconds: float
    stored_bytes: int
    user: str
    host: str
    error_code: str
    run_id: str
    repository: str


class RunList(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a server that ended since ``since_at``, oldest first."""

    server: str
    since_at: datetime
    runs: tuple[RunSummary, ...]
    findings: tuple[Finding, ...] = ()


class RunDetails(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one run, and the repository that keeps its record."""

    repository: str
    run: RunRecord


class ChainLine(msgspec.Struct, frozen=True, kw_only=True):
    """One writer's chain: its records, its last one, and how many testify for it.

    ``is_copy``: of another repository's; what is missing at its end was not copied yet.
    ``testimonies``: backups that have signed a head of it, and copies of it elsewhere.
    """

    repository: str
    writer: str
    is_copy: bool
    records: int
    last: int
    last_run: str
    testimonies: int


class RunsVerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``runs verify`` prints. ``unchained``: records from before there were chains."""

    server: str
    result: Severity
    records: int
    unchained: int
    chains: tuple[ChainLine, ...]
    findings: tuple[Finding, ...] = ()


def list_runs(context: RunContext, request: RunsRequest) -> RunList:
    """The runs in all repositories of the server, or in the chosen one.

    A repository that cannot be read is a finding. Raises its error when none can be read, and
    SettingsError.
    """
    since = request.since or SystemClock().now() - _USUAL_HISTORY
    server = context.server.name
    found: list[RunSummary] = []
    findings: list[Finding] = []
    problem: PgrecallError | None = None
    are_read = 0
    for settings in context.repositories:
        name = settings.name
        try:
            opened = OpenedRepository(settings, context.environment)
            records, damaged = Journal(opened.store, server).runs(since)
        except PgrecallError as error:
            problem = problem or error
            findings.append(_unreadable(name, error))
            continue
        are_read += 1
        findings += damaged
        found += [_summary(name, one) for one in records if _is_wanted(one, request)]
    if problem is not None and not are_read:
        raise problem
    found.sort(key=lambda one: (one.ended_at, one.run_id))
    return RunList(server=server, since_at=since, runs=tuple(found), findings=tuple(findings))


def show_run(context: RunContext, run_id: str) -> RunDetails:
    """One run, from the first repository that has it.

    Raises UsageError for what is no run id, RepositoryError where no repository has it, and
    the first error of a repository that could not be asked.
    """
    check_id(run_id, RUN)
    problems: list[PgrecallError] = []
    for settings in context.repositories:
        try:
            opened = OpenedRepository(settings, context.environment)
            record = Journal(opened.store, context.server.name).get(run_id)
        except PgrecallError as error:
            problems.append(error)
            continue
        if record is not None:
            return RunDetails(repository=settings.name, run=record)
    if problems:
        raise problems[0]
    raise RepositoryError(
        f"there is no record of run {run_id} of server {context.server.name!r}",
        hint="'pgrecall runs list --since TIME' shows those there are",
    )


def verify_runs(context: RunContext) -> RunsVerifyResult:
    """Walk the chains in all repositories of the server, or in the chosen one.

    The heads come from the completion records and the copied chains in all of them: a copy
    elsewhere testifies for the chains of the repository in which they were begun. What
    cannot be read is a finding. Raises SettingsError.
    """
    server = context.server.name
    findings: list[Finding] = []
    signed: list[Signed] = []
    places: list[tuple[str, OpenedRepository]] = []
    for name, opened in _opened(context, findings):
        try:
            complete, damaged = opened.catalog(server).survey(with_expired=True)
            signed += signed_heads(complete)
            signed += copied_heads(opened.store, server, opened.identity.repository_id)
        except PgrecallError as error:
            findings.append(_unreadable(name, error))
            continue
        findings += damaged
        places.append((name, opened))
    chains: list[ChainLine] = []
    proofs: list[ChainProof] = []
    for name, opened in places:
        try:
            proof = prove_chains(opened.store, server, opened.identity.repository_id, signed)
        except PgrecallError as error:
            findings.append(_unreadable(name, error))
            continue
        proofs.append(proof)
        findings += proof.findings
        chains += [_chain_line(name, one) for one in proof.chains]
    return RunsVerifyResult(
        server=server,
        result=worst(findings),
        records=sum(one.records for one in proofs),
        unchained=sum(one.unchained for one in proofs),
        chains=tuple(chains),
        findings=tuple(findings),
    )


def _opened(context: RunContext, findings: list[Finding]) -> Iterator[tuple[str, OpenedRepository]]:
    for settings in context.repositories:
        try:
            yield settings.name, OpenedRepository(settings, context.environment)
        except PgrecallError as error:
            findings.append(_unreadable(settings.name, error))


def _unreadable(name: str, error: PgrecallError) -> Finding:
    return Finding(
        severity="fail", code=error.code, subject=name, message=error.message, hint=error.hint
    )


def _is_wanted(record: RunRecord, request: RunsRequest) -> bool:
    is_command = not request.command or record.command == request.command
    return is_command and (not request.outcome or record.outcome == request.outcome)


def _summary(repository: str, record: RunRecord) -> RunSummary:
    return RunSummary(
        ended_at=record.ended_at,
        command=record.command,
        outcome=record.outcome,
        took_seconds=round(record.duration_seconds, 3),
        stored_bytes=record.stored_bytes,
        user=record.user,
        host=record.host,
        error_code=record.error_code,
        run_id=record.run_id,
        repository=repository,
    )


def _chain_line(repository: str, facts: ChainFacts) -> ChainLine:
    return ChainLine(
        repository=repository,
        writer=facts.writer,
        is_copy=facts.is_copy,
        records=facts.records,
        last=facts.last,
        last_run=facts.last_run,
        testimonies=facts.signed,
    )
