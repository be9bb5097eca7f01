"""``demo``: the whole story in a minute."""

from __future__ import annotations

import click

from pgrecall.app.demonstration import run_demo
from pgrecall.app.requests import DemoRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation


@framed_command(
    "demo",
    examples=(
        Example("pgrecall demo", "backup, accident, restore; cleans up after itself"),
        Example("pgrecall demo --directory /var/tmp/demo --keep", "and leave it to look around"),
    ),
)
@click.option("--directory", default="", type=click.Path(), help="[default: a temporary one]")
@click.option("--scale", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--keep", is_flag=True, help="Leave everything in place.")
def command(invocation: Invocation, *, directory: str, scale: int, keep: bool) -> None:
    """Watch a real PostgreSQL lose a table and come back to the moment before.

    Needs the extra pgrecall[demo], which brings a PostgreSQL of its own.
    """
    request = DemoRequest(directory=directory, scale=scale, keep=keep)
    invocation.emit(run_demo(invocation.surroundings(), request), "demo/1")
