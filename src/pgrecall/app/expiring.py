"""``expire`` and its undo: plan, show, record."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.policies import policy_of
from pgrecall.app.requests import ExpireRequest
from pgrecall.model.findings import Finding, worst
from pgrecall.model.runs import RunFacts
from pgrecall.retention.fates import ExpiryPlan
from pgrecall.retention.plan import ExpiryWishes
from pgrecall.retention.run import Author, ExpireRun, bring_back
from pgrecall.system.clock import SystemClock


class ExpireResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``expire`` prints. ``record``: the number of what was recorded, 0 for nothing."""

    plan: ExpiryPlan
    record: int = 0
    expired: tuple[str, ...] = ()
    segments: int = 0
    next_steps: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=worst(list(self.findings)), stored_bytes=self.plan.won_bytes)


class UndoExpiryResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``expire --undo`` prints: what is listed again."""

    server: str
    repository: str
    brought_back: tuple[str, ...]
    record: int
    next_steps: tuple[str, ...]


def run_expire(context: RunContext, request: ExpireRequest) -> ExpireResult:
    """Let expire what the policy of the main repository does not keep.

    Nothing is deleted. Raises RetentionError and its kinds, StoreError, RepositoryError:
    then nothing was changed.
    """
    opened = main_repository(context)
    if request.dry_run:
        author = author_of(context)
        run = ExpireRun(opened.store, context.server.name, opened.settings.name, author)
        plan = run.plan(_wishes(context, opened, request, author))
        context.approve(plan)
        return ExpireResult(plan=plan, findings=plan.findings)
    with using(context, opened, "expire") as lease:
        assert lease is not None
        author = msgspec.structs.replace(author_of(context), store_now=lease.taken_at)
        run = ExpireRun(opened.store, context.server.name, opened.settings.name, author)
        plan = run.plan(_wishes(context, opened, request, author))
        question = (
            f"Let {_counted(plan.items_going, _word(plan))} and"
            f" {_counted(plan.segments_going, 'WAL segment')} expire?"
        )
        if not context.approve(plan, question=question if plan.changes else ""):
            return ExpireResult(plan=plan, findings=plan.findings)
        if not plan.changes:
            return ExpireResult(plan=plan, findings=plan.findings)
        record = run.carry_out(plan, trust_clock=request.trust_clock)
    return ExpireResult(
        plan=plan,
        record=record.number,
        expired=tuple(record.items),
        segments=plan.segments_going,
        next_steps=(
            f"to undo: pgrecall expire --undo {context.run_id}",
            "to free the space when the grace is over: pgrecall purge",
        ),
        findings=plan.findings,
    )


def undo_expire(context: RunContext, request: ExpireRequest) -> UndoExpiryResult:
    """Bring back a backup, or all that a run let expire; raises RetentionError, StoreError."""
    opened = main_repository(context)
    record = bring_back(opened.store, context.server.name, request.undo, author_of(context))
    return UndoExpiryResult(
        server=context.server.name,
        repository=opened.settings.name,
        brought_back=tuple(record.items),
        record=record.number,
        next_steps=tuple(
            f"the next expire will decide as before; to keep it: pgrecall hold add {item_id}"
            " --reason TEXT"
            for item_id in record.items
        ),
    )


def author_of(context: RunContext) -> Author:
    """This run, by the clock of this host."""
    now = SystemClock().now()
    return Author(context.run_id, now, now)


def _wishes(
    context: RunContext, opened: OpenedRepository, request: ExpireRequest, author: Author
) -> ExpiryWishes:
    return ExpiryWishes(
        policy=policy_of(context.settings, context.server, opened.settings),
        now=author.now,
        longest_pause=timedelta(days=context.settings.retention.longest_pause_days),
        chosen=frozenset(request.chosen),
        captures_days=context.settings.retention.captures_days,
    )


def _word(plan: ExpiryPlan) -> str:
    return "item" if any(one.kind != "backup" for one in plan.going) else "backup"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
