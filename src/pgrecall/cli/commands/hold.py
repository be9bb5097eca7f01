"""``hold add``, ``hold release``, ``holds``: what never expires."""

from __future__ import annotations

import click

from pgrecall.app.holding import add_hold, list_holds, release_hold
from pgrecall.app.requests import HoldRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.model.targets import parse_time


@framed_command(
    "add",
    examples=(
        Example(
            "pgrecall hold add b-20261122T201637Z-7k3q --reason 'case 4711' "
            "--until '2027-03-31 00:00:00+00'",
            "keep it whatever the policy says, until then",
        ),
    ),
)
@click.argument("item")
@click.option("--reason", required=True, help="Why; shown wherever it keeps something.")
@click.option("--until", metavar="TIME", help="When it ends; it must name its zone.")
@journalled("hold add", given=("item", "reason", "until"))
def add_command(invocation: Invocation, *, item: str, reason: str, until: str | None) -> None:
    """Never let ITEM (the id of a backup or dump) expire, until a time or a release."""
    end = parse_time(until) if until is not None else None
    request = HoldRequest(item_id=item, reason=reason, until=end)
    invocation.emit(add_hold(invocation.context(), request), "hold/1")


@framed_command(
    "release", examples=(Example("pgrecall hold release b-20261122T201637Z-7k3q", "end a hold"),)
)
@click.argument("item")
@journalled("hold release", given=("item",))
def release_command(invocation: Invocation, *, item: str) -> None:
    """End the hold on ITEM: the next expire decides by the policy."""
    invocation.emit(release_hold(invocation.context(), item), "hold/1")


@framed_command("holds", examples=(Example("pgrecall holds", "what is held, why, until when"),))
def list_command(invocation: Invocation) -> None:
    """List the holds of a server."""
    invocation.emit(list_holds(invocation.context()), "holds/1")
