"""``demo``: the whole story in a minute."""

from __future__ import annotations

import os
import sys

import click

from pgrecall.app.demo_as_user import is_needed, run_demo_as_user, user_name
from pgrecall.app.demo_place import clean_environment
from pgrecall.app.demo_report import DemoReport
from pgrecall.app.demonstration import run_demo
from pgrecall.app.requests import DemoRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.telling import SilentStory, ToldStory
from pgrecall.errors import CheckFailedError


@framed_command(
    "demo",
    examples=(
        Example("pgrecall demo", "backup, accident, restore; cleans up after itself"),
        Example("pgrecall demo --directory /var/tmp/demo --keep", "and leave it to look around"),
        Example("pgrecall demo --json", "sizes, times and proofs for a program"),
    ),
)
@click.option("--directory", default="", type=click.Path(), help="[default: a temporary one]")
@click.option(
    "--scale",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="Size of pgbench's data: times 100,000 accounts, 15 MiB.",
)
@click.option("--keep", is_flag=True, help="Leave servers and files, and say how to connect.")
def command(invocation: Invocation, *, directory: str, scale: int, keep: bool) -> int:
    """Watch a real PostgreSQL lose a table and come back to the moment before.

    Starts a server of its own from the extra pgrecall[demo] (or the PostgreSQL
    of this machine) in a new directory, and compares what came back with what
    was known. Ends with 60 when they differ. Started by root, it goes on as an
    ordinary user, because PostgreSQL refuses root.
    """
    as_json = invocation.flag("json")
    if is_needed():
        if not as_json:
            sys.stdout.write(
                f"PostgreSQL refuses to run as root: going on as user {user_name()}.\n\n"
            )
            sys.stdout.flush()
        level = invocation.text("log_level")
        words = ["--scale", str(scale)]
        words += ["--keep"] if keep else []
        words += ["--json"] if as_json else []
        words += ["--log-level", level] if level else []
        return run_demo_as_user(words, directory, keep=keep)
    return _carry_out(invocation, DemoRequest(directory=directory, scale=scale, keep=keep))


def _carry_out(invocation: Invocation, request: DemoRequest) -> int:
    # libpq reads this process's environment: what it says of other servers is of no concern here.
    kept = clean_environment(os.environ)
    for name in set(os.environ) - set(kept):
        del os.environ[name]
    surroundings = invocation.surroundings(level="warning")
    if invocation.flag("json"):
        report = run_demo(surroundings, request, SilentStory())
        invocation.emit(report, "demo/1")
        return _status(report)
    story = ToldStory()
    try:
        report = run_demo(surroundings, request, story)
    finally:
        story.close()
    story.end(report)
    return _status(report)


def _status(report: DemoReport) -> int:
    return 0 if report.is_proven else CheckFailedError.exit_status
