"""``drill``: a real restore, to prove that it works."""

from __future__ import annotations

import click

from pgrecall.app.drilling import drill_dump, run_drill
from pgrecall.app.requests import DrillRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import UsageError
from pgrecall.further_errors import DrillFailedError
from pgrecall.model.findings import Finding
from pgrecall.model.ids import DUMP, kind_of


@framed_command(
    "drill",
    changes=True,
    examples=(
        Example("pgrecall drill", "the newest state of the only server"),
        Example("pgrecall drill --at random", "any moment that can be reached"),
        Example("pgrecall drill b-20261122T201637Z-7k3q --at immediate", "one backup by itself"),
        Example("pgrecall drill d-20261122T201637Z-7k3q", "load a dump, and compare every table"),
        Example("pgrecall drill --check /etc/pgrecall/checks", "with checks of your own"),
        Example("pgrecall drill --dry-run", "what would be restored"),
    ),
)
@click.argument("backup_id", default="", metavar="[BACKUP|DUMP]")
@click.option("--at", help="latest, immediate, random, or a time with its zone. [drill]")
@click.option("--directory", type=click.Path(), help="Where the copy goes to. [drill]")
@click.option("--check", "checks", multiple=True, type=click.Path(), help="SQL to pass. [drill]")
@click.option("--amcheck/--no-amcheck", default=None, help="Run pg_amcheck on the copy. [drill]")
@journalled("drill")
def command(
    invocation: Invocation,
    *,
    backup_id: str,
    at: str | None,
    directory: str | None,
    checks: tuple[str, ...],
    amcheck: bool | None,
) -> int:
    """Restore into a throwaway server, examine it, keep the evidence, and remove it.

    Production is not touched. The copy is started, recovered to the moment that is asked for,
    examined by pg_amcheck, and put through your own checks. A dump is loaded into a new, empty
    server; if it was made with --proofs, every table is compared. The record stays in the
    repository. Ends with 55 when the copy is not what it should be.
    """
    values: dict[str, str | bool | tuple[str, ...] | None] = {
        "drill.at": at,
        "drill.directory": directory,
        "drill.checks": checks or None,
        "drill.amcheck": amcheck,
    }
    request = DrillRequest(backup_id=backup_id, dry_run=invocation.flag("dry_run"))
    context = invocation.context(values)
    if kind_of(backup_id) == DUMP:
        if at is not None:
            raise UsageError("a dump has one moment", hint="leave --at out")
        drilled = drill_dump(context, request)
        invocation.emit(drilled, "drill-dump/1")
        return _status(drilled.findings)
    result = run_drill(context, request)
    invocation.emit(result, "drill/1")
    return _status(result.findings)


def _status(findings: tuple[Finding, ...]) -> int:
    failed = any(one.severity == "fail" for one in findings)
    return DrillFailedError.exit_status if failed else 0
