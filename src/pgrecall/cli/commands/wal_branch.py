"""``wal allow-branch``."""

from __future__ import annotations

import click

from pgrecall.app.branching import allow_branch_of
from pgrecall.app.requests import AllowBranchRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled

_HIGHEST_TIMELINE = 0xFFFFFFFF


@framed_command(
    "allow-branch",
    changes=True,
    examples=(
        Example("pgrecall wal allow-branch 1 --dry-run", "which timelines left it, and where"),
        Example(
            "pgrecall wal allow-branch 1 --reason 'db2 was promoted by mistake' --yes",
            "the server on timeline 1 is the right one, and archives again",
        ),
        Example("pgrecall wal allow-branch 1 --revoke --yes", "it is not: refuse it again"),
    ),
)
@click.argument("timeline", type=click.IntRange(1, _HIGHEST_TIMELINE))
@click.option("--reason", default="", help="Why; it stands in the record.")
@click.option("--revoke", is_flag=True, help="Take it back: refuse such a server again.")
@journalled("wal allow-branch", given=("timeline", "reason", "revoke"))
def allow_branch_command(
    invocation: Invocation, *, timeline: int, reason: str, revoke: bool
) -> None:
    """Let a server archive TIMELINE beyond where a newer one left it.

    A primary whose timeline was left is refused (status 38): it is a former primary that
    came back, or a standby was promoted beside it by mistake. This records, in every
    required repository, that the server on TIMELINE is the right one. With --revoke, that
    it is not; what it has archived until then stays.
    """
    request = AllowBranchRequest(
        timeline=timeline, reason=reason, revoke=revoke, dry_run=invocation.flag("dry_run")
    )
    invocation.emit(allow_branch_of(invocation.context(), request), "wal-allow-branch/1")
