"""``wal client``: the self-contained client."""

from __future__ import annotations

import click

from pgrecall.app.client_install import offer_client
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation


@framed_command(
    "client",
    changes=True,
    examples=(
        Example("pgrecall wal client", "is there one, and where does it run"),
        Example("pgrecall wal client --install /shared", "as /shared/pgrecall-client"),
        Example(
            "archive_command = '/shared/pgrecall-client push --socket /shared/run/agent.sock "
            '"%p"\'',
            "in postgresql.conf of the image without Python",
        ),
    ),
)
@click.option(
    "--install",
    type=click.Path(),
    default="",
    metavar="PATH",
    help="Copy it to this file, or into this directory.",
)
def client_command(invocation: Invocation, *, install: str) -> None:
    """Show the client for images without Python, or install it.

    One file without needs: PostgreSQL runs it as archive_command and
    restore_command, and it asks the agent at a socket in a shared volume.
    """
    result = offer_client(invocation.surroundings(), install, dry_run=invocation.flag("dry_run"))
    invocation.emit(result, "wal-client/1")
