"""``find`` and ``wal index``: the WAL archive as knowledge."""

from __future__ import annotations

import click

from pgrecall.app.finding import run_find
from pgrecall.app.indexing import run_wal_index
from pgrecall.app.requests import FindRequest, WalIndexRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import UsageError
from pgrecall.model.targets import parse_time

_HIGHEST_XID = (1 << 32) - 1
_HIGHEST_TIMELINE = (1 << 32) - 1

_timeline = click.option(
    "--timeline", type=click.IntRange(1, _HIGHEST_TIMELINE), help="[default: all]"
)


@framed_command(
    "find",
    examples=(
        Example("pgrecall find --dropped orders", "when it was dropped, and how to get it back"),
        Example("pgrecall find --truncated 'shop.public.order*'", "with database, and a pattern"),
        Example("pgrecall find --deletes", "transactions that deleted many rows"),
        Example("pgrecall find --at '2026-11-22 20:16:37+00'", "the commits before and after"),
        Example("pgrecall find --restore-points", "every named restore point"),
        Example("pgrecall find --xid 7301", "where that transaction ended"),
    ),
)
@click.option("--restore-points", is_flag=True, help="Every named restore point.")
@click.option("--dropped", default="", metavar="TABLE", help="When this table was dropped.")
@click.option("--truncated", default="", metavar="TABLE", help="When this table was truncated.")
@click.option("--at", metavar="TIME", help="The commits around this moment; it must name its zone.")
@click.option("--xid", metavar="XID", type=click.IntRange(3, _HIGHEST_XID))
@click.option("--deletes", is_flag=True, help="Transactions that deleted many rows.")
@_timeline
def command(
    invocation: Invocation, *, at: str | None, xid: int | None, **options: str | int | bool | None
) -> None:
    """Find a moment in the archive, with the command line that restores it.

    TABLE is a name, SCHEMA.TABLE or DATABASE.SCHEMA.TABLE; * and ? stand for anything. Many
    rows are 1,000, or a tenth of the table if that is 100 or more.
    """
    moment = parse_time(at) if at is not None else None
    request = FindRequest(at=moment, xid=xid or 0, **options)  # type: ignore[arg-type]
    invocation.emit(run_find(invocation.context(), request), "find/1")


@framed_command(
    "index",
    changes=True,
    examples=(
        Example("pgrecall wal index --dry-run", "how many segments lack an index that tells all"),
        Example("pgrecall wal index --from 1/A0000000", "from this position on"),
    ),
)
@click.option("--from", "first", default="", metavar="LSN", help="LSN or segment. [default: all]")
@click.option("--to", "last", default="", metavar="LSN", help="LSN or segment. [default: all]")
@_timeline
@journalled("wal index", given=("first", "last", "timeline"))
def wal_index_command(
    invocation: Invocation, *, first: str, last: str, timeline: int | None
) -> None:
    """Index segments that were stored before indexes told of tables.

    Reads each of them once, and stores its index beside the archive; segments are not changed.
    Interrupted, it goes on where it stopped.
    """
    if first and last and ("/" in first) != ("/" in last):
        raise UsageError("--from and --to are an LSN and a segment", hint="write both alike")
    request = WalIndexRequest(
        first=first, last=last, timeline=timeline, dry_run=invocation.flag("dry_run")
    )
    invocation.emit(run_wal_index(invocation.context(), request), "wal-index/1")
