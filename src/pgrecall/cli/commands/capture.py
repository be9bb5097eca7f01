"""``capture``, ``captures list`` and ``captures show``."""

from __future__ import annotations

import click

from pgrecall.app.capture_diffing import run_capture_diff
from pgrecall.app.capture_restoring import run_capture_restore
from pgrecall.app.capturing import list_captures, run_capture, show_capture
from pgrecall.cli.difference_text import show_differences
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.cli.rendering import render
from pgrecall.further_errors import CaptureRestoreError, CapturesDifferError
from pgrecall.model.capture_restore import PARTS, Part


@framed_command(
    "capture", examples=(Example("pgrecall capture", "configuration of the only server"),)
)
@journalled("capture", connects=True)
def command(invocation: Invocation) -> None:
    """Keep a server's configuration and metadata: files, settings, roles, tablespaces, slots.

    What has not changed since the newest capture is not stored again. A repository that
    is not encrypted gets no password hashes, and nothing that may hold a secret; findings
    say what was left out, also for want of rights.
    """
    invocation.emit(run_capture(invocation.context()), "capture/1")


@framed_command(
    "list", examples=(Example("pgrecall captures list", "every capture of the only server"),)
)
def list_command(invocation: Invocation) -> None:
    """List the captures of a server, oldest first."""
    invocation.emit(list_captures(invocation.context()), "captures-list/1")


@framed_command(
    "show",
    examples=(Example("pgrecall captures show m-20261122T201637Z-7k3q", "all that it holds"),),
)
@click.argument("capture")
def show_command(invocation: Invocation, *, capture: str) -> None:
    """Show one capture: files with their contents, settings, roles, SQL to make things again.

    CAPTURE is an id, latest, or a moment: the capture that was current then.
    """
    invocation.emit(show_capture(invocation.context(), capture), "captures-show/1")


@framed_command(
    "diff",
    examples=(
        Example("pgrecall captures diff", "what the newest capture has changed"),
        Example("pgrecall captures diff --live", "what has changed since the newest capture"),
        Example("pgrecall captures diff m-20261122T201637Z-7k3q latest", "between these two"),
        Example("pgrecall captures diff --at '2026-11-22 20:00:00+00'", "since that moment"),
        Example("pgrecall captures diff --live --exit-code", "for a script: 66 if it changed"),
    ),
)
@click.argument("captures", nargs=-1, metavar="[A] [B]")
@click.option("--at", "moments", multiple=True, metavar="TIME",
              help="As A: the capture that was current then; TIME names its zone.")  # fmt: skip
@click.option("--live", is_flag=True, help="Compare with the server as it is now.")
@click.option("--exit-code", is_flag=True, help="End with 66 when something differs.")
def diff_command(
    invocation: Invocation,
    *,
    captures: tuple[str, ...],
    moments: tuple[str, ...],
    live: bool,
    exit_code: bool,
) -> int:
    """Show what differs between two captures, or between one and the living server.

    A and B are ids, latest, or moments (--at says them, too). With A alone, B is the newest;
    without both, the newest is compared with the one before it. Sizes, positions and
    statistics do not count. Secrets are never shown, only that they differ.
    """
    result = run_capture_diff(invocation.context(), (*moments, *captures), is_live=live)
    if invocation.flag("json"):
        invocation.emit(result, "captures-diff/1")
    else:
        render(result, without={"differences"})
        show_differences(result.differences)
        if not result.differences:
            click.echo("nothing differs")
    return CapturesDifferError.exit_status if exit_code and result.differences else 0


@framed_command(
    "restore",
    changes=True,
    examples=(
        Example("pgrecall captures restore latest --only hba --dry-run", "what would change"),
        Example("pgrecall captures restore latest --only hba --only ident", "rules as they were"),
        Example(
            "pgrecall captures restore '2026-11-22 20:00:00+00' --only settings",
            "ALTER SYSTEM what differs from then, and reload",
        ),
    ),
)
@click.argument("capture")
@click.option("--only", "parts", multiple=True, required=True, type=click.Choice(PARTS),
              help="What is brought back; may be said several times.")  # fmt: skip
@journalled("captures restore", given=("capture", "parts"), connects=True)
def restore_command(invocation: Invocation, *, capture: str, parts: tuple[Part, ...]) -> int:
    """Bring settings, rules, slots, tablespaces or subscriptions back to what a capture holds.

    CAPTURE is an id, latest, or a moment. Settings go by ALTER SYSTEM; pg_hba.conf and
    pg_ident.conf are written on the server's own host, and put back when PostgreSQL finds an
    error in them or they keep pgrecall out. Slots, tablespaces and subscriptions (disabled) are
    made where they are missing, none is dropped. The server is captured before, and
    pgrecall undo takes the run back. Ends with 67 when it had to stop in the middle.
    """
    result = run_capture_restore(invocation.context(), capture, parts)
    invocation.emit(result, "captures-restore/1")
    failed = any(one.severity == "fail" for one in result.findings)
    return CaptureRestoreError.exit_status if failed else 0
