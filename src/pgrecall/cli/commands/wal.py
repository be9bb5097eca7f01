"""``wal push`` and ``wal fetch`` in the tree: for help and completion.

PostgreSQL's own calls never come here: entry.py sends them straight to
wal_transfer.py, which both share.
"""

from __future__ import annotations

import click

from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.wal_transfer import TransferOptions, fetch, push


@framed_command(
    "push",
    examples=(
        Example("archive_command = 'pgrecall wal push \"%p\"'", "in postgresql.conf"),
        Example(
            "pgrecall wal push pg_wal/000000010000000000000001",
            "by hand, in PGDATA; a file that is there already is success",
        ),
    ),
)
@click.argument("path")
def push_command(invocation: Invocation, *, path: str) -> int:
    """Archive one WAL file; ends with 0 only when it is durable.

    For archive_command. Other content under the same name is refused. A failure
    ends with 1 to 125, so that PostgreSQL keeps the file and tries again.
    """
    return push(path, _options(invocation))


@framed_command(
    "fetch",
    examples=(
        Example(
            'restore_command = \'pgrecall wal fetch %f "%p" '
            "|| { [ $? -eq 64 ] && exit 1; exit 200; }'",
            "in postgresql.conf; restore writes it",
        ),
        Example("pgrecall wal fetch 000000010000000000000001 /tmp/segment", "by hand"),
    ),
)
@click.argument("name")
@click.argument("destination", type=click.Path())
def fetch_command(invocation: Invocation, *, name: str, destination: str) -> int:
    """Deliver one archived WAL file to DESTINATION.

    Ends with 0 when it is delivered whole, 64 when it is proven absent from every
    repository, and anything else when that is not known.
    """
    return fetch(name, destination, _options(invocation))


def _options(invocation: Invocation) -> TransferOptions:
    names = ("config", "server", "repository", "log_level")
    given = {name: invocation.text(name) for name in names}
    values = {f"--{name.replace('_', '-')}": text for name, text in given.items() if text}
    return TransferOptions(values, as_json=invocation.flag("json"))
