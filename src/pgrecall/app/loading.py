"""``load``: bring a dump, or a file of pg_dump's, into a database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.dump_catalog import database_of
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.requests import LoadRequest
from pgrecall.dump.load_plan import LoadPlan, LoadWishes, plan_load
from pgrecall.dump.load_run import Loaded, LoadRun, LoadTools
from pgrecall.dump.reading import DumpFiles
from pgrecall.dump.sources import LoadSource, PathSource, RepositorySource
from pgrecall.errors import UsageError
from pgrecall.model.dumps import CLUSTER, DatabaseProperties, DumpCompletion, DumpedDatabase
from pgrecall.model.findings import Finding, worst
from pgrecall.model.ids import DUMP, kind_of
from pgrecall.model.runs import RunFacts
from pgrecall.postgres.client_tools import ClientTools, find_client_tools
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.load_target import TargetContent, target_content, target_facts
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.settings.references import resolve_secret


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``load`` prints. ``loaded``: what the database holds now.

    ``errors``: statements that failed, with --report. ``kept_name``: what the database that was
    swapped is called now.
    """

    plan: LoadPlan
    run_id: str = ""
    backup_id: str = ""
    is_loaded: bool = False
    errors: int = 0
    loaded: TargetContent | None = None
    kept_name: str = ""
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        kept = swap_record(self.plan.database, self.kept_name) if self.kept_name else ""
        return RunFacts(
            outcome=worst(list(self.findings)),
            backup_id=self.backup_id,
            kept=(kept,) if kept else (),
        )


class _Chosen(NamedTuple):
    """What is loaded: of a dump in a repository its record and database, too."""

    source: LoadSource
    said: str
    dump: DumpCompletion | None = None
    database: DumpedDatabase | None = None

    @property
    def properties(self) -> DatabaseProperties | None:
        return self.database.properties if self.database is not None else None


def run_load(context: RunContext, request: LoadRequest) -> LoadResult:
    """Load; raises LoadError, UsageError, PostgresError and its kinds, StoreError.

    What the failure left behind is in the error's hint.
    """
    server = context.server
    opened: OpenedRepository | None = None
    if kind_of(request.source) == DUMP:
        opened = main_repository(context)
        chosen = _of_dump(context, opened, request)
    else:
        chosen = _of_path(context, request)
    with _connect(context, server.database) as connection:
        facts = target_facts(connection)
    present = None
    if request.into in facts.databases:
        with _connect(context, request.into) as connection:
            present = target_content(connection)
    programs = find_client_tools(
        max(facts.version_num // 10_000, chosen.dump.tool_major if chosen.dump is not None else 0),
        configured=server.bin_directory,
        data_directory=server.data_directory,
    )
    plan = plan_load(_wishes(context, request, chosen, programs), facts, present)
    replaces = plan.swaps or plan.choice.clean
    question = f"{plan.action[0].upper()}{plan.action[1:]}?" if replaces else ""
    if not context.approve(plan, question=question):
        return LoadResult(plan=plan)
    tools = LoadTools(
        server=server,
        environment=context.environment,
        programs=programs,
        connect=lambda database: _connect(context, database),
        progress=context.progress,
        spool_directory=context.settings.dump.spool_directory,
        maintenance_bytes=request.maintenance_bytes,
        analyzes=request.analyzes,
    )
    run = LoadRun(plan, chosen.source, tools, chosen.properties)
    if opened is not None:
        with using(context, opened, "restore", [request.source]):
            loaded = run.run()
    else:
        loaded = run.run()
    return _result(context, plan, chosen, loaded)


def swap_record(database: str, kept: str) -> str:
    """What the journal keeps of a swap, for undo."""
    return json.dumps({"database": database, "kept": kept})


def _result(context: RunContext, plan: LoadPlan, chosen: _Chosen, loaded: Loaded) -> LoadResult:
    steps: tuple[str, ...] = ()
    if plan.swaps:
        steps = (
            f"to have the old one back: pgrecall undo {context.run_id}",
            f"when it is no longer needed: DROP DATABASE of {plan.kept_name}",
        )
    return LoadResult(
        plan=plan,
        run_id=context.run_id,
        backup_id=chosen.dump.backup_id if chosen.dump is not None else "",
        is_loaded=True,
        errors=loaded.errors,
        loaded=loaded.content,
        kept_name=plan.kept_name,
        findings=(*plan.findings, *loaded.findings, *_differences(plan, chosen, loaded)),
        next_steps=steps,
    )


def _differences(plan: LoadPlan, chosen: _Chosen, loaded: Loaded) -> list[Finding]:
    """Whether everything came, where a whole database was loaded into an empty one."""
    known, now = chosen.database, loaded.content
    is_whole = chosen.dump is not None and chosen.dump.content.is_whole
    was_empty = plan.present is None or plan.swaps
    if known is None or now is None or not is_whole or plan.choice.is_partial or not was_empty:
        return []
    wanted = (("large objects", known.large_objects, now.large_objects),)
    return [
        Finding(
            severity="fail",
            code="load-incomplete",
            subject=plan.database,
            message=f"the dump has {before} {what}, the database {after}",
            hint="look at the findings, and load again into another database",
        )
        for what, before, after in wanted
        if before != after
    ]


def _of_dump(context: RunContext, opened: OpenedRepository, request: LoadRequest) -> _Chosen:
    catalog = DumpCatalog(opened.store, context.server.name)
    dump = catalog.get(request.source)
    manifest = catalog.manifest(dump)
    files = DumpFiles(catalog, dump, manifest)
    if dump.scope == "cluster":
        return _Chosen(
            RepositorySource(files, CLUSTER, "plain", dump.backup_id), dump.backup_id, dump
        )
    databases = manifest.root.databases
    if not databases:
        raise UsageError(
            f"dump {dump.backup_id} holds no database", hint="load its roles with --globals"
        )
    names = [one.name for one in databases]
    name = request.database or (names[0] if len(names) == 1 else request.into)
    if name not in names and not request.database:
        raise UsageError(
            f"dump {dump.backup_id} holds several databases: which one?",
            hint="say --database with one of " + ", ".join(names),
        )
    database = database_of(dump, databases, name)
    source = RepositorySource(files, database.path, dump.dump_format, database.name)
    return _Chosen(source, f"{dump.backup_id} database {name}", dump, database)


def _of_path(context: RunContext, request: LoadRequest) -> _Chosen:
    if not Path(request.source).exists():
        raise UsageError(
            f"{request.source!r} is neither the id of a dump nor a file",
            hint="'pgrecall dumps list' shows the dumps there are",
        )
    if request.database:
        raise UsageError("--database chooses from a dump in a repository", hint="leave it out")
    passphrase = ""
    if request.passphrase:
        passphrase = resolve_secret(request.passphrase, context.environment)
    return _Chosen(PathSource(request.source, passphrase), request.source)


def _wishes(
    context: RunContext, request: LoadRequest, chosen: _Chosen, programs: ClientTools
) -> LoadWishes:
    tail = context.run_id.rpartition("-")[2]
    base = request.into.encode()[:40].decode(errors="ignore")
    is_plain = chosen.source.source_format == "plain"
    return LoadWishes(
        server=context.server.name,
        source=chosen.said,
        source_format=chosen.source.source_format,
        database=request.into,
        choice=request.choice,
        jobs=request.jobs,
        creates=request.creates,
        swaps=request.swaps,
        new_name=f"{base}_new_{tail}",
        kept_name=f"{base}_before_{tail}",
        tool=f"{'psql' if is_plain else 'pg_restore'} {programs.version} ({programs.directory})",
        roles=chosen.properties.roles if chosen.properties is not None else (),
        properties=chosen.properties,
        from_version=chosen.dump.version_num if chosen.dump is not None else 0,
    )


def _connect(context: RunContext, database: str) -> Connection:
    return connect(
        context.server.replace(database=database),
        application_name="pgrecall load",
        purpose="load",
        environment=context.environment,
    )
