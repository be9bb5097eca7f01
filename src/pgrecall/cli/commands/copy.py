"""``copy``: from one repository to another."""

from __future__ import annotations

import click

from pgrecall.app.copying import run_copy
from pgrecall.app.requests import CopyRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import CopyFailedError, UsageError


@framed_command(
    "copy",
    changes=True,
    examples=(
        Example("pgrecall copy --from main --to cloud", "every backup and all WAL"),
        Example("pgrecall copy --from main --to cloud --dry-run", "what is missing there"),
        Example(
            "pgrecall copy b-20261122T201637Z-7k3q --from main --to cloud",
            "one backup, and the WAL that makes it consistent",
        ),
        Example("pgrecall copy --wal --from main --to cloud", "WAL and records only"),
    ),
)
@click.argument("backup", default="all")
@click.option("--from", "source", required=True, metavar="NAME", help="The repository to read.")
@click.option("--to", "target", required=True, metavar="NAME", help="The one that lacks it.")
@click.option("--wal", "wal_only", is_flag=True, help="WAL and records, no backups.")
@click.option("--bytes-per-second", type=int, help="Copy no faster. [copy]")
@click.option("--workers", type=int, help="Threads; 0: two for each core. [copy]")
@journalled("copy")
def command(
    invocation: Invocation,
    *,
    backup: str,
    source: str,
    target: str,
    wal_only: bool,
    **overrides: int | None,
) -> int:
    """Copy BACKUP (an id, or all), its WAL and the records to another repository.

    Every byte is proven by its digest before it exists there, nothing there is replaced,
    and what is there already is skipped: run it again after it was interrupted. Damaged
    backups are left out. Ends with 45 when something could not be copied.
    """
    if wal_only and backup != "all":
        raise UsageError("--wal copies no backup", hint="leave the id or --wal out")
    context = invocation.context({f"copy.{key}": value for key, value in overrides.items()})
    request = CopyRequest(
        backup_id="" if backup == "all" else backup,
        source=source,
        target=target,
        wal_only=wal_only,
    )
    result = run_copy(context, request)
    invocation.emit(result, "copy/1")
    return CopyFailedError.exit_status if result.result == "fail" else 0
