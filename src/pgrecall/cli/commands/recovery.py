"""``recovery status``, ``resume`` and ``promote``: the way on after a restore."""

from __future__ import annotations

import click

from pgrecall.app.recovering import recovery_promote, recovery_resume, recovery_status
from pgrecall.app.requests import RecoveryRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation

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
def resume_command(invocation: Invocation, *, target_dir: str, wait_seconds: float) -> None:
    """Go on with a recovery that is paused."""
    request = _request(invocation, target_dir, wait_seconds)
    invocation.emit(recovery_resume(invocation.context(), request), "recovery-resume/1")


@framed_command(
    "promote",
    changes=True,
    examples=(
        Example("pgrecall recovery promote --target-dir /restore", "end recovery here; it writes"),
    ),
)
@_target_dir
@_wait
def promote_command(invocation: Invocation, *, target_dir: str, wait_seconds: float) -> None:
    """End recovery where it is; the instance becomes a primary on a new timeline."""
    request = _request(invocation, target_dir, wait_seconds)
    invocation.emit(recovery_promote(invocation.context(), request), "recovery-promote/1")


def _request(invocation: Invocation, target_dir: str, wait_seconds: float) -> RecoveryRequest:
    return RecoveryRequest(
        target_dir=target_dir, wait_seconds=wait_seconds, dry_run=invocation.flag("dry_run")
    )
