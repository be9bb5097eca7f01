"""``drills list`` and ``drills show``."""

from __future__ import annotations

import click

from pgrecall.app.drills import list_drills, show_drill
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation


@framed_command(
    "list", examples=(Example("pgrecall drills list", "every drill of the only server"),)
)
def list_command(invocation: Invocation) -> None:
    """List the drills of a server, oldest first."""
    invocation.emit(list_drills(invocation.context()), "drills-list/1")


@framed_command(
    "show",
    examples=(Example("pgrecall drills show t-20261122T201637Z-7k3q", "all that was recorded"),),
)
@click.argument("drill_id")
def show_command(invocation: Invocation, *, drill_id: str) -> None:
    """Show one drill: what was restored, how long it took, what was examined."""
    invocation.emit(show_drill(invocation.context(), drill_id), "drills-show/1")
