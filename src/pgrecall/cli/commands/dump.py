"""``dump``: a logical copy."""

from __future__ import annotations

import click
import msgspec

from pgrecall.app.dumping import run_dump
from pgrecall.app.requests import DumpRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import CopyFailedError, UsageError
from pgrecall.model.dumps import LargeObjects, Scope
from pgrecall.settings.dumps import DumpSettings

_FIELDS = DumpSettings.fields


@framed_command(
    "dump",
    changes=True,
    examples=(
        Example("pgrecall dump", "every database of the only server, and the roles"),
        Example("pgrecall dump shop", "one database"),
        Example("pgrecall dump shop --format directory --jobs 4", "with four sessions"),
        Example("pgrecall dump shop --table 'sales.*' --data-only", "rows of some tables"),
        Example("pgrecall dump --globals-only", "roles and tablespaces"),
        Example("pgrecall dump --cluster", "everything as one SQL script"),
        Example("pgrecall dump --dry-run", "what would be dumped, by which pg_dump"),
    ),
)
@click.argument("databases", nargs=-1, metavar="[DATABASE]...")
@click.option("--all", "everything", is_flag=True, help="All databases (also without any name).")
@click.option("--globals-only", is_flag=True, help="Roles and tablespaces, no database.")
@click.option("--cluster", is_flag=True, help="One SQL script of everything, as of pg_dumpall.")
@click.option(
    "--proofs", is_flag=True, help="Count and hash all rows, for a drill to compare (reads all)."
)
@click.option("--no-globals", is_flag=True, help="Without roles and tablespaces.")
@click.option(
    "--with-passwords/--no-passwords",
    "passwords",
    default=None,
    help="Whether roles keep the hashes of their passwords. [default: in encrypted repositories]",
)
@click.option(
    "--format", "dump_format", type=click.Choice(_FIELDS["format"].choices), help="[dump]"
)
@click.option("--jobs", type=int, help=_FIELDS["jobs"].doc + " [dump]")
@click.option("--schema-only", is_flag=True, help="Definitions without rows.")
@click.option("--data-only", is_flag=True, help="Rows without definitions.")
@click.option("--table", "tables", multiple=True, help="Only these tables. PATTERN, repeatable.")
@click.option("--exclude-table", "exclude_tables", multiple=True, help="Not these tables.")
@click.option("--schema", "schemas", multiple=True, help="Only these schemas.")
@click.option("--exclude-schema", "exclude_schemas", multiple=True, help="Not these schemas.")
@click.option("--exclude-table-data", multiple=True, help="These tables without their rows.")
@click.option(
    "--large-objects/--no-large-objects",
    default=None,
    help="Whether large objects are dumped. [default: unless tables or schemas are named]",
)
@click.option("--only-large-objects", is_flag=True, help="Large objects and nothing else.")
@click.option(
    "--compress",
    "tool_compression",
    metavar="METHOD[:LEVEL]",
    default="",
    help="Have pg_dump compress (none, gzip, lz4, zstd). What is stored is compressed anyway.",
)
@click.option("--compression", type=click.Choice(_FIELDS["compression"].choices), help="[dump]")
@click.option("--level", type=int, help="Level of the compression of what is stored. [dump]")
@click.option("--lock-timeout-seconds", type=float, help="Wait for a table's lock. [dump]")
@journalled("dump", connects=True)
def command(
    invocation: Invocation,
    *,
    databases: tuple[str, ...],
    jobs: int | None,
    compression: str | None,
    level: int | None,
    lock_timeout_seconds: float | None,
    **options: object,
) -> int:
    """Dump databases with pg_dump into the repository: a copy that any version can load.

    All databases of a dump have their snapshots at the same time, as close as PostgreSQL
    allows; the dump says which LSN and time each has. Nothing lies anywhere in between,
    unless the format is directory. A dump that fails leaves nothing. Then it is copied to the
    repositories that say so (copies_backups); ends with 45 when a required one did not get
    it. Options marked [dump] override the setting of the same name.
    """
    context = invocation.context(
        {
            "dump.jobs": jobs,
            "dump.compression": compression,
            "dump.level": level,
            "dump.lock_timeout_seconds": lock_timeout_seconds,
        }
    )
    result = run_dump(context, _request(databases, options))
    invocation.emit(result, "dump/1")
    failed = any(one.severity == "fail" for one in result.findings)
    return CopyFailedError.exit_status if failed else 0


def _request(databases: tuple[str, ...], options: dict[str, object]) -> DumpRequest:
    scope: Scope = "databases"
    if options["globals_only"] and options["cluster"]:
        raise UsageError("--globals-only and --cluster exclude each other", hint="give one")
    if options["everything"] and databases:
        raise UsageError("--all and names of databases exclude each other", hint="give one")
    if options["globals_only"]:
        scope = "globals"
    elif options["cluster"]:
        scope = "cluster"
    large: LargeObjects = "default"
    if options["only_large_objects"]:
        large = "only"
    elif options["large_objects"] is not None:
        large = "with" if options["large_objects"] else "without"
    names = (
        "schema_only", "data_only", "tables", "exclude_tables", "schemas", "exclude_schemas",
        "exclude_table_data",
    )  # fmt: skip
    content = {name: options[name] for name in names} | {"large_objects": large}
    return msgspec.convert(
        {
            "databases": databases,
            "scope": scope,
            "dump_format": options["dump_format"] or "",
            "content": content,
            "with_globals": not options["no_globals"],
            "with_proofs": options["proofs"],
            "passwords": options["passwords"],
            "tool_compression": options["tool_compression"],
        },
        DumpRequest,
    )
