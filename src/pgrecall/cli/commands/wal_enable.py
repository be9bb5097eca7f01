"""``wal enable``: archiving on, and with --undo back to what it was."""

from __future__ import annotations

import re

import click
from msgspec import structs

from pgrecall.app.enabling import EnableResult, run_enable
from pgrecall.app.enabling_undo import run_undo
from pgrecall.app.requests import EnableRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import UsageError
from pgrecall.model.findings import worst

_SIZE = re.compile(r"(\d+)\s*(MB|GB|TB)?", re.IGNORECASE)
_MIB = {"MB": 1, "GB": 1 << 10, "TB": 1 << 20}
_NOT_AS_IT_SHOULD = 1


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A size as PostgreSQL writes it, in MiB."""
    del context, parameter
    if value is None:
        return None
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise click.BadParameter(f"{value!r} is no size such as 1GB or 512MB")
    return int(found[1]) * _MIB[(found[2] or "MB").upper()]


@framed_command(
    "enable",
    changes=True,
    examples=(
        Example("pgrecall wal enable --dry-run", "what would be changed, and why"),
        Example("pgrecall wal enable --admin postgres", "show it, ask, and do it"),
        Example("pgrecall wal enable --yes --restart --write-hba", "everything, at once"),
        Example("pgrecall wal enable --replace", "take over from another archive_command"),
        Example("pgrecall wal enable --undo --admin postgres", "back to what it was"),
    ),
)
@click.option("--undo", is_flag=True, help="Bring back what was there before.")
@click.option("--admin", default="", help="Role to do it as. [default: the server's user]")
@click.option("--agent", is_flag=True, help="Archive through the agent's client without Python.")
@click.option("--client", default="", type=click.Path(), help="That client, in a shared volume.")
@click.option("--replace", is_flag=True, help="An archive_command of something else may go.")
@click.option("--restart", is_flag=True, help="Restart the server where that is needed.")
@click.option("--role", default="pgrecall", show_default=True, help="Role with the least rights.")
@click.option("--no-role", is_flag=True, help="Make no role, grant nothing.")
@click.option("--role-password", default="", help="Where its password is: env:NAME or file:/path.")
@click.option("--write-hba", is_flag=True, help="Let the role in by pg_hba.conf, pg_ident.conf.")
@click.option("--slot", is_flag=True, help="Make the slot of [receive] as well.")
@click.option(
    "--archive-timeout",
    type=click.IntRange(0, 2**30),
    help="Seconds after which an idle server archives. [default: 60, if nothing is set]",
)
@click.option(
    "--wal-keep", callback=_size, help="wal_keep_size, e.g. 2GB. [default: 1GB, if nothing is set]"
)
@journalled("wal enable", connects=True)
def enable_command(
    invocation: Invocation,
    *,
    no_role: bool,
    archive_timeout: int | None,
    wal_keep: int | None,
    **options: str | bool,
) -> int:
    """Turn archiving on: settings, a role, and what a receiver needs.

    Shows what is there, what it will be, and why; values that are right are left
    alone. Everything is recorded in the repositories before it is changed, and
    --undo brings exactly that back. One segment is pushed by the new
    archive_command before it is given to the server. Nothing is restarted unless
    --restart says so.
    """
    if no_role:
        options["role"] = ""
    request = EnableRequest(
        **options,  # type: ignore[arg-type]
        archive_timeout_seconds=archive_timeout,
        wal_keep_mib=wal_keep,
        dry_run=invocation.flag("dry_run"),
    )
    if request.undo:
        undone = run_undo(invocation.context(), request)
        invocation.emit(undone, "wal-enable-undo/1")
        return 0
    if request.role_password and not request.role:
        raise UsageError("--role-password needs a role", hint="leave --no-role out")
    result = run_enable(invocation.context(), request)
    if invocation.flag("json"):
        invocation.emit(result, "wal-enable/1")
    else:
        # Lines to paste stand by themselves: in a table they would be cut or folded.
        shown = structs.replace(result, done=(), next_steps=())
        invocation.emit(shown, "wal-enable/1")
        _tell(result)
    return _NOT_AS_IT_SHOULD if worst(list(result.findings)) == "fail" else 0


def _tell(result: EnableResult) -> None:
    for line in result.done:
        click.echo(line)
    for line in result.plan.by_hand:
        click.echo(f"    {line}")
    is_out = any(finding.code == "role-not-admitted" for finding in result.findings)
    for path, lines in (("pg_hba.conf", result.plan.hba), ("pg_ident.conf", result.plan.ident)):
        if lines and is_out:
            click.echo(f"\nlines of {path} that let the role in, at its top:")
            for line in lines:
                click.echo(f"    {line}")
    if result.next_steps:
        click.echo("\nthen:")
        for line in result.next_steps:
            click.echo(f"    {line}")
