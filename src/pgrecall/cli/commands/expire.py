"""``expire`` and ``purge``: what is not kept any more, and its bytes."""

from __future__ import annotations

import click

from pgrecall.app.expiring import run_expire, undo_expire
from pgrecall.app.purging import run_purge
from pgrecall.app.requests import ExpireRequest, PurgeRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import PurgeIncompleteError, UsageError

_trust_clock = click.option(
    "--trust-clock", is_flag=True, help="The dates are right: no clock has jumped."
)


@framed_command(
    "expire",
    changes=True,
    examples=(
        Example("pgrecall expire --dry-run", "what stays and what goes, and why"),
        Example("pgrecall expire --yes", "carry out that plan, from cron"),
        Example("pgrecall expire --undo b-20261122T201637Z-7k3q", "bring one back, with its WAL"),
        Example("pgrecall expire b-20261122T201637Z-7k3q", "let just this one expire"),
    ),
)
@click.argument("backups", nargs=-1, metavar="[ID]...")
@click.option(
    "--undo", metavar="ID", help="Bring back a backup or dump, or all that a run let expire."
)
@_trust_clock
@journalled("expire", given=("undo",))
def command(
    invocation: Invocation, *, backups: tuple[str, ...], undo: str | None, trust_clock: bool
) -> None:
    """Let expire what the retention policy does not keep, or just the backups and dumps named.

    What has expired is no longer listed nor chosen; until purge, after a grace, --undo
    brings it back. Never the last good backup, what is on hold or in use, or WAL that
    kept backups need.
    """
    context = invocation.context()
    if undo is not None:
        if backups or invocation.flag("dry_run"):
            raise UsageError("--undo takes one id, and has no plan to show")
        invocation.emit(undo_expire(context, ExpireRequest(undo=undo)), "expire-undo/1")
        return
    request = ExpireRequest(
        chosen=backups, trust_clock=trust_clock, dry_run=invocation.flag("dry_run")
    )
    invocation.emit(run_expire(context, request), "expire/1")


@framed_command(
    "purge",
    changes=True,
    examples=(
        Example("pgrecall purge --dry-run", "what would be deleted, and what has to wait"),
        Example("pgrecall purge --yes", "from cron, with credentials that may delete"),
    ),
)
@_trust_clock
@journalled("purge")
def purge_command(invocation: Invocation, *, trust_clock: bool) -> int:
    """Delete the bytes of what expired longer ago than the grace, for good.

    Packs that a kept backup refers to stay, and what a run on any host uses. Ends with 93
    when the store refused to delete some objects; the findings name them.
    """
    request = PurgeRequest(trust_clock=trust_clock, dry_run=invocation.flag("dry_run"))
    result = run_purge(invocation.context(), request)
    invocation.emit(result, "purge/1")
    return PurgeIncompleteError.exit_status if result.refused else 0
