"""``undo``: take a restore back."""

from __future__ import annotations

import click

from pgrecall.app.requests import UndoRequest
from pgrecall.app.undoing import undo_restore
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled


@framed_command(
    "undo",
    changes=True,
    examples=(
        Example("pgrecall undo r-20261122T201637Z-7k3q --dry-run", "what comes back, what is lost"),
        Example("pgrecall undo r-20261122T201637Z-7k3q", "the copy goes aside, the old data back"),
        Example("pgrecall undo r-20261122T201637Z-7k3q --discard", "and the copy is removed"),
    ),
)
@click.argument("run")
@click.option("--target-dir", default="", type=click.Path(), help="PGDATA. [default: as recorded]")
@click.option("--discard", is_flag=True, help="Remove the restored copy. [default: set it aside]")
@journalled("undo", given=("run",))
def command(invocation: Invocation, *, run: str, target_dir: str, discard: bool) -> None:
    """Bring back the data directory that a restore with --keep-old has replaced.

    RUN is the run id that the restore printed. The server must be stopped. Also
    finishes what a restore or an undo has left behind that was killed.
    """
    request = UndoRequest(
        run=run, target_dir=target_dir, discard=discard, dry_run=invocation.flag("dry_run")
    )
    invocation.emit(undo_restore(invocation.context(), request), "undo/1")
