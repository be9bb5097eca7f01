"""``dumps list`` and ``dumps show``."""

from __future__ import annotations

import sys

import click

from pgrecall.app.dump_catalog import dump_contents, list_dumps, show_dump
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation


@framed_command(
    "list",
    examples=(
        Example("pgrecall dumps list", "every dump of the only server, oldest first"),
        Example("pgrecall dumps list --expired", "those too that expire --undo brings back"),
    ),
)
@click.option("--expired", is_flag=True, help="Those that have expired, too.")
def list_command(invocation: Invocation, *, expired: bool) -> None:
    """List the complete dumps of a server."""
    listed = list_dumps(invocation.context(), with_expired=expired)
    invocation.emit(listed, "dumps-list/1")


@framed_command(
    "show",
    examples=(
        Example("pgrecall dumps show d-20261122T201637Z-7k3q", "databases, snapshots, findings"),
        Example(
            "pgrecall dumps show d-20261122T201637Z-7k3q --tables shop",
            "its tables with their sizes and estimated rows",
        ),
        Example(
            "pgrecall dumps show d-20261122T201637Z-7k3q --contents shop",
            "the table of contents as pg_restore lists it",
        ),
    ),
)
@click.argument("dump_id")
@click.option("--tables", "tables_of", metavar="DATABASE", help="The tables of a database.")
@click.option("--contents", metavar="DATABASE", help="The table of contents of a database.")
def show_command(
    invocation: Invocation, *, dump_id: str, tables_of: str | None, contents: str | None
) -> None:
    """Show one dump: databases, snapshots, sizes, times, findings."""
    context = invocation.context()
    if contents is not None:
        listed = dump_contents(context, dump_id, contents)
        if invocation.flag("json"):
            invocation.emit(listed, "dumps-contents/1")
        else:
            sys.stdout.write(listed.contents)
        return
    invocation.emit(show_dump(context, dump_id, tables_of=tables_of), "dumps-show/1")
