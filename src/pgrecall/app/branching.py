"""``wal allow-branch``: a timeline that newer ones have left may go on all the same."""

from __future__ import annotations

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository, newest_archive
from pgrecall.app.requests import AllowBranchRequest
from pgrecall.errors import BranchNotLeftError, SettingsError
from pgrecall.model.forks import Fork, forks_of
from pgrecall.repository.branches import allowed_forks, branch_records, record_branch
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.system.clock import SystemClock


class LeftFork(msgspec.Struct, frozen=True, kw_only=True):
    """Where the timeline was left: up to ``left_at``, by timeline ``left_by``.

    ``allows``: the repositories in which that is recorded now; the others have it already.
    ``revokes``: those in which it is taken back.
    """

    left_by: int
    left_at: str
    allows: tuple[str, ...]
    revokes: tuple[str, ...] = ()


class AllowBranchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is going to be recorded."""

    server: str
    timeline: int
    reason: str
    forks: tuple[LeftFork, ...]
    repositories: tuple[str, ...]
    reasons: tuple[str, ...] = ()


class AllowBranchResult(msgspec.Struct, frozen=True, kw_only=True):
    """``recorded``: repositories, each with the numbers of the records that were written."""

    plan: AllowBranchPlan
    server: str
    timeline: int
    outcome: str
    recorded: dict[str, tuple[int, ...]] = {}
    next: str = ""


class _Required:
    """A required repository: its archive, and the forks that are allowed there already."""

    def __init__(self, opened: OpenedRepository, server: str) -> None:
        self.name = opened.settings.name
        self.archive: WalArchive = newest_archive(opened, server)
        self.histories = self.archive.histories()
        store, generation = self.archive.store, self.archive.generation.number
        self.allowed = allowed_forks(branch_records(store, server, generation))


def allow_branch_of(context: RunContext, request: AllowBranchRequest) -> AllowBranchResult:
    """Record in every required repository that a timeline may go on, or no longer; asks first.

    Every repository is opened before the first is written. What is recorded are the forks
    that there are now: a promotion that comes later is refused again. Where all is recorded
    already nothing is done, and that is said.

    Raises BranchNotLeftError when nothing has left the timeline, RepositoryError,
    CorruptObjectError, StoreError.
    """
    server, timeline = context.server.name, request.timeline
    required = [
        _Required(OpenedRepository(settings, context.environment), server)
        for settings in context.repositories
        if settings.role == "required"
    ]
    if not required:
        raise SettingsError(
            f"no repository of server {server!r} that was chosen is required",
            hint="only required repositories refuse a former primary: leave --repository out",
        )
    forks = forks_of((each for one in required for each in one.histories.values()), timeline)
    if not forks:
        raise BranchNotLeftError(
            f"no archived history says that timeline {timeline} of server {server!r} was left: "
            "nothing is refused for it",
            hint="the message of the refused push names the timeline (decimal, as PostgreSQL "
            "counts them)",
        )
    plan = _plan(required, forks, (server, request))
    if not any(fork.allows or fork.revokes for fork in plan.forks):
        context.approve(plan)  # shown, for nothing is asked
        why = "nothing allows it" if request.revoke else "recorded already"
        outcome = f"nothing to do: {why}"
        return AllowBranchResult(plan=plan, server=server, timeline=timeline, outcome=outcome)
    is_approved = context.approve(
        plan, question="" if request.dry_run else _question(server, request)
    )
    if request.dry_run or not is_approved:
        outcome = "nothing was changed"
        return AllowBranchResult(plan=plan, server=server, timeline=timeline, outcome=outcome)
    return AllowBranchResult(
        plan=plan,
        server=server,
        timeline=timeline,
        outcome="revoked" if request.revoke else "recorded",
        recorded=_record(required, forks, (server, request)),
        next=_next(request),
    )


def _question(server: str, request: AllowBranchRequest) -> str:
    timeline = f"timeline {request.timeline} of server {server!r}"
    if request.revoke:
        return f"Refuse {timeline} again beyond where newer ones left it?"
    return f"Let {timeline} go on beside the newer one?"


def _next(request: AllowBranchRequest) -> str:
    if request.revoke:
        return "stop the server that writes it: what it archives no more stays in its pg_wal"
    return (
        "see that the other server does not run; then take a backup of this one, and "
        f"restore with --timeline {request.timeline} until it has been promoted"
    )


def _reasons(request: AllowBranchRequest) -> tuple[str, ...]:
    if request.revoke:
        return (
            f"the server that writes timeline {request.timeline} is refused again beyond these "
            "positions; one that runs notices within seconds",
            "what it has archived until then stays, and backups of it need that",
        )
    return (
        f"the server that writes timeline {request.timeline} may archive again beyond these "
        "positions",
        "say this only for the server that is the right one: what the other one wrote since "
        "then is on another branch",
        "--revoke takes it back; a promotion that comes later is refused again",
    )


def _plan(
    required: list[_Required], forks: list[Fork], asked: tuple[str, AllowBranchRequest]
) -> AllowBranchPlan:
    server, request = asked
    return AllowBranchPlan(
        server=server,
        timeline=request.timeline,
        reason=request.reason,
        forks=tuple(
            LeftFork(
                left_by=fork.left_by,
                left_at=str(fork.at),
                allows=() if request.revoke else _names(required, fork, allowed=False),
                revokes=_names(required, fork, allowed=True) if request.revoke else (),
            )
            for fork in forks
        ),
        repositories=tuple(one.name for one in required),
        reasons=_reasons(request),
    )


def _names(required: list[_Required], fork: Fork, *, allowed: bool) -> tuple[str, ...]:
    return tuple(one.name for one in required if (fork in one.allowed) == allowed)


def _record(
    required: list[_Required], forks: list[Fork], asked: tuple[str, AllowBranchRequest]
) -> dict[str, tuple[int, ...]]:
    server, request = asked
    said, is_allowed = (request.reason, SystemClock().now()), not request.revoke
    recorded = {}
    for one in required:
        store, generation = one.archive.store, one.archive.generation.number
        written = [
            record_branch(store, server, generation, fork, said, is_allowed=is_allowed)
            for fork in forks
            if (fork in one.allowed) != is_allowed
        ]
        recorded[one.name] = tuple(record.number for record in written if record is not None)
    return recorded
