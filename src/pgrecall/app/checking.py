"""``check``: proof that server, archive and repositories do what they must."""

from __future__ import annotations

import os
from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.app.requests import CheckRequest
from pgrecall.check.plan import Expected
from pgrecall.check.run import CheckRun, CheckTools
from pgrecall.model.findings import Finding, Severity, worst
from pgrecall.model.runs import RunFacts
from pgrecall.postgres.connection import connect
from pgrecall.postgres.replication import ReplicationSession
from pgrecall.repository.opening import open_store
from pgrecall.store.bucket_questions import ask_bucket
from pgrecall.system.clock import SystemClock
from pgrecall.wal.commands import archive_command


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``check`` found; ``result`` is the gravest severity.

    ``segment`` is the WAL segment that the check finished and followed, empty
    when it forced no switch.
    """

    server: str
    repositories: tuple[str, ...]
    checked_at: datetime
    duration_seconds: float
    segment: str
    result: Severity
    findings: tuple[Finding, ...]

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=self.result)


def run_check(context: RunContext, request: CheckRequest) -> CheckResult:
    """Check the chosen server and its repositories (the chosen one only, if one was).

    What does not work is a finding, with its cure; nothing but a WAL switch is
    changed, and no probe stays in a repository. Raises SettingsError.
    """
    server, repositories = context.server, context.repositories
    clock = SystemClock()
    began, checked_at = clock.monotonic(), clock.now()
    config = os.path.abspath(context.settings.path) if context.settings.path else ""
    expected = Expected(
        server=server.name,
        config=config,
        archive_command=archive_command(pgrecall_command(), config, server.name),
        data_directory=server.data_directory,
        switches=request.switch_wal,
        streams=server.source == "stream",
    )
    tools = CheckTools(
        connect=lambda: connect(
            server,
            application_name="pgrecall check",
            purpose="check",
            environment=context.environment,
        ),
        connect_stream=lambda: ReplicationSession(
            server, application_name="pgrecall check", environment=context.environment
        ),
        open_store=lambda settings: open_store(settings, context.environment),
        ask_bucket=lambda settings: ask_bucket(settings, context.environment),
        progress=context.progress,
        clock=clock,
        archive_timeout_seconds=context.settings.backup.archive_timeout_seconds,
        run_id=context.run_id,
        receive=context.settings.receive,
    )
    run = CheckRun(server, repositories, expected, tools)
    try:
        findings = run.run()
    finally:
        context.progress.done()
    return CheckResult(
        server=server.name,
        repositories=tuple(repository.name for repository in repositories),
        checked_at=checked_at,
        duration_seconds=clock.monotonic() - began,
        segment=run.segment,
        result=worst(findings),
        findings=tuple(findings),
    )
