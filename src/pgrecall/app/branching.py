"""``wal allow-branch``: a timeline that newer ones have left may go on all the same."""

from __future__ import annotations

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository, newest_archive
from pgrecall.app.requests import AllowBranchRequest
from pgrecall.errors import BranchNotLeftError, SettingsError
from pgrecall.model.forks import Fork, forks_of
from pgrecall.repository.branches import AllowedBranch, allow_branch, allowed_branches
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.system.clock import SystemClock


class LeftFork(msgspec.Struct, frozen=True, kw_only=True):
    """Where the timeline was left: up to ``left_at``, by timeline ``left_by``.

    ``allows``: the repositories in which that is recorded now; the others have it already.
    """

    left_by: int
    left_at: str
    allows: tuple[str, ...]


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
        self.known = {branch.fork for branch in allowed_branches(store, server, generation)}


def allow_branch_of(context: RunContext, request: AllowBranchRequest) -> AllowBranchResult:
    """Record in every required repository that a timeline may go on; asks for confirmation.

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
    if not any(fork.allows for fork in plan.forks):
        context.approve(plan)  # shown, for nothing is asked
        outcome = "nothing to do: recorded already"
        return AllowBranchResult(plan=plan, server=server, timeline=timeline, outcome=outcome)
    question = f"Let timeline {timeline} of server {server!r} go on beside the newer one?"
    is_approved = context.approve(plan, question="" if request.dry_run else question)
    if request.dry_run or not is_approved:
        outcome = "nothing was changed"
        return AllowBranchResult(plan=plan, server=server, timeline=timeline, outcome=outcome)
    return AllowBranchResult(
        plan=plan,
        server=server,
        timeline=timeline,
        outcome="recorded",
        recorded=_record(required, forks, (server, request.reason)),
        next="see that the other server does not run; then take a backup of this one, and "
        f"restore with --timeline {timeline} until it has been promoted",
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
                allows=tuple(one.name for one in required if fork not in one.known),
            )
            for fork in forks
        ),
        repositories=tuple(one.name for one in required),
        reasons=(
            f"the server that writes timeline {request.timeline} may archive again beyond these "
            "positions",
            "say this only for the server that is the right one: what the other one wrote since "
            "then is on another branch",
            "a record is never taken back; a promotion that comes later is refused again",
        ),
    )


def _record(
    required: list[_Required], forks: list[Fork], asked: tuple[str, str]
) -> dict[str, tuple[int, ...]]:
    server, reason = asked
    now = SystemClock().now()
    recorded = {}
    for one in required:
        store, generation = one.archive.store, one.archive.generation.number
        written: list[AllowedBranch] = [
            allow_branch(store, server, generation, fork, (reason, now))
            for fork in forks
            if fork not in one.known
        ]
        recorded[one.name] = tuple(branch.number for branch in written)
    return recorded
