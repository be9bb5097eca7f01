"""``recoverable``: a map of every moment that can be reached."""

from __future__ import annotations

import click

from pgrecall.app.recoverable import run_recoverable
from pgrecall.app.requests import RecoverableRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.range_picture import show_recoverable
from pgrecall.cli.targets import chosen_target
from pgrecall.errors import TargetUnreachableError, UsageError
from pgrecall.model.targets import Latest

_HIGHEST_XID = (1 << 32) - 1
_HIGHEST_TIMELINE = (1 << 32) - 1


@framed_command(
    "recoverable",
    examples=(
        Example("pgrecall recoverable", "the ranges, the gaps and their causes, and a picture"),
        Example(
            "pgrecall recoverable --at '2026-11-22 20:16:37+00'",
            "can that moment be reached, and from which backup and WAL?",
        ),
        Example("pgrecall recoverable --at-xid 7301 --exclusive", "just before a transaction"),
        Example("pgrecall recoverable --json", "for a program: every range, gap and backup"),
    ),
)
@click.option("--at", metavar="TIME", help="Ask for this moment; it must name its zone.")
@click.option("--at-lsn", metavar="LSN", help="Ask for this position.")
@click.option("--at-xid", metavar="XID", type=click.IntRange(3, _HIGHEST_XID))
@click.option("--at-name", metavar="NAME", help="Ask for this restore point.")
@click.option("--exclusive", is_flag=True, help="Just before what is asked for.")
@click.option("--timeline", type=click.IntRange(1, _HIGHEST_TIMELINE), help="[default: planned]")
def command(
    invocation: Invocation, *, timeline: int | None, **options: str | int | bool | None
) -> int:
    """Show every moment that can be reached, per timeline, with the gaps and their causes.

    With --at and its likes: yes, from which backup with which segments, or no
    and why, as restore would plan it. Ends with 51 when the answer is no, or when
    nothing can be reached at all.
    """
    kinds = {"at": "time", "at_lsn": "lsn", "at_xid": "xid", "at_name": "name"}
    target = chosen_target(options, kinds, "moments")
    if timeline is not None and isinstance(target, Latest):
        raise UsageError("--timeline needs a moment to ask for", hint="add --at TIME or its like")
    request = RecoverableRequest(target=target, timeline=timeline)
    result = run_recoverable(invocation.context(), request)
    if invocation.flag("json"):
        invocation.emit(result, "recoverable/1")
    else:
        show_recoverable(result)
    is_good = result.newest_at is not None if result.answer is None else result.answer.is_reachable
    return 0 if is_good else TargetUnreachableError.exit_status
