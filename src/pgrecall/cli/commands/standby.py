"""``standby build``: a standby from the repository."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from pgrecall.app.requests import StandbyBuildRequest
from pgrecall.app.standbys import build_standby
from pgrecall.cli.commands.restore import mapping_of
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import UsageError


@framed_command(
    "build",
    changes=True,
    examples=(
        Example(
            "pgrecall standby build --target-dir /data --slot replica1"
            " --primary postgresql://replicator@db1/postgres",
            "from the newest backup; it then streams",
        ),
        Example(
            "pgrecall standby build --target-dir /data --delta"
            " --primary 'postgresql://replicator@db1/postgres?passfile=/etc/pg/replica.pass'",
            "rebuild a stopped one: only what differs is written",
        ),
    ),
)
@click.option("--target-dir", required=True, type=click.Path(), help="PGDATA of the standby.")
@click.option("--primary", required=True, metavar="URL", help="Whom it follows; no password.")
@click.option("--slot", default="", metavar="NAME", help="A slot there; made if it is absent.")
@click.option("--backup", "backup_id", default="", metavar="ID", help="[default: the newest]")
@click.option("--delta", is_flag=True, help="Overwrite the stopped PGDATA there.")
@click.option("--keep-old", default="", type=click.Path(), help="Keep the PGDATA there in here.")
@click.option("--tablespace-map", multiple=True, metavar="OLD=NEW", help="For each tablespace.")
@click.option("--listen", "listen_addresses", default="", help="[default: the socket only]")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: a free one]")
@click.option("--start/--no-start", default=True, help="Start it, and wait until it streams.")
@click.option("--wait-seconds", type=click.FloatRange(0, 86_400), default=600.0, show_default=True)
@journalled("standby build", given=("target_dir", "slot"), connects=True)
def build_command(
    invocation: Invocation, *, target_dir: str, tablespace_map: Sequence[str], **options: Any
) -> None:
    """Build a standby from the newest backup and the archive, or rebuild one.

    The primary gives none of the data; it is asked first whether it can be followed, and a
    slot is made there if need be. Ends when primary and standby both say that it streams.
    """
    if not target_dir:
        raise UsageError("--target-dir is empty", hint="name the standby's data directory")
    request = StandbyBuildRequest(
        target_dir=target_dir,
        tablespace_map=mapping_of(tablespace_map),
        dry_run=invocation.flag("dry_run"),
        **options,
    )
    invocation.emit(build_standby(invocation.context(), request), "standby-build/1")
