"""``set create`` and ``set restore``: everything of one moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from pgrecall.app.requests import SetCreateRequest, SetRestoreRequest
from pgrecall.app.set_creating import create_set
from pgrecall.app.set_restoring import restore_set
from pgrecall.cli.commands.restore import mapping_of
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import UsageError
from pgrecall.further_errors import SetError
from pgrecall.model.findings import Finding
from pgrecall.sets.plan import Mode


@framed_command(
    "create",
    changes=True,
    examples=(
        Example("pgrecall set create", "capture, backup, dumps and WAL of one moment"),
        Example("pgrecall set create --no-physical", "without backup and WAL"),
        Example("pgrecall set create --proofs", "a logical restore compares every row"),
        Example("pgrecall set create --dry-run", "what would be in it"),
    ),
)
@click.option("--physical/--no-physical", default=True, help="With a backup and its WAL.")
@click.option("--dumps/--no-dumps", default=True, help="With globals and dumps of all databases.")
@click.option("--proofs", is_flag=True, help="Count and hash all rows of the dumps (reads all).")
@click.option(
    "--with-passwords/--no-passwords",
    "passwords",
    default=None,
    help="Whether dumped roles keep their passwords. [default: in encrypted repositories]",
)
@click.option("--jobs", type=click.IntRange(1, 64), help="Workers of backup and dump. [settings]")
@journalled("set create", connects=True)
def create_command(
    invocation: Invocation,
    *,
    physical: bool,
    dumps: bool,
    proofs: bool,
    passwords: bool | None,
    jobs: int | None,
) -> int:
    """Make a recovery set: everything of a server, of one moment, under one id.

    A backup first; then the dumps take their snapshots, and at that moment the configuration is
    captured and a restore point is set, which has the name of the set. The set exists when its
    record is written, and all WAL up to the restore point is archived. When it fails there is no
    set; parts that were complete stay as ordinary backups and dumps. Ends with 59 when the
    set is complete, and something is wrong with a part of it.
    """
    context = invocation.context({"dump.jobs": jobs, "backup.workers": jobs})
    request = SetCreateRequest(
        physical=physical,
        dumps=dumps,
        with_proofs=proofs,
        passwords=passwords,
        dry_run=invocation.flag("dry_run"),
    )
    result = create_set(context, request)
    invocation.emit(result, "set-create/1")
    return _status(result.findings)


@framed_command(
    "restore",
    changes=True,
    examples=(
        Example(
            "pgrecall set restore s-20261122T201637Z-7k3q --target-dir /data",
            "from its backup, to its restore point, started and compared",
        ),
        Example(
            "pgrecall set restore s-20261122T201637Z-7k3q --logical --target-dir /data",
            "from its dumps, into a new server",
        ),
        Example(
            "pgrecall set restore s-20261122T201637Z-7k3q --logical --host db2 --port 5432",
            "from its dumps, into an empty server that runs",
        ),
    ),
)
@click.argument("set_id", metavar="SET")
@click.option("--target-dir", default="", type=click.Path(), help="A directory, new or empty.")
@click.option("--physical", is_flag=True, help="From the backup. [default: if there is one]")
@click.option("--logical", is_flag=True, help="From the dumps; without --target-dir into a server.")
@click.option("--tablespace-map", multiple=True, metavar="OLD=NEW", help="For each tablespace.")
@click.option("--host", default="", help="With --logical: a server. [default: as configured]")
@click.option("--port", type=click.IntRange(1, 65535), help="Of it. [default: a free one]")
@click.option("--user", default="", help="With --host: as whom. [default: as configured]")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, help="Sessions that load.")
@click.option("--slots/--no-slots", default=True, help="Make the replication slots again.")
@journalled("set restore", given=("set_id", "target_dir"))
def restore_command(
    invocation: Invocation,
    *,
    physical: bool,
    logical: bool,
    tablespace_map: Sequence[str],
    **options: Any,
) -> int:
    """Bring a recovery set back on an empty host, in order, and hold it to its capture.

    From the backup: the files, recovery to the restore point, slots. From the dumps: a new
    server, or one that is there, roles, every database. Databases that are in use are never
    replaced. After a kill the same command goes on. Ends with 59 when what came back is not
    what the set has.
    """
    if physical and logical:
        raise UsageError("--physical and --logical exclude each other", hint="give one of them")
    mode: Mode | None = "physical" if physical else "logical" if logical else None
    request = SetRestoreRequest(
        mode=mode or "",
        tablespace_map=mapping_of(tablespace_map),
        dry_run=invocation.flag("dry_run"),
        **options,
    )
    result = restore_set(invocation.context(), request)
    invocation.emit(result, "set-restore/1")
    return _status(result.findings)


def _status(findings: tuple[Finding, ...]) -> int:
    failed = any(one.severity == "fail" for one in findings)
    return SetError.exit_status if failed else 0
