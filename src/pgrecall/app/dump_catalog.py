"""``dumps list`` and ``dumps show``: what the catalog knows of dumps."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import main_repository
from pgrecall.dump.reading import DumpFiles
from pgrecall.dump.tool_run import ToolRuns
from pgrecall.errors import UsageError
from pgrecall.further_errors import LoadError
from pgrecall.model.dumps import DumpCompletion, DumpedDatabase, TableSize
from pgrecall.model.findings import Finding
from pgrecall.postgres.client_tools import find_client_tools
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.repository.retention_log import read_state
from pgrecall.system.clock import SystemClock


class DumpLine(msgspec.Struct, frozen=True):
    """One line of the list. Sizes in bytes; ``state``: empty, or held or expired with details."""

    backup_id: str
    dump_format: str
    databases: tuple[str, ...]
    snapshot_at: datetime
    duration_seconds: float
    raw_bytes: int
    stored_bytes: int
    result: str
    state: str = ""


class DumpList(msgspec.Struct, frozen=True):
    """The complete dumps of a server, oldest first; findings name those that are damaged."""

    server: str
    repository: str
    dumps: tuple[DumpLine, ...]
    findings: tuple[Finding, ...] = ()


class DumpedLine(msgspec.Struct, frozen=True):
    """One database of a dump. Sizes in bytes: on the server, and as pg_dump wrote it."""

    name: str
    owner: str
    encoding: str
    size_bytes: int
    raw_bytes: int
    tables: int
    large_objects: int
    snapshot_lsn: str
    snapshot_at: datetime


class TableLine(msgspec.Struct, frozen=True):
    """One table under the dump's snapshot; ``rows`` is the server's estimate, -1: it has none."""

    schema: str
    name: str
    rows: int
    size_bytes: int


class DumpDetails(msgspec.Struct, frozen=True):
    """All that is known of one dump; ``tables`` of the database that was asked for."""

    dump: DumpCompletion
    databases: tuple[DumpedLine, ...]
    tables: tuple[TableLine, ...] = ()
    findings: tuple[Finding, ...] = ()


class DumpContents(msgspec.Struct, frozen=True):
    """What ``pg_restore --list`` says of one database of a dump."""

    backup_id: str
    database: str
    contents: str


def list_dumps(context: RunContext, *, with_expired: bool = False) -> DumpList:
    """The dumps of the chosen server in its main repository, expired ones if that is asked."""
    opened = main_repository(context)
    name = context.server.name
    state = read_state(opened.store, name)
    complete, findings = DumpCatalog(opened.store, name).survey(
        with_expired=with_expired, state=state
    )
    holds = state.active_holds(SystemClock().now())

    def state_of(dump_id: str) -> str:
        expired = state.expired.get(dump_id)
        if expired is not None:
            return f"expired {expired.expired_at:%Y-%m-%d}"
        return f"held: {holds[dump_id].reason}" if dump_id in holds else ""

    return DumpList(
        server=name,
        repository=opened.settings.name,
        dumps=tuple(
            DumpLine(
                backup_id=dump.backup_id,
                dump_format=dump.dump_format if dump.scope == "databases" else dump.scope,
                databases=dump.databases,
                snapshot_at=dump.snapshot_at,
                duration_seconds=dump.duration_seconds,
                raw_bytes=dump.totals.raw_bytes,
                stored_bytes=dump.totals.stored_bytes,
                result=dump.worst,
                state=state_of(dump.backup_id),
            )
            for dump in complete
        ),
        findings=tuple(findings),
    )


def show_dump(context: RunContext, dump_id: str, *, tables_of: str | None = None) -> DumpDetails:
    """One dump; its manifest's root is read and checked.

    Raises DumpNotFoundError, and UsageError when it has no database ``tables_of``.
    """
    catalog = DumpCatalog(main_repository(context).store, context.server.name)
    dump = catalog.get(dump_id)
    root = catalog.manifest(dump).root
    tables: tuple[TableSize, ...] = ()
    if tables_of is not None:
        tables = database_of(dump, root.databases, tables_of).tables
    return DumpDetails(
        dump=dump,
        databases=tuple(
            DumpedLine(
                name=one.name,
                owner=one.properties.owner,
                encoding=one.properties.encoding,
                size_bytes=one.size_bytes,
                raw_bytes=one.raw_bytes,
                tables=len(one.tables),
                large_objects=one.large_objects,
                snapshot_lsn=one.snapshot_lsn,
                snapshot_at=one.snapshot_at,
            )
            for one in root.databases
        ),
        tables=tuple(TableLine(one.schema, one.name, one.rows, one.bytes) for one in tables),
        findings=root.findings,
    )


def dump_contents(context: RunContext, dump_id: str, database: str) -> DumpContents:
    """The table of contents of one database; raises DumpNotFoundError, UsageError, LoadError."""
    opened = main_repository(context)
    catalog = DumpCatalog(opened.store, context.server.name)
    dump = catalog.get(dump_id)
    manifest = catalog.manifest(dump)
    chosen = database_of(dump, manifest.root.databases, database)
    if dump.dump_format == "plain":
        raise UsageError(
            f"dump {dump_id} is a script: it has no table of contents",
            hint="dumps of format custom, directory and tar have one",
        )
    programs = find_client_tools(max(dump.server_major, dump.tool_major))
    files = DumpFiles(catalog, dump, manifest)
    with files.spooled(
        chosen.path, context.settings.dump.spool_directory, only_contents=True
    ) as path:
        found = bytearray()
        ended = ToolRuns().run(
            [programs.program("pg_restore"), "--list", path],
            context.environment,
            read=lambda stream: found.extend(stream.read()),
        )
    if ended.status != 0:
        raise LoadError(
            f"pg_restore cannot read {database!r} of dump {dump_id}: {ended.last_words}"
        )
    return DumpContents(dump_id, database, found.decode(errors="replace"))


def database_of(
    dump: DumpCompletion, databases: tuple[DumpedDatabase, ...], name: str
) -> DumpedDatabase:
    """The database of that name in a dump; raises UsageError."""
    for one in databases:
        if one.name == name:
            return one
    raise UsageError(
        f"dump {dump.backup_id} has no database {name!r}",
        hint="it has " + (", ".join(one.name for one in databases) or "none"),
    )
