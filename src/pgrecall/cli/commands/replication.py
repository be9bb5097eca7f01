"""``replication status``: for people, and for monitoring by its exit status."""

from __future__ import annotations

import click

from pgrecall.app.replication_status import run_replication_status
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.errors import StatusFailError, StatusWarnError

_STATUS = {"ok": 0, "warn": StatusWarnError.exit_status, "fail": StatusFailError.exit_status}
_SECONDS = click.FloatRange(0)
_COUNT = click.IntRange(0)


@framed_command(
    "status",
    examples=(
        Example("pgrecall replication status", "standbys, slots, and how far each is behind"),
        Example(
            "pgrecall replication status --json --fail-seconds 30",
            "for monitoring: ends with 0, 72 (warning) or 73 (failure)",
        ),
        Example("pgrecall replication status --server standby", "what a standby receives"),
    ),
)
@click.option("--warn-seconds", type=_SECONDS, help="A standby is behind. [default: replication.*]")
@click.option("--fail-seconds", type=_SECONDS)
@click.option("--warn-bytes", type=_COUNT, help="The same, in WAL.")
@click.option("--fail-bytes", type=_COUNT)
@click.option("--warn-retained-bytes", type=_COUNT, help="A slot keeps more WAL than that.")
@click.option("--fail-retained-bytes", type=_COUNT)
def status_command(invocation: Invocation, **bounds: float | None) -> int:
    """Show standbys with state, sync state and lag, slots, and on a standby what it receives.

    Bounds come from [replication], whose standbys are expected to stream; 0 is no bound. Ends
    with 0 when all is well, 72 with a warning, 73 with a failure; a server that cannot be
    asked is an error with a status of its own (21).
    """
    result = run_replication_status(invocation.context(), bounds)
    invocation.emit(result, "replication-status/1")
    return _STATUS[result.result]
