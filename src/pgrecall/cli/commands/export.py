"""``export``: plain files that need no pgrecall."""

from __future__ import annotations

import click

from pgrecall.app.exporting import export_dump
from pgrecall.app.requests import ExportRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled


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
    ),
)
@click.argument("item", metavar="DUMP")
@click.option("--to", required=True, type=click.Path(), help="A directory, new or empty.")
@click.option("--passphrase", default="", metavar="REFERENCE", help="For gpg: env:NAME, file:PATH.")
@click.option("--plain-passwords", is_flag=True, help="Leave hashes of passwords readable.")
@journalled("export")
def command(
    invocation: Invocation, *, item: str, to: str, passphrase: str, plain_passwords: bool
) -> None:
    """Write a dump as plain files, with checksums and a RESTORE.md of the exact commands.

    PostgreSQL's own tools bring it back. Hashes of passwords are encrypted by gpg (AES256)
    unless --plain-passwords says otherwise.
    """
    request = ExportRequest(
        item_id=item, to=to, passphrase=passphrase, plain_passwords=plain_passwords
    )
    invocation.emit(export_dump(invocation.context(), request), "export-dump/1")
