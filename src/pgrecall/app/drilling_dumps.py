"""``drill`` of a dump: load all of it into a new, empty server, and compare."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.leasing import using
from pgrecall.app.loading_globals import apply_globals, without_tablespaces
from pgrecall.app.opened import OpenedRepository
from pgrecall.drill.examination import Examination, Examined
from pgrecall.drill.sql_checks import SqlCheck
from pgrecall.dump.load_plan import LoadWishes, plan_load
from pgrecall.dump.load_run import LoadRun, LoadTools
from pgrecall.dump.reading import DumpFiles
from pgrecall.dump.sources import RepositorySource
from pgrecall.errors import UsageError
from pgrecall.model.dumps import GLOBALS, DumpCompletion, DumpedDatabase, LoadChoice
from pgrecall.model.findings import Finding
from pgrecall.postgres.client_tools import ClientTools, connection_variables, find_client_tools
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.dump_session import table_proofs
from pgrecall.postgres.load_target import target_content, target_facts
from pgrecall.postgres.throwaway import throwaway_instance
from pgrecall.postgres.tools import find_bin_directory
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.settings import ServerSettings

_MOST_NAMED = 10


class DumpDrillPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a drill of a dump does. ``compares``: what the loaded databases are held to."""

    server: str
    backup_id: str
    dump_format: str
    databases: tuple[str, ...]
    total_bytes: int
    directory: str
    tool: str
    compares: str


class DumpDrilled(msgspec.Struct, frozen=True, kw_only=True):
    """What a drill of a dump has shown."""

    examined: Examined
    load_seconds: float
    findings: tuple[Finding, ...]


class DumpDrill:
    """Of one dump. Raises DumpNotFoundError, UsageError when it cannot be drilled."""

    def __init__(self, context: RunContext, opened: OpenedRepository, dump_id: str) -> None:
        self._context = context
        self._opened = opened
        catalog = DumpCatalog(opened.store, context.server.name)
        self.dump: DumpCompletion = catalog.get(dump_id)
        if self.dump.scope != "databases" or not self.dump.content.is_whole:
            raise UsageError(
                f"dump {dump_id} is {self.dump.scope if self.dump.content.is_whole else 'a part'}:"
                " only dumps of whole databases can be drilled",
                hint="pgrecall verify proves that what is stored is whole",
            )
        manifest = catalog.manifest(self.dump)
        self._databases = manifest.root.databases
        self._files = DumpFiles(catalog, self.dump, manifest)
        server = context.server
        of_server = self.dump.server_major
        # What a newer pg_dump wrote need not load into the version that it came from.
        major = max(of_server, self.dump.tool_major)
        self._binaries = find_bin_directory(
            major,
            configured=server.bin_directory if major == of_server else "",
            data_directory=server.data_directory,
        )
        self._programs: ClientTools = find_client_tools(
            major, configured=server.bin_directory, data_directory=server.data_directory
        )
        self._findings: list[Finding] = []

    def plan(self, directory: str) -> DumpDrillPlan:
        """What will be done."""
        return DumpDrillPlan(
            server=self._context.server.name,
            backup_id=self.dump.backup_id,
            dump_format=self.dump.dump_format,
            databases=self.dump.databases,
            total_bytes=sum(max(0, one.size_bytes) for one in self._databases),
            directory=directory,
            tool=f"PostgreSQL {self._programs.version} ({self._programs.directory})",
            compares="rows and hashes of every table"
            if self.dump.has_proofs
            else "large objects (the dump has no proofs of its rows: dump --proofs)",
        )

    def run(self, place: Path, checks: list[SqlCheck]) -> DumpDrilled:
        """Load everything, compare, examine. Raises LoadError, PostgresError, StoreError."""
        context = self._context
        with (
            using(context, self._opened, "restore", [self.dump.backup_id]),
            throwaway_instance(
                str(self._binaries),
                place,
                context.environment,
                superuser=self.dump.bootstrap_role,
            ) as copy,
        ):
            began = time.monotonic()
            context.progress.phase("globals")
            self._load_globals(copy)
            for database in self._databases:
                self._load(copy, database)
            seconds = time.monotonic() - began
            context.progress.phase("compare")
            for database in self._databases:
                self._compare(copy, database)
            examination = Examination(
                copy, self._programs, context.environment, amcheck=False, checks=checks
            )
            examined = examination.run()
        return DumpDrilled(
            examined=examined, load_seconds=round(seconds, 3), findings=tuple(self._findings)
        )

    def _load_globals(self, copy: ServerSettings) -> None:
        if GLOBALS not in self._files.entries:
            return
        script = without_tablespaces(b"".join(self._files.stream(GLOBALS)))
        variables = connection_variables(copy, self._context.environment)
        self._findings += [
            Finding(severity="fail", code="statement-failed", subject=GLOBALS, message=error)
            for error in apply_globals(script, self._programs, variables)
        ]

    def _load(self, copy: ServerSettings, database: DumpedDatabase) -> None:
        dump = self.dump
        with _connect(copy, copy.database) as connection:
            facts = target_facts(connection)
        present = None
        if database.name in facts.databases:
            with _connect(copy, database.name) as connection:
                present = target_content(connection)
        is_plain = dump.dump_format == "plain"
        wishes = LoadWishes(
            server=copy.name,
            source=f"{dump.backup_id} database {database.name}",
            source_format=dump.dump_format,
            database=database.name,
            choice=LoadChoice(no_tablespaces=not is_plain),
            jobs=1,
            creates=present is None,
            swaps=False,
            new_name="",
            kept_name="",
            tool=self._programs.version,
            roles=database.properties.roles,
        )
        tools = LoadTools(
            server=copy,
            environment=self._context.environment,
            programs=self._programs,
            connect=lambda name: _connect(copy, name),
            progress=self._context.progress,
            spool_directory=self._context.settings.dump.spool_directory,
            maintenance_bytes=0,
            analyzes=False,
        )
        source = RepositorySource(self._files, database.path, dump.dump_format, database.name)
        plan = plan_load(wishes, facts, present)
        properties = msgspec.structs.replace(database.properties, tablespace="")
        self._findings += LoadRun(plan, source, tools, properties).run().findings

    def _compare(self, copy: ServerSettings, database: DumpedDatabase) -> None:
        with _connect(copy, database.name) as connection:
            differences = load_differences(connection, database, has_proofs=self.dump.has_proofs)
        self._findings += [
            Finding(
                severity="fail",
                code="load-differs",
                subject=database.name,
                message=difference,
                hint="the dump does not give back what was there; take another one",
            )
            for difference in differences
        ]


def load_differences(
    connection: Connection, database: DumpedDatabase, *, has_proofs: bool
) -> list[str]:
    """What the connection's database has not as the dump has it: the first such things, in words.

    ``has_proofs``: the dump knows rows and hashes of every table. Raises PostgresError.
    """
    now = target_content(connection)
    proofs = table_proofs(connection) if has_proofs else ()
    differences = []
    if now.large_objects != database.large_objects:
        differences.append(
            f"{now.large_objects} large objects, and the dump has {database.large_objects}"
        )
    there = {(one.schema, one.name): one for one in proofs}
    for wanted in database.proofs:
        found = there.get((wanted.schema, wanted.name))
        if found is None:
            differences.append(f"{wanted.schema}.{wanted.name} is not there")
        elif found != wanted:
            differences.append(
                f"{wanted.schema}.{wanted.name} has {found.rows} rows of {wanted.rows}"
                if found.rows != wanted.rows
                else f"{wanted.schema}.{wanted.name} has other rows than were dumped"
            )
    return differences[:_MOST_NAMED]


def _connect(copy: ServerSettings, database: str) -> Connection:
    return connect(
        copy.replace(database=database), application_name="pgrecall drill", purpose="drill"
    )
