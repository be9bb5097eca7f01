"""``recovery status``, ``resume`` and ``promote``: the way on after a restore."""

from __future__ import annotations

import click

from pgrecall.app.recovering import recovery_promote, recovery_resume, recovery_status
from pgrecall.app.requests import RecoveryRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled

_target_dir = click.option(
    "--target-dir", default="", type=click.Path(), help="PGDATA. [default: data_directory]"
)
_wait = click.option(
    "--wait-seconds", type=click.FloatRange(0, 86_400), default=60.0, show_default=True
)


@framed_command(
    "status",
    examples=(
        Example("pgrecall recovery status --target-dir /restore", "how far it is, is it paused"),
    ),
)
@_target_dir
def status_command(invocation: Invocation, *, target_dir: str) -> None:
    """Show how far an instance has recovered."""
    request = RecoveryRequest(target_dir=target_dir)
    invocation.emit(recovery_status(invocation.context(), request), "recovery-status/1")


@framed_command(
    "resume",
    changes=True,
    examples=(
        Example(
            "pgrecall recovery resume --target-dir /restore",
            "go on after a pause; at the target this promotes",
        ),
    ),
)
@_target_dir
@_wait
@journalled("recovery resume", connects=True)
def resume_command(invocation: Invocation, *, target_dir: str, wait_seconds: float) -> None:
    """Go on with a recovery that is paused."""
    request = _request(invocation, target_dir, wait_seconds)
    invocation.emit(recovery_resume(invocation.context(), request), "recovery-resume/1")


@framed_command(
    "promote",
    changes=True,
    examples=(
        Example("pgrecall recovery promote --target-dir /restore", "end recovery here; it writes"),
        Example(
            "pgrecall recovery promote --target-dir /restore --take-over",
            "and it replaces the server: the archive is its own from now on",
        ),
    ),
)
@_target_dir
@_wait
@click.option("--take-over", is_flag=True, help="The copy becomes the owner of the archive.")
@journalled("recovery promote", connects=True)
def promote_command(
    invocation: Invocation, *, target_dir: str, wait_seconds: float, take_over: bool
) -> None:
    """End recovery where it is; the instance becomes a primary on a new timeline.

    A copy goes on without archiving. With --take-over, which may also be said
    after the promotion, it replaces the server: the archive refuses the old one.
    """
    request = _request(invocation, target_dir, wait_seconds, take_over=take_over)
    invocation.emit(recovery_promote(invocation.context(), request), "recovery-promote/1")


def _request(
    invocation: Invocation, target_dir: str, wait_seconds: float, *, take_over: bool = False
) -> RecoveryRequest:
    return RecoveryRequest(
        target_dir=target_dir,
        wait_seconds=wait_seconds,
        take_over=take_over,
        dry_run=invocation.flag("dry_run"),
    )
