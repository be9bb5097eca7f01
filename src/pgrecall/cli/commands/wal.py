"""``wal push`` and ``wal fetch`` in the tree: for help and completion.

PostgreSQL's own calls never come here: entry.py sends them straight to
the modules wal_*.py beside this directory, which both share.
"""

from __future__ import annotations

import click

from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.wal_transfer import fetch, push
from pgrecall.cli.wal_words import TransferOptions

_agent_socket = click.option(
    "--agent-socket",
    type=click.Path(),
    help="Ask the agent at this socket; no settings are loaded when it answers. "
    "[env: PGRECALL_AGENT_SOCKET; default: the one in the settings]",
)
_no_agent = click.option("--no-agent", is_flag=True, help="Do it without asking an agent.")
_ahead = click.option(
    "--ahead",
    is_flag=True,
    help="Where no agent answers, have a process beside the server fetch the next ones ahead.",
)


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
@_agent_socket
@_no_agent
def push_command(
    invocation: Invocation, *, path: str, agent_socket: str | None, no_agent: bool
) -> int:
    """Archive one WAL file; ends with 0 only when it is durable.

    For archive_command. Other content under the same name is refused. A failure
    ends with 1 to 125, so that PostgreSQL keeps the file and tries again.
    """
    del agent_socket, no_agent  # heeded by the stages of entry.py, where every call goes
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
@_agent_socket
@_no_agent
@_ahead
def fetch_command(
    invocation: Invocation,
    *,
    name: str,
    destination: str,
    agent_socket: str | None,
    no_agent: bool,
    ahead: bool,
) -> int:
    """Deliver one archived WAL file to DESTINATION.

    Ends with 0 when it is delivered whole, 64 when it is proven absent from every
    repository, and anything else when that is not known.
    """
    del agent_socket, no_agent, ahead
    return fetch(name, destination, _options(invocation))


def _options(invocation: Invocation) -> TransferOptions:
    names = ("config", "server", "repository", "log_level")
    given = {name: invocation.text(name) for name in names}
    values = {f"--{name.replace('_', '-')}": text for name, text in given.items() if text}
    return TransferOptions(values, as_json=invocation.flag("json"))
