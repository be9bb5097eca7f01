"""``wal switch`` and ``restore-point``."""

from __future__ import annotations

import click

from pgrecall.app.requests import RestorePointRequest, SwitchRequest
from pgrecall.app.switching import make_restore_point, switch_wal_durably
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled

_timeout = click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(0.1, 86_400),
    help="Seconds to wait. [default: backup.archive_timeout_seconds]",
)


@framed_command(
    "switch",
    changes=True,
    examples=(
        Example("pgrecall wal switch", "everything committed until now is in the repositories"),
        Example("pgrecall wal switch --timeout 60 --json", "for a program, at most a minute"),
    ),
)
@_timeout
@journalled("wal switch", connects=True)
def switch_command(invocation: Invocation, *, timeout_seconds: float | None) -> None:
    """Finish the current WAL segment and wait until it is durable.

    Returns as soon as every required repository has it; ends with 35 and the
    cause when it does not arrive. Without anything written since the last switch
    it waits for the segment before.
    """
    request = SwitchRequest(timeout_seconds=timeout_seconds, dry_run=invocation.flag("dry_run"))
    invocation.emit(switch_wal_durably(invocation.context(), request), "wal-switch/1")


@framed_command(
    "restore-point",
    changes=True,
    examples=(
        Example("pgrecall restore-point before_migration", "and the command that returns to it"),
    ),
)
@click.argument("name")
@_timeout
@click.option("--allow-taken", is_flag=True, help="Even if the name is in the archive already.")
@journalled("restore-point", given=("name",), connects=True)
def restore_point_command(
    invocation: Invocation, *, name: str, timeout_seconds: float | None, allow_taken: bool
) -> None:
    """Create a named restore point, and make sure that it is archived.

    NAME has up to 63 bytes. Prints the LSN and the command that restores to it.
    """
    request = RestorePointRequest(
        name=name,
        timeout_seconds=timeout_seconds,
        allow_taken=allow_taken,
        dry_run=invocation.flag("dry_run"),
    )
    invocation.emit(make_restore_point(invocation.context(), request), "restore-point/1")
