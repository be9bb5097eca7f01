"""``load``: bring a dump back."""

from __future__ import annotations

from typing import cast

import click
import msgspec

from pgrecall.app.loading import run_load
from pgrecall.app.loading_globals import load_globals
from pgrecall.app.requests import LoadRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.dump.role_names import parse_role_map
from pgrecall.errors import UsageError
from pgrecall.further_errors import LoadError
from pgrecall.model.dumps import LoadChoice

_MEBIBYTE = 1 << 20


@framed_command(
    "load",
    changes=True,
    examples=(
        Example(
            "pgrecall load d-20261122T201637Z-7k3q --into shop --create", "into a new database"
        ),
        Example(
            "pgrecall load d-20261122T201637Z-7k3q --into shop --swap",
            "in the place of shop, which is kept; 'pgrecall undo' takes it back",
        ),
        Example(
            "pgrecall load d-20261122T201637Z-7k3q --database shop --into trial --table orders",
            "one table, into another database",
        ),
        Example("pgrecall load d-20261122T201637Z-7k3q --globals", "roles and tablespaces"),
        Example("pgrecall load /tmp/shop.sql.gz --into shop --create", "what pg_dump has written"),
    ),
)
@click.argument("source", metavar="DUMP|PATH")
@click.option("--database", default="", help="Which database of the dump. [default: the only one]")
@click.option("--into", default="", metavar="DATABASE", help="Where to.")
@click.option("--globals", "only_globals", is_flag=True, help="Roles and tablespaces of a dump.")
@click.option("--create", "creates", is_flag=True, help="Make the database; dropped on failure.")
@click.option("--swap", "swaps", is_flag=True, help="Replace the database, and keep the old one.")
@click.option("--clean", is_flag=True, help="Drop what the dump brings before it is loaded.")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, help="Sessions that load.")
@click.option("--schema-only", is_flag=True, help="Definitions without rows.")
@click.option("--data-only", is_flag=True, help="Rows without definitions.")
@click.option("--section", "sections", multiple=True, help="pre-data, data, post-data.")
@click.option("--table", "tables", multiple=True, help="Only these tables. Repeatable.")
@click.option("--schema", "schemas", multiple=True, help="Only these schemas.")
@click.option("--exclude-schema", "exclude_schemas", multiple=True, help="Not these schemas.")
@click.option("--only-large-objects", is_flag=True, help="Large objects and nothing else.")
@click.option("--role-map", multiple=True, metavar="OLD=NEW", help="NEW in the place of OLD.")
@click.option("--no-owner", is_flag=True, help="Everything belongs to the role that loads.")
@click.option("--no-privileges", is_flag=True, help="Without GRANT and REVOKE.")
@click.option("--no-tablespaces", is_flag=True, help="All into the default tablespace.")
@click.option("--disable-triggers", is_flag=True, help="While rows are loaded (superuser).")
@click.option("--single-transaction", is_flag=True, help="All or nothing.")
@click.option(
    "--exit-on-error/--report",
    "stops",
    default=True,
    help="End at the first error, or go on and list them. [default: end]",
)
@click.option("--passphrase", default="", metavar="REFERENCE", help="For gpg: env:NAME, file:PATH.")
@click.option("--analyze/--no-analyze", "analyzes", default=True, help="ANALYZE afterwards.")
@click.option(
    "--maintenance-memory-bytes",
    type=click.IntRange(_MEBIBYTE),
    default=256 * _MEBIBYTE,
    help="maintenance_work_mem of each session, for indexes. [default: 256 MiB]",
)
@journalled("load", connects=True)
def command(
    invocation: Invocation,
    *,
    source: str,
    database: str,
    into: str,
    only_globals: bool,
    stops: bool,
    **options: object,
) -> int:
    """Load a database of a dump, or a file that pg_dump wrote, into a server.

    The plan says what is there already, and which roles are missing. A path may be an SQL
    script, a custom, tar or directory dump, also compressed (gzip, bzip2, zstd, lz4) or encrypted
    by gpg (.gpg). Nothing is replaced unless --clean or --swap says so. Ends with 49 when a
    statement has failed.
    """
    context = invocation.context()
    if only_globals:
        if into or database:
            raise UsageError("--globals goes into no database", hint="leave --into out")
        result = load_globals(context, source)
        invocation.emit(result, "load-globals/1")
        return LoadError.exit_status if result.errors else 0
    if not into:
        raise UsageError("--into is missing", hint="name the database to load into")
    if options["creates"] and options["swaps"]:
        raise UsageError("--create and --swap exclude each other", hint="give one of them")
    mapped = cast("tuple[str, ...]", options.pop("role_map"))
    names = [one for one in LoadChoice.__struct_fields__ if one not in ("goes_on", "role_map")]
    choice = {name: options.pop(name) for name in names}
    choice |= {"goes_on": not stops, "role_map": parse_role_map(mapped)}
    maintenance_bytes = options.pop("maintenance_memory_bytes")
    request = msgspec.convert(
        {
            "source": source,
            "database": database,
            "into": into,
            "choice": choice,
            "maintenance_bytes": maintenance_bytes,
            **options,
        },
        LoadRequest,
    )
    loaded = run_load(context, request)
    invocation.emit(loaded, "load/1")
    failed = any(one.severity == "fail" for one in loaded.findings)
    return LoadError.exit_status if failed else 0
