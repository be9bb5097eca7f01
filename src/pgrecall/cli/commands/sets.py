"""``sets list`` and ``sets show``."""

from __future__ import annotations

import click

from pgrecall.app.sets import list_sets, show_set
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation


@framed_command(
    "list", examples=(Example("pgrecall sets list", "every recovery set of the only server"),)
)
@click.option("--expired", is_flag=True, help="Also those that have expired and can come back.")
def list_command(invocation: Invocation, *, expired: bool) -> None:
    """List the recovery sets of a server, oldest first, with their parts."""
    invocation.emit(list_sets(invocation.context(), with_expired=expired), "sets-list/1")


@framed_command(
    "show",
    examples=(Example("pgrecall sets show s-20261122T201637Z-7k3q", "its parts and its moment"),),
)
@click.argument("set_id", metavar="SET")
def show_command(invocation: Invocation, *, set_id: str) -> None:
    """Show one recovery set: its parts, its restore point, its slots, and what of it is missing."""
    invocation.emit(show_set(invocation.context(), set_id), "sets-show/1")
