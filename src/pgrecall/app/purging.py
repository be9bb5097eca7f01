"""``purge``: delete the bytes of what has expired; may have credentials of its own."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.expiring import author_of
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.requests import PurgeRequest
from pgrecall.model.findings import Finding, worst
from pgrecall.model.runs import RunFacts
from pgrecall.retention.purge import PurgeRun, PurgeTask
from pgrecall.retention.purge_plan import PurgePlan
from pgrecall.retention.run import Author


class PurgeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``purge`` prints. ``refused``: objects that the store would not delete."""

    plan: PurgePlan
    objects: int = 0
    stored_bytes: int = 0
    refused: int = 0
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=worst(list(self.findings)), stored_bytes=self.stored_bytes)


def run_purge(context: RunContext, request: PurgeRequest) -> PurgeResult:
    """Delete what expired longer ago than the grace and nobody needs any more.

    Raises RetentionError and its kinds, StoreError, RepositoryError; the next purge goes
    on where this one ended.
    """
    opened = main_repository(context)
    if request.dry_run:
        plan = _run(context, opened, author_of(context)).plan()
        context.approve(plan)
        return PurgeResult(plan=plan, findings=plan.findings)
    with using(context, opened, "purge") as lease:
        assert lease is not None
        author = msgspec.structs.replace(author_of(context), store_now=lease.taken_at)
        run = _run(context, opened, author)
        plan = run.plan()
        question = "Delete this for good?" if plan.changes else ""
        if not context.approve(plan, question=question) or not plan.changes:
            return PurgeResult(plan=plan, findings=plan.findings)
        purged = run.carry_out(plan, trust_clock=request.trust_clock)
    return PurgeResult(
        plan=plan,
        objects=purged.objects,
        stored_bytes=purged.stored_bytes,
        refused=purged.refused,
        findings=(*plan.findings, *purged.findings),
    )


def _run(context: RunContext, opened: OpenedRepository, author: Author) -> PurgeRun:
    settings = context.settings.retention
    task = PurgeTask(
        server=context.server.name,
        repository=opened.settings.name,
        grace=timedelta(seconds=settings.grace_seconds),
        longest_pause=timedelta(days=settings.longest_pause_days),
    )
    return PurgeRun(opened.store, task, author)
