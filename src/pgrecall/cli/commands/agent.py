"""``agent``: the process beside a server."""

from __future__ import annotations

import click

from pgrecall.app.agent import check_agent, run_agent
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.rendering import render


@framed_command(
    "agent",
    examples=(
        Example("pgrecall agent --check", "what would run, and where it keeps what is its own"),
        Example("pgrecall agent", "run it for the only server, in the foreground"),
        Example("pgrecall agent --server shop", "one of several; each has an agent of its own"),
        Example("kill -HUP PID", "have it read its settings again"),
    ),
)
@click.option("--check", is_flag=True, help="Print what would run, and end.")
def command(invocation: Invocation, *, check: bool) -> None:
    """Archive, fetch, receive, keep the schedule and serve metrics, for one server.

    Stays in the foreground and logs to standard error, for systemd or a container.
    SIGTERM ends it with 0. SIGHUP has it read its settings again: what changed is
    restarted, and bad settings are refused. Without an agent the commands do the
    work themselves; nothing depends on it.
    """
    context = invocation.context()
    if check:
        shown = check_agent(context)
        if invocation.flag("json"):
            invocation.emit(shown, "agent/1")
        else:
            render(shown.plan)  # emit takes it for shown before
        return
    result = run_agent(context, lambda: invocation.context().settings)
    if invocation.flag("json"):
        invocation.emit(result, "agent/1")
