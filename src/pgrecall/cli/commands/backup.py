"""``backup``: a physical backup."""

from __future__ import annotations

import click

from pgrecall.app.backing_up import run_backup
from pgrecall.app.requests import BackupRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import BackupDamagedError, CopyFailedError
from pgrecall.settings.sections import BackupSettings, ServerSettings

_FIELDS = BackupSettings.fields


@framed_command(
    "backup",
    changes=True,
    examples=(
        Example("pgrecall backup", "of the only server: what has changed since the last one"),
        Example("pgrecall backup --full", "everything, also what older backups hold already"),
        Example("pgrecall backup --server shop --checkpoint spread", "without a burst of writes"),
        Example("pgrecall backup --nice 19 --bytes-per-second 50000000", "beside a busy server"),
        Example("pgrecall backup --source stream", "of a server on another host, or a standby"),
        Example("pgrecall backup --with-wal", "can be restored without the WAL archive"),
        Example("pgrecall backup --dry-run", "what would be copied, and where to"),
    ),
)
@click.option("--full", is_flag=True, help="Store everything, whatever older backups hold.")
@click.option(
    "--source",
    type=click.Choice(ServerSettings.fields["source"].choices),
    default=None,
    help="Read PGDATA here, or have the server send it. [servers]",
)
@click.option("--checkpoint", type=click.Choice(_FIELDS["checkpoint"].choices), help="[backup]")
@click.option("--compression", type=click.Choice(_FIELDS["compression"].choices), help="[backup]")
@click.option("--level", type=int, help="Level of the compression. [backup]")
@click.option("--workers", type=int, help="Threads; 0: one for each core. [backup]")
@click.option("--bytes-per-second", type=int, help="Read at most; 0: no limit. [backup]")
@click.option("--nice", type=int, help="0 to 19: give way to other processes. [backup]")
@click.option("--io-priority", type=click.Choice(_FIELDS["io_priority"].choices), help="[backup]")
@click.option("--with-wal", is_flag=True, help="Copy the WAL that it needs into the backup.")
@journalled("backup", connects=True)
def command(
    invocation: Invocation,
    *,
    full: bool,
    source: str | None,
    with_wal: bool,
    **overrides: str | int | None,
) -> int:
    """Back the server up, while it runs.

    A backup stores what has changed since the one before, and refers to the packs of
    older ones for the rest; every backup can be restored alone, and any of them may
    go. The first, and one every full_every_days, is full.

    The backup counts as complete when all of its files and the WAL that makes
    them consistent are in the repository. Options marked [backup] override the
    setting of the same name. Then it is copied to the repositories that say so
    (copies_backups). Ends with 42 when the backup is complete, and pages of the server's
    data in it are damaged; with 45 when a required repository did not get its copy.
    """
    context = invocation.context({f"backup.{key}": value for key, value in overrides.items()})
    request = BackupRequest(
        full=full, with_wal=with_wal, source=source or "", dry_run=invocation.flag("dry_run")
    )
    result = run_backup(context, request)
    invocation.emit(result, "backup/1")
    failed = {finding.code for finding in result.findings if finding.severity == "fail"}
    if failed == {CopyFailedError.code}:
        return CopyFailedError.exit_status
    return BackupDamagedError.exit_status if failed else 0
