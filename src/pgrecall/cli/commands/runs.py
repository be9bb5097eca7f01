"""``runs list``, ``runs show`` and ``runs verify``."""

from __future__ import annotations

from typing import get_args

import click

from pgrecall.app.runs import RunsRequest, list_runs, show_run, verify_runs
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.further_errors import RunsBrokenError
from pgrecall.model.runs import Outcome
from pgrecall.model.targets import parse_time


@framed_command(
    "list",
    examples=(
        Example("pgrecall runs list", "who ran what in the last seven days, and how it ended"),
        Example("pgrecall runs list --since '2026-11-01 00:00:00+00' --outcome fail", "failures"),
        Example("pgrecall runs list --command 'key export' --json", "for a program"),
    ),
)
@click.option("--since", metavar="TIME", help="Ended then or later; it must name its zone.")
@click.option("--command", default="", help="Runs of this command only, as it is typed.")
@click.option("--outcome", default="", type=click.Choice(["", *get_args(Outcome)]), metavar="WORD",
              help="ok, warn, fail or interrupted.")  # fmt: skip
def list_command(invocation: Invocation, *, since: str | None, command: str, outcome: str) -> None:
    """List the runs of a server, oldest first: the audit trail.

    Reads every repository of the server, or the one that --repository names.
    """
    request = RunsRequest(
        since=parse_time(since) if since is not None else None, command=command, outcome=outcome
    )
    invocation.emit(list_runs(invocation.context(), request), "runs-list/1")


@framed_command(
    "show",
    examples=(Example("pgrecall runs show r-20261122T201637Z-7k3q", "all that was recorded"),),
)
@click.argument("run_id", metavar="RUN")
def show_command(invocation: Invocation, *, run_id: str) -> None:
    """Show one run: who, where, its plan, its findings, bytes and seconds."""
    invocation.emit(show_run(invocation.context(), run_id), "runs-show/1")


@framed_command(
    "verify",
    examples=(
        Example("pgrecall runs verify", "that no record was removed, altered or inserted"),
        Example("pgrecall runs verify --json", "for an auditor's program"),
    ),
)
def verify_command(invocation: Invocation) -> int:
    """Prove that the records of runs are whole: walk the chain of each writer.

    Each record has the digest of the one before, and each backup has signed the heads. Names
    what is missing, altered or extra, and ends with 47 then. Changes nothing.
    """
    result = verify_runs(invocation.context())
    invocation.emit(result, "runs-verify/1")
    return RunsBrokenError.exit_status if result.result == "fail" else 0
