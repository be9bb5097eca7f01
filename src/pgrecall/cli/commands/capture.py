"""``capture``, ``captures list`` and ``captures show``."""

from __future__ import annotations

import click

from pgrecall.app.capturing import list_captures, run_capture, show_capture
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled


@framed_command(
    "capture", examples=(Example("pgrecall capture", "configuration of the only server"),)
)
@journalled("capture", connects=True)
def command(invocation: Invocation) -> None:
    """Keep a server's configuration and metadata: files, settings, roles, tablespaces, slots.

    What has not changed since the newest capture is not stored again. A repository that
    is not encrypted gets no password hashes, and nothing that may hold a secret; findings
    say what was left out, also for want of rights.
    """
    invocation.emit(run_capture(invocation.context()), "capture/1")


@framed_command(
    "list", examples=(Example("pgrecall captures list", "every capture of the only server"),)
)
def list_command(invocation: Invocation) -> None:
    """List the captures of a server, oldest first."""
    invocation.emit(list_captures(invocation.context()), "captures-list/1")


@framed_command(
    "show",
    examples=(Example("pgrecall captures show m-20261122T201637Z-7k3q", "all that it holds"),),
)
@click.argument("capture_id")
def show_command(invocation: Invocation, *, capture_id: str) -> None:
    """Show one capture: files with their contents, settings, roles, SQL to make things again."""
    invocation.emit(show_capture(invocation.context(), capture_id), "captures-show/1")
