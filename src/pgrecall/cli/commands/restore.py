"""``restore``: a backup and WAL back into a data directory."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pgrecall.app.requests import RestoreRequest
from pgrecall.app.restoring import run_restore
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.cli.targets import target_of
from pgrecall.errors import UsageError

_HIGHEST_XID = (1 << 32) - 1
_HIGHEST_TIMELINE = (1 << 32) - 1


@framed_command(
    "restore",
    changes=True,
    examples=(
        Example("pgrecall restore --dry-run", "the plan: which backup, which WAL, how much"),
        Example("pgrecall restore", "all there is, into the empty data directory"),
        Example(
            "pgrecall restore --keep-old /var/lib/postgresql/18/main.old --take-over --start",
            "in place of the stopped server; pgrecall undo takes it back",
        ),
        Example(
            "pgrecall restore --to-time '2026-11-22 20:16:37+00' --target-dir /restore --start",
            "a moment, beside production, and start it",
        ),
        Example(
            "pgrecall restore --to-name before_migration --action pause --start",
            "a restore point; look around, then pgrecall recovery promote",
        ),
        Example("pgrecall restore --to-xid 7301 --exclusive", "just before that transaction"),
    ),
)
@click.option("--to-time", metavar="TIME", help="Stop at this moment; it must name its zone.")
@click.option("--to-lsn", metavar="LSN", help="Stop at this position.")
@click.option("--to-xid", metavar="XID", type=click.IntRange(3, _HIGHEST_XID))
@click.option("--to-name", metavar="NAME", help="Stop at this restore point.")
@click.option("--immediate", is_flag=True, help="Stop where the backup is consistent.")
@click.option("--exclusive", is_flag=True, help="Stop just before the target.")
@click.option("--timeline", type=click.IntRange(1, _HIGHEST_TIMELINE), help="[default: planned]")
@click.option("--action", type=click.Choice(("promote", "pause", "shutdown")), default="promote")
@click.option("--backup", "backup_id", default="", metavar="ID", help="[default: planned]")
@click.option("--allow-damaged", is_flag=True, help="With --backup: also one that is marked.")
@click.option("--target-dir", type=click.Path(), help="[default: data_directory]")
@click.option("--tablespace-map", multiple=True, metavar="OLD=NEW", help="For each tablespace.")
@click.option("--standby", is_flag=True, help="Make a standby: standby.signal.")
@click.option("--start", is_flag=True, help="Start it, wait for the end of recovery, report.")
@click.option("--port", type=click.IntRange(1, 65535), help="With --start. [default: a free one]")
@click.option("--take-over", is_flag=True, help="The copy becomes the owner of the archive.")
@click.option("--keep-old", type=click.Path(), help="Replace the PGDATA there; keep it in here.")
@click.option("--delta", is_flag=True, help="Overwrite the PGDATA there, where it differs.")
@click.option("--database", "databases", multiple=True, metavar="NAME", help="Only these.")
@click.option("--drop-others", is_flag=True, help="Drop the other databases after the start.")
@click.option("--switch-wal/--no-switch-wal", default=True, help="Archive a live server's newest.")
@click.option("--verify-wal", is_flag=True, help="Read all WAL that is needed before writing.")
@click.option("--workers", type=int, help="Threads; 0: two for each core. [restore]")
@journalled("restore", given=("target_dir",))
def command(
    invocation: Invocation,
    *,
    tablespace_map: Sequence[str],
    databases: Sequence[str],
    workers: int | None,
    **options: str | int | bool | None,
) -> None:
    """Bring a server back to a moment: the latest, or the target that is named.

    The plan is shown first. A target that cannot be reached is refused with the
    reason and the nearest one that can, before a byte is written.
    """
    if options["target_dir"] == "":
        raise UsageError(
            "--target-dir is empty",
            hint="name a directory; to restore into the server's own, leave the option out",
        )
    if options["keep_old"] == "":
        raise UsageError("--keep-old is empty", hint="name a directory beside the data directory")
    if options["allow_damaged"] and not options["backup_id"]:
        raise UsageError("--allow-damaged needs --backup ID", hint="name the damaged backup")
    target = target_of(options)
    values = {
        name: value
        for name, value in options.items()
        if name in RestoreRequest.__struct_fields__ and value is not None
    }
    request = RestoreRequest(
        target=target,
        tablespace_map=mapping_of(tablespace_map),
        databases=tuple(databases),
        dry_run=invocation.flag("dry_run"),
        **values,  # type: ignore[arg-type]
    )
    context = invocation.context({"restore.workers": workers})
    invocation.emit(run_restore(context, request), "restore/1")


def mapping_of(pairs: Sequence[str]) -> dict[str, str]:
    """What ``--tablespace-map`` says; raises UsageError."""
    mapping: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not equals or not old or not new:
            raise UsageError(
                f"{pair!r} maps no tablespace", hint="write --tablespace-map /old/dir=/new/dir"
            )
        if old in mapping:
            raise UsageError(f"the tablespace {old!r} is mapped twice")
        mapping[old] = new
    return mapping
