"""``import``: WAL that others have archived."""

from __future__ import annotations

import click

from pgrecall.app.importing import run_import
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled


@framed_command(
    "import",
    changes=True,
    examples=(
        Example("pgrecall import /var/lib/postgresql/archive", "what archive_command has copied"),
        Example("pgrecall import ./backups/postgresql/wal/wal-archive.tar.gz", "an archive of it"),
        Example("pgrecall import /archive --dry-run", "check all of it, and store nothing"),
    ),
)
@click.argument("path", type=click.Path())
@journalled("import", given=("path",))
def command(invocation: Invocation, *, path: str) -> None:
    """Take WAL in: a directory of segments and history files, a tar archive, or one file.

    Files may be packed (.gz, .bz2, .zst, .lz4). Each is checked before the first one is stored:
    name, size, page header, and that it is of this server. What the archive has already, with the
    same content, is not stored again; other content under a name is refused. Ends with 63
    when a file is not what it should be, and then nothing was imported.
    """
    invocation.emit(run_import(invocation.context(), path), "import/1")
