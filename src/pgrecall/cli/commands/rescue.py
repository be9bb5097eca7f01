"""``rescue``: tables back from a moment, beside the living ones."""

from __future__ import annotations

import click

from pgrecall.app.requests import RescueRequest
from pgrecall.app.rescuing import run_rescue
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.cli.targets import target_of
from pgrecall.errors import UsageError

_HIGHEST_XID = (1 << 32) - 1
_HIGHEST_TIMELINE = (1 << 32) - 1


@framed_command(
    "rescue",
    changes=True,
    examples=(
        Example(
            "pgrecall rescue orders --to-time '2026-11-22 20:14:59+00'",
            "as it was then, into a new schema of the same database",
        ),
        Example(
            "pgrecall rescue sales.orders sales.lines --to-lsn 0/5A3C9D0 --exclusive"
            " --database shop",
            "two tables of the database shop, just before a DROP that 'pgrecall find' named",
        ),
        Example("pgrecall rescue orders --to-time '...' --dry-run", "what would be restored"),
    ),
)
@click.argument("tables", nargs=-1, required=True, metavar="TABLE...")
@click.option("--to-time", metavar="TIME", help="Stop at this moment; it must name its zone.")
@click.option("--to-lsn", metavar="LSN", help="Stop at this position.")
@click.option("--to-xid", metavar="XID", type=click.IntRange(3, _HIGHEST_XID))
@click.option("--to-name", metavar="NAME", help="Stop at this restore point.")
@click.option("--immediate", is_flag=True, help="Stop where the newest backup is consistent.")
@click.option("--exclusive", is_flag=True, help="Stop just before the target.")
@click.option("--timeline", type=click.IntRange(1, _HIGHEST_TIMELINE), help="[default: planned]")
@click.option("--database", default="", help="Where the tables were. [default: of the settings]")
@click.option("--into", default="", metavar="DATABASE", help="Where they go. [default: the same]")
@click.option("--schema", default="", help="The new schema for them. [default: rescued_...]")
@click.option("--as", "new_name", default="", metavar="NAME", help="What one table is called then.")
@click.option("--no-owner", is_flag=True, help="They belong to the role that loads them.")
@click.option("--directory", type=click.Path(), help="Where the copy goes to. [drill]")
@journalled("rescue", connects=True)
def command(
    invocation: Invocation,
    *,
    tables: tuple[str, ...],
    no_owner: bool,
    directory: str | None,
    timeline: int | None,
    **options: object,
) -> None:
    """Bring TABLES back as they were at a moment, and load them beside the living ones.

    A throwaway copy of their database is restored to that moment; the tables are moved into a
    new schema, loaded into the living server in one transaction, and compared by rows and
    hashes. Nothing that is there is changed. Foreign keys are left out, and named.
    """
    names = ("to_time", "to_lsn", "to_xid", "to_name", "immediate")
    if not any(options[name] for name in names):
        raise UsageError(
            "at which moment?",
            hint="say --to-time, --to-lsn, --to-xid or --to-name; pgrecall find --dropped TABLE"
            " tells when it went",
        )
    context = invocation.context({"drill.directory": directory})
    request = RescueRequest(
        tables=tables,
        target=target_of(options),
        database=str(options["database"]),
        into=str(options["into"]),
        schema=str(options["schema"]),
        new_name=str(options["new_name"]),
        timeline=timeline,
        no_owner=no_owner,
        dry_run=invocation.flag("dry_run"),
    )
    invocation.emit(run_rescue(context, request), "rescue/1")
