"""``backups list`` and ``backups show``."""

from __future__ import annotations

import click

from pgrecall.app.catalog import list_backups, show_backup
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation


@framed_command(
    "list",
    examples=(
        Example("pgrecall backups list", "every backup of the only server, oldest first"),
        Example("pgrecall backups list --server shop --json", "for a program"),
        Example("pgrecall backups list --expired", "those too that expire --undo brings back"),
    ),
)
@click.option("--expired", is_flag=True, help="Those that have expired, too.")
def list_command(invocation: Invocation, *, expired: bool) -> None:
    """List the complete backups of a server."""
    listed = list_backups(invocation.context(), with_expired=expired)
    invocation.emit(listed, "backups-list/1")


@framed_command(
    "show",
    examples=(Example("pgrecall backups show b-20261122T201637Z-7k3q", "all that is known"),),
)
@click.argument("backup_id")
def show_command(invocation: Invocation, *, backup_id: str) -> None:
    """Show one backup: sizes, times, LSNs, findings."""
    invocation.emit(show_backup(invocation.context(), backup_id), "backups-show/1")
