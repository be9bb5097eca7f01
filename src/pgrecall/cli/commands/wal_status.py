"""``wal status``: for people, and for monitoring by its exit status."""

from __future__ import annotations

import click

from pgrecall.app.requests import WalStatusRequest
from pgrecall.app.wal_status import run_wal_status
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.errors import StatusFailError, StatusWarnError

_STATUS = {"ok": 0, "warn": StatusWarnError.exit_status, "fail": StatusFailError.exit_status}
_SECONDS = click.FloatRange(0)
_COUNT = click.IntRange(0)


@framed_command(
    "status",
    changes=True,
    examples=(
        Example("pgrecall wal status", "what is archived, what waits, what fails and why"),
        Example(
            "pgrecall wal status --json --warn-seconds 60 --fail-seconds 300",
            "for monitoring: ends with 0, 72 (warning) or 73 (failure)",
        ),
        Example("pgrecall wal status --test", "the server's own user pushes a probe; wait for it"),
    ),
)
@click.option("--warn-seconds", type=_SECONDS, help="Oldest waiting file. [default: 120]")
@click.option("--fail-seconds", type=_SECONDS, help="[default: 600]")
@click.option("--warn-bytes", type=_COUNT, help="Bytes from the archive's end to the server's.")
@click.option("--fail-bytes", type=_COUNT)
@click.option("--warn-segments", type=_COUNT, help="Finished segments that wait.")
@click.option("--fail-segments", type=_COUNT)
@click.option("--test", is_flag=True, help="Make a restore point and see it archived.")
@click.option("--reset-stats", is_flag=True, help="Set pg_stat_archiver back, after showing it.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(0.1, 86_400),
    help="Seconds for --test. [default: backup.archive_timeout_seconds]",
)
def status_command(
    invocation: Invocation, *, test: bool, reset_stats: bool, **bounds: float | int | None
) -> int:
    """Show the state of archiving: position, what waits, failures and their causes, slots.

    Ends with 0 when all is well, 72 with a warning, 73 with a failure; a server that
    cannot be asked is an error with a status of its own (21).
    """
    request = WalStatusRequest(
        test=test,
        reset_stats=reset_stats,
        dry_run=invocation.flag("dry_run"),
        **bounds,  # type: ignore[arg-type]
    )
    result = run_wal_status(invocation.context(), request)
    invocation.emit(result, "wal-status/1")
    return _STATUS[result.result]
