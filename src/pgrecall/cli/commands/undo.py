"""``undo``: take a restore back, a load that has swapped databases, or captures restore."""

from __future__ import annotations

import click

from pgrecall.app.capture_undoing import restoring_run, undo_capture_restore
from pgrecall.app.loading_undo import swapping_run, undo_load
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
    """Bring back what a restore with --keep-old, or a load with --swap, has replaced.

    RUN is the run id that it printed. For a restore the server must be stopped; also finishes
    what a restore or an undo has left behind that was killed. For a load it runs, and the two
    databases change their names again. What captures restore has changed goes back, unless
    somebody else has changed it since.
    """
    context = invocation.context()
    swap = swapping_run(context, run)
    if swap is not None:
        invocation.emit(undo_load(context, swap), "undo-load/1")
        return
    restoring = restoring_run(context, run)
    if restoring is not None:
        invocation.emit(undo_capture_restore(context, restoring), "undo-capture/1")
        return
    request = UndoRequest(
        run=run, target_dir=target_dir, discard=discard, dry_run=invocation.flag("dry_run")
    )
    invocation.emit(undo_restore(context, request), "undo/1")
