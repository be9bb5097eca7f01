"""``export``: plain files that need no pgrecall."""

from __future__ import annotations

from typing import Any

import click

from pgrecall.app.exporting import run_export
from pgrecall.app.requests import ExportRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import UsageError


@framed_command(
    "export",
    changes=True,
    examples=(
        Example(
            "pgrecall export d-20261122T201637Z-7k3q --to ./shop",
            "a dump as files for pg_restore and psql, with sums and instructions",
        ),
        Example(
            "pgrecall export d-20261122T201637Z-7k3q --to ./shop --passphrase env:EXPORT_PASS",
            "roles with passwords, which gpg encrypts",
        ),
        Example(
            "pgrecall export b-20261122T201637Z-7k3q --to ./base",
            "a backup as pg_basebackup writes it, with its WAL",
        ),
        Example(
            "pgrecall export s-20261122T201637Z-7k3q --to ./backups/ --format tar",
            "a recovery set as postgresql-backup-TIMESTAMP.tar.gz",
        ),
        Example(
            "pgrecall export --wal 000000010000000000000003..000000010000000000000009 --to ./wal",
            "WAL as plain segments",
        ),
    ),
)
@click.argument("item", metavar="[DUMP|BACKUP|SET|CAPTURE]", default="")
@click.option("--wal", default="", metavar="FROM..TO", help="Segments or LSNs, instead of an item.")
@click.option(
    "--to", required=True, type=click.Path(), help="A directory, new or empty; or a file."
)
@click.option(
    "--format", "export_format", type=click.Choice(("directory", "tar")), default="directory",
    show_default=True, help="Files, or one tar.gz.",
)  # fmt: skip
@click.option("--passphrase", default="", metavar="REFERENCE", help="For gpg: env:NAME, file:PATH.")
@click.option("--plain-passwords", is_flag=True, help="Leave secrets readable.")
@journalled("export")
def command(
    invocation: Invocation, *, item: str, wal: str, export_format: str, **options: Any
) -> None:
    """Write what is stored as plain files, with checksums and a RESTORE.md of exact commands.

    PostgreSQL's own tools bring it back. Hashes of passwords in dumps, and the captures of an
    encrypted repository, are encrypted by gpg (AES256) unless --plain-passwords says otherwise; a
    backup is a data directory, which has them inside. Everything is written under another name
    and renamed when it is whole.
    """
    if bool(item) == bool(wal):
        raise UsageError("export what? Name one item, or --wal FROM..TO")
    first, dots, last = wal.partition("..")
    if wal and not (first and dots and last):
        raise UsageError(f"--wal {wal!r} names no range", hint="write --wal FROM..TO")
    request = ExportRequest(
        item_id=item, wal_from=first, wal_to=last, is_tar=export_format == "tar", **options
    )
    invocation.emit(run_export(invocation.context(), request), "export/1")
