"""``status``: the one look that says whether all is well."""

from __future__ import annotations

import sys

import click

from pgrecall.app.requests import StatusRequest
from pgrecall.app.status import ServerStatus, run_status
from pgrecall.cli.durations import moment_of
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.rendering import render
from pgrecall.errors import StatusFailError, StatusWarnError

_STATUS = {"ok": 0, "warn": StatusWarnError.exit_status, "fail": StatusFailError.exit_status}


@framed_command(
    "status",
    examples=(
        Example("pgrecall status", "all servers: newest moment, RPO, RTO, backup, runs, agent"),
        Example("pgrecall status --server shop --since 24h", "and every run of the last day"),
        Example(
            "pgrecall status --json", "for monitoring: ends with 0, 72 (warning), 73 (failure)"
        ),
    ),
)
@click.option("--since", help="Show the runs since a time, or since 30m, 24h, 7d, 2w ago.")
def command(invocation: Invocation, *, since: str | None) -> int:
    """Show what could be restored now, against the targets in [targets].

    For each server: the newest moment that can be reached, the work that would be
    lost at most, the last RTO measured, the last good backup, runs that failed or
    were left out, the agent, archiving. Ends with 0 when all is well, 72 when
    something needs attention, 73 when a target is missed or nothing can be restored.
    """
    request = StatusRequest(since=moment_of(since) if since else None)
    result = run_status(invocation.context(), request)
    if invocation.flag("json"):
        invocation.emit(result, "status/1")
    else:
        for number, server in enumerate(result.servers):
            if number:
                sys.stdout.write("\n")
            _show(server)
    return _STATUS[result.result]


def _show(server: ServerStatus) -> None:
    # A target that is not set, and a figure that is 0 because of that, say nothing to people.
    unset = {name for name in ServerStatus.__struct_fields__ if name.endswith("target_seconds")}
    render(server, without={name for name in unset if not getattr(server, name)})
