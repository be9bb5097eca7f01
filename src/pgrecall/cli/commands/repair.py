"""``repair``: heal damage from another repository."""

from __future__ import annotations

import click

from pgrecall.app.repairing import run_repair
from pgrecall.app.requests import RepairRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import RepairFailedError, UsageError


@framed_command(
    "repair",
    changes=True,
    examples=(
        Example("pgrecall repair --dry-run", "what is damaged, and what can be healed"),
        Example("pgrecall repair", "each repository from the others"),
        Example("pgrecall repair b-20261122T201637Z-7k3q --repository main", "one backup there"),
        Example("pgrecall repair --fast", "only what is missing or cut off: seconds"),
    ),
)
@click.argument("backup", default="all")
@click.option("--fast", is_flag=True, help="Look for what is missing or cut off only.")
@click.option("--full", is_flag=True, help="Look as deep as verify --full.")
@click.option("--bytes-per-second", type=int, help="Read no faster. [default: the setting]")
@journalled("repair")
def command(
    invocation: Invocation, *, backup: str, fast: bool, full: bool, bytes_per_second: int | None
) -> int:
    """Heal BACKUP (an id, or all), its WAL and the records from another repository.

    Verifies first, then shows the plan. The good bytes are fetched and proven before the
    damaged object is removed. What no repository holds whole is named; the backups that
    need it are marked, and never chosen. Ends with 46 when something is damaged still.
    """
    if fast and full:
        raise UsageError("--fast and --full contradict each other", hint="leave one out")
    context = invocation.context({"verify.bytes_per_second": bytes_per_second})
    request = RepairRequest(
        backup_id="" if backup == "all" else backup,
        depth="fast" if fast else "full" if full else "stored",
    )
    result = run_repair(context, request)
    invocation.emit(result, "repair/1")
    return RepairFailedError.exit_status if result.result == "fail" else 0
