"""``wal fetch-ahead``: what ``wal fetch --ahead`` starts beside a recovering server."""

from __future__ import annotations

import click

from pgrecall.app.fetching_ahead import run_fetch_ahead
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation


@framed_command(
    "fetch-ahead",
    examples=(
        Example("pgrecall wal fetch-ahead /restore/shop", "for the server that recovers there"),
    ),
)
@click.argument("pgdata", type=click.Path())
def fetch_ahead_command(invocation: Invocation, *, pgdata: str) -> None:
    """Have the next segments ready for the server that recovers in PGDATA.

    The restore_command of a restored copy starts it by itself where no agent answers. It
    ends with the recovery, with the server, or when nothing is asked for in a minute, and
    removes what it has fetched. Ending it earlier does no harm.
    """
    invocation.emit(run_fetch_ahead(invocation.context(), pgdata), "wal-fetch-ahead/1")
