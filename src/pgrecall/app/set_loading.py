"""``set restore --logical``: roles and every database of a set's dump, into a new or empty server.

Databases are made anew with a mark, and lose it together when all of them are loaded: a restore
that was killed is repeated, and never takes somebody's database for its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from pgrecall.app.context import RunContext
from pgrecall.app.loading_globals import apply_globals, created_roles
from pgrecall.app.opened import OpenedRepository
from pgrecall.app.requests import SetRestoreRequest
from pgrecall.app.set_examining import examine, examine_databases, make_slots, slot_findings
from pgrecall.app.set_results import SetRestorePlan, SetRestoreResult
from pgrecall.app.set_target import NewServer, mapped_globals
from pgrecall.dump.load_plan import LoadWishes, plan_load
from pgrecall.dump.load_run import LoadRun, LoadTools
from pgrecall.dump.reading import DumpFiles
from pgrecall.dump.sources import RepositorySource
from pgrecall.errors import ServerIsStandbyError
from pgrecall.model.captures import CaptureRecord
from pgrecall.model.dumps import GLOBALS, DumpedDatabase, LoadChoice
from pgrecall.model.findings import Finding
from pgrecall.model.sets import SetRecord
from pgrecall.postgres.client_tools import ClientTools, connection_variables, find_client_tools
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.load_target import (
    TargetFacts,
    maintenance_database,
    target_content,
    target_facts,
)
from pgrecall.postgres.rebuilding import (
    finish_databases,
    is_pristine,
    make_marked,
    marked_databases,
)
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.sets.compare import Expectation, SetCheck, findings_of
from pgrecall.sets.plan import DatabaseState, PlannedDatabase, new_places, plan_databases
from pgrecall.settings import ServerSettings
from pgrecall.store.base import SUITE_NONE
from pgrecall.system.faults import reached

_MAINTENANCE_BYTES = 256 << 20


def load_set(
    context: RunContext,
    opened: OpenedRepository,
    request: SetRestoreRequest,
    record: SetRecord,
    capture: CaptureRecord,
) -> SetRestoreResult:
    """Load a set into a new server in a directory, or into an empty one that is there.

    Raises SetError, LoadError, PostgresError and its kinds, StoreError, DestinationError.
    """
    return _Logical(context, opened, request, record, capture).run()


class _Logical:
    def __init__(
        self,
        context: RunContext,
        opened: OpenedRepository,
        request: SetRestoreRequest,
        record: SetRecord,
        capture: CaptureRecord,
    ) -> None:
        self._context = context
        self._opened = opened
        self._request = request
        self._record = record
        self._capture = capture
        catalog = DumpCatalog(opened.store, context.server.name)
        self._dump = catalog.get(record.dump_id)
        manifest = catalog.manifest(self._dump)
        self._databases: tuple[DumpedDatabase, ...] = manifest.root.databases
        self._files = DumpFiles(catalog, self._dump, manifest)
        self._mark = f"pgrecall: the restore of set {record.set_id} into this database is not done"
        self._findings: list[Finding] = []
        script = b""
        if GLOBALS in self._files.entries:
            script = b"".join(self._files.stream(GLOBALS))
        self._places = new_places(capture.facts.tablespaces, request.tablespace_map)
        self._globals = mapped_globals(script, self._places)

    def run(self) -> SetRestoreResult:
        """Plan, show, and load."""
        request = self._request
        if request.target_dir:
            new = NewServer(self._context, request, self._capture, self._dump, self._databases)
            plan = self._plan(
                new.words, new.goes_on, new.tools, tuple(
                    PlannedDatabase(one.name, "absent") for one in self._databases
                )
            )  # fmt: skip
            if not self._approved(plan):
                return SetRestoreResult(plan=plan)
            with new.running() as server:
                return self._load(plan, server, new.tools)
        server = self._configured()
        facts = self._target(server)
        tools = self._tools_for(server, facts)
        states = self._states(server, facts)
        where = f"the server at {server.host or 'the local socket'}, port {server.port},"
        planned = plan_databases(self._record, states, where)
        unfinished = [one.name for one in planned if one.present == "unfinished"]
        goes_on = f"databases {', '.join(unfinished)} are made anew" if unfinished else ""
        plan = self._plan(where.rstrip(","), goes_on, tools, planned, facts)
        if not self._approved(plan):
            return SetRestoreResult(plan=plan)
        return self._load(plan, server, tools)

    def _approved(self, plan: SetRestorePlan) -> bool:
        question = f"Restore the set {self._record.set_id} into {plan.target}?"
        return self._context.approve(plan, question=question)

    # --- phases ----------------------------------------------------------------------

    def _load(
        self, plan: SetRestorePlan, server: ServerSettings, tools: ClientTools
    ) -> SetRestoreResult:
        began, context = time.monotonic(), self._context
        context.progress.phase("globals")
        self._load_globals(server, tools)
        reached("set-restore.globals")
        for database in self._databases:
            context.progress.phase(f"load {database.name}")
            self._load_database(server, tools, database)
            reached("set-restore.database")
        properties = {one.name: one.properties for one in self._databases}
        with self._maintenance(server, "") as connection:
            finish_databases(connection, properties)
        reached("set-restore.loaded")
        seconds = time.monotonic() - began
        opens = partial(self._connect, server)
        context.progress.phase("slots")
        slots = make_slots(self._record, opens) if self._request.slots else ()
        context.progress.phase("compare")
        checks = self._compare(server)
        context.progress.done()
        return SetRestoreResult(
            plan=plan,
            run_id=context.run_id,
            host=server.host,
            port=server.port,
            restore_seconds=round(seconds, 3),
            checks=checks,
            slots=slots,
            findings=(*self._findings, *slot_findings(slots), *findings_of(checks)),
            next_steps=self._next_steps(server),
        )

    def _load_globals(self, server: ServerSettings, tools: ClientTools) -> None:
        if not self._globals:
            return
        variables = connection_variables(server, self._context.environment)
        self._findings += [
            Finding(severity="fail", code="statement-failed", subject=GLOBALS, message=error)
            for error in apply_globals(self._globals, tools, variables)
        ]
        if not self._dump.has_passwords:
            self._findings.append(
                Finding(
                    severity="warn",
                    code="passwords-left-out",
                    message="roles came back without passwords: the set has none",
                    hint="set them anew; sets in an encrypted repository have them",
                )
            )

    def _load_database(
        self, server: ServerSettings, tools: ClientTools, database: DumpedDatabase
    ) -> None:
        with self._maintenance(server, database.name) as connection:
            make_marked(
                connection,
                database.name,
                database.properties,
                self._mark,
                tablespace=database.properties.tablespace,
            )
        reached("set-restore.marked")
        with self._connect(server, database.name) as connection:
            facts, present = target_facts(connection), target_content(connection)
        is_parallel = self._dump.dump_format in ("custom", "directory")
        wishes = LoadWishes(
            server=server.name,
            source=f"{self._dump.backup_id} database {database.name}",
            source_format=self._dump.dump_format,
            database=database.name,
            choice=LoadChoice(),
            jobs=self._request.jobs if is_parallel else 1,
            creates=False,
            swaps=False,
            new_name="",
            kept_name="",
            tool=tools.version,
            roles=database.properties.roles,
            from_version=self._dump.version_num,
        )
        load_tools = LoadTools(
            server=server,
            environment=self._context.environment,
            programs=tools,
            connect=partial(self._connect, server),
            progress=self._context.progress,
            spool_directory=self._context.settings.dump.spool_directory,
            maintenance_bytes=_MAINTENANCE_BYTES,
            analyzes=True,
        )
        source = RepositorySource(self._files, database.path, self._dump.dump_format, database.name)
        plan = plan_load(wishes, facts, present)
        self._findings += LoadRun(plan, source, load_tools).run().findings

    def _compare(self, server: ServerSettings) -> tuple[SetCheck, ...]:
        opens = partial(self._connect, server)
        is_encrypted = self._opened.store.suite != SUITE_NONE
        expected = Expectation(
            databases=frozenset(one.name for one in self._databases),
            tablespaces=self._places,
        )
        return (
            *examine(self._capture, opens, expected, with_secrets=is_encrypted),
            *examine_databases(self._dump, self._databases, opens),
        )

    # --- the target ------------------------------------------------------------------

    def _configured(self) -> ServerSettings:
        request, server = self._request, self._context.server
        return server.replace(
            host=request.host or server.host,
            port=request.port or server.port,
            user=request.user or server.user,
        )

    def _target(self, server: ServerSettings) -> TargetFacts:
        with self._connect(server, "") as connection:
            facts = target_facts(connection)
        if facts.is_in_recovery:
            raise ServerIsStandbyError(
                "the server to restore into is a standby: nothing can be loaded into it",
                hint="load into its primary, or into a new server with --target-dir DIR",
            )
        return facts

    def _states(self, server: ServerSettings, facts: TargetFacts) -> dict[str, DatabaseState]:
        """What the target has of the set's databases."""
        with self._connect(server, "") as connection:
            unfinished = marked_databases(connection, self._mark)
        states: dict[str, DatabaseState] = {}
        for name in self._record.databases:
            if name in unfinished:
                states[name] = "unfinished"
            elif name in facts.databases:
                with self._connect(server, name) as connection:
                    states[name] = "empty" if is_pristine(connection) else "used"
        return states

    def _tools_for(self, server: ServerSettings, facts: TargetFacts) -> ClientTools:
        return find_client_tools(
            max(facts.version_num // 10_000, self._dump.tool_major),
            configured=server.bin_directory,
            data_directory=server.data_directory,
        )

    def _connect(self, server: ServerSettings, database: str) -> Connection:
        return connect(
            server.replace(database=database or server.database),
            application_name="pgrecall set restore",
            purpose="set restore",
            environment=self._context.environment,
        )

    @contextmanager
    def _maintenance(self, server: ServerSettings, name: str) -> Iterator[Connection]:
        with self._connect(server, maintenance_database(server.database, name)) as connection:
            yield connection

    # --- texts -----------------------------------------------------------------------

    def _plan(
        self,
        target: str,
        goes_on: str,
        tools: ClientTools,
        databases: tuple[PlannedDatabase, ...],
        facts: TargetFacts | None = None,
    ) -> SetRestorePlan:
        roles = created_roles(self._globals)
        return SetRestorePlan(
            server=self._context.server.name,
            set_id=self._record.set_id,
            mode="logical",
            made_at=self._dump.snapshot_at,
            target=target,
            steps=(
                *(("make a new server",) if facts is None else ()),
                "load roles and tablespaces",
                f"make and load {len(databases)} databases",
                "make the replication slots again",
                "compare everything with the capture and the dump",
            ),
            goes_on=goes_on,
            databases=databases,
            present_roles=tuple(one for one in roles if facts is not None and one in facts.roles),
            tool=f"PostgreSQL {tools.version} ({tools.directory})",
        )

    def _next_steps(self, server: ServerSettings) -> tuple[str, ...]:
        steps = [
            "its configuration is not that of the set: pgrecall captures show"
            f" {self._record.capture_id} has the files and settings"
        ]
        if self._request.target_dir:
            steps.append(
                f"connect to it: psql --host={server.host} --port={server.port}"
                f" --username={server.user}; it listens at no network address yet"
            )
        return tuple(steps)
