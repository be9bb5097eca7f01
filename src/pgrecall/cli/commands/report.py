"""``report``: one dated file for the auditor."""

from __future__ import annotations

import os
from datetime import datetime

import click
import msgspec

from pgrecall.app.reporting import make_report
from pgrecall.app.reporting_document import report_document
from pgrecall.cli.durations import moment_of
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.rendering import render
from pgrecall.errors import StatusFailError, UsageError
from pgrecall.model.findings import Severity
from pgrecall.model.targets import parse_time
from pgrecall.system.durable import write_durable


class WrittenReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``report`` says of the file that it wrote."""

    server: str
    path: str
    since_at: datetime
    until_at: datetime
    result: Severity
    is_complete: bool
    drills: int
    uses: int
    failed: int


@framed_command(
    "report",
    examples=(
        Example("pgrecall report --since 30d", "the last month, into ./pgrecall-report-...md"),
        Example(
            "pgrecall report --since '2026-10-01 00:00:00+00' --until '2026-11-01 00:00:00+00'"
            " --to october.md",
            "a month",
        ),
        Example("pgrecall report --since 7d --json", "everything in it, for a program"),
    ),
)
@click.option(
    "--since", required=True, help="From when on: a time with its zone, or 30m, 24h, 7d, 2w ago."
)
@click.option("--until", metavar="TIME", help="Up to when. [default: now]")
@click.option("--to", metavar="FILE", help="[default: pgrecall-report-SERVER-DATE.md, here]")
def command(invocation: Invocation, *, since: str, until: str | None, to: str | None) -> int:
    """Write what happened in a period: policies, targets, drills, holds, expiries, who did what.

    Read from the records in all repositories of the server, and proven by their chains. The
    state of targets and repositories is that of now. A file that is there is not replaced. Ends
    with 73 when records could not be read: the document says so, too.
    """
    report = make_report(
        invocation.context(), moment_of(since), parse_time(until) if until is not None else None
    )
    status = 0 if report.is_complete else StatusFailError.exit_status
    if invocation.flag("json"):
        invocation.emit(report, "report/1")
        return status
    day = f"{report.until_at:%Y-%m-%d}"
    path = to or f"pgrecall-report-{report.server}-{day}.md"
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already", hint="name another file with --to")
    try:
        write_durable(path, [report_document(report).encode()])
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    written = WrittenReport(
        server=report.server,
        path=path,
        since_at=report.since_at,
        until_at=report.until_at,
        result=report.result,
        is_complete=report.is_complete,
        drills=len(report.drills),
        uses=len(report.uses),
        failed=len(report.failed),
    )
    render(written)
    return status
