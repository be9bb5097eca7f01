"""``check``: proof that the configuration works."""

from __future__ import annotations

import click

from pgrecall.app.checking import run_check
from pgrecall.app.requests import CheckRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import CheckFailedError
from pgrecall.model.findings import worst


@framed_command(
    "check",
    examples=(
        Example("pgrecall check", "all there is to check, on the only server"),
        Example("pgrecall check --server shop --json", "one server, for a program"),
        Example("pgrecall check --no-switch", "change nothing: no WAL segment is switched"),
    ),
)
@click.option(
    "--switch/--no-switch", default=True, help="Force a WAL switch and follow the segment."
)
@journalled("check", connects=True)
def command(invocation: Invocation, *, switch: bool) -> int:
    """Prove that server, archive and repository do what they must.

    Forces a WAL switch and proves that the segment is in the repository and
    reads back equal; probes put-if-absent, the role's rights, space, clock and
    page checksums. Every failure is named with its cure. Ends with 60 when
    something failed.
    """
    result = run_check(invocation.context(), CheckRequest(switch_wal=switch))
    invocation.emit(result, "check/1")
    return CheckFailedError.exit_status if worst(list(result.findings)) == "fail" else 0
