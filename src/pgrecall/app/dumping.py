"""``dump``: plan it, show the plan, make it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.copying import copy_everywhere
from pgrecall.app.leasing import using
from pgrecall.app.opened import main_repository
from pgrecall.app.requests import DumpRequest
from pgrecall.dump.arguments import parse_compression
from pgrecall.dump.plan import DumpPlan, DumpWishes, plan_dump
from pgrecall.dump.run import DumpRun, DumpTask, DumpTools, free_bytes
from pgrecall.errors import SettingsError
from pgrecall.model.dumps import DumpCompletion, DumpFormat
from pgrecall.model.findings import Finding, worst
from pgrecall.model.runs import RunFacts
from pgrecall.postgres.client_tools import find_client_tools
from pgrecall.postgres.connection import connect
from pgrecall.postgres.dump_session import dump_facts
from pgrecall.repository.identity import require_generation
from pgrecall.repository.run_chains import RunChains
from pgrecall.settings import DumpSettings
from pgrecall.store.base import SUITE_NONE
from pgrecall.system.clock import SystemClock


class DumpResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``dump`` prints; ``dump`` is absent after a dry run."""

    plan: DumpPlan
    dump: DumpCompletion | None = None
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        totals = self.dump.totals if self.dump is not None else None
        return RunFacts(
            outcome=worst(list(self.findings)),
            backup_id=self.dump.backup_id if self.dump is not None else "",
            raw_bytes=totals.raw_bytes if totals is not None else 0,
            stored_bytes=totals.stored_bytes if totals is not None else 0,
        )


def run_dump(
    context: RunContext,
    request: DumpRequest,
    *,
    at_snapshots: Callable[[], None] | None = None,
) -> DumpResult:
    """Dump databases of the chosen server into its main repository.

    ``at_snapshots`` is called when the snapshots are taken, which the dump goes on to read.
    Raises UsageError, PostgresError and its kinds, DumpError, StoreError, IdentityError; then
    there is no new dump.
    """
    server, chosen = context.server, context.settings.dump
    opened = main_repository(context)
    with connect(
        server, application_name="pgrecall dump", purpose="dump", environment=context.environment
    ) as connection:
        facts = dump_facts(connection)
    programs = find_client_tools(
        facts.major, configured=server.bin_directory, data_directory=server.data_directory
    )
    generation = require_generation(
        opened.store, server.name, facts.system_identifier, f"the server {server.name!r}"
    )
    wishes = _wishes(context, request, is_encrypted=opened.store.suite != SUITE_NONE)
    plan = plan_dump(
        msgspec.structs.replace(wishes, repository=opened.settings.name), facts, programs
    )
    if not context.approve(plan):
        return DumpResult(plan=plan)
    tools = DumpTools(
        store=opened.store,
        server=server,
        environment=context.environment,
        programs=programs,
        progress=context.progress,
        clock=SystemClock(),
        lock_timeout_seconds=chosen.lock_timeout_seconds,
        run_heads=RunChains(opened.store, server.name, opened.identity.repository_id).heads,
        at_snapshots=at_snapshots,
    )
    task = DumpTask(plan=plan, facts=facts, identity=opened.identity, generation=generation)
    run = DumpRun(task, tools)
    with using(context, opened, "dump", [run.dump_id]):
        dump = run.run()
    copies = copy_everywhere(context, dump.backup_id, opened.settings.name)
    return DumpResult(plan=plan, dump=dump, findings=(*run.findings, *copies))


def spool_directory(settings: DumpSettings) -> str:
    """Where what cannot be streamed lies meanwhile."""
    return settings.spool_directory or tempfile.gettempdir()


def _wishes(context: RunContext, request: DumpRequest, *, is_encrypted: bool) -> DumpWishes:
    chosen = context.settings.dump
    usual = chosen.format if request.scope == "databases" else "plain"
    dump_format = msgspec.convert(request.dump_format or usual, DumpFormat)
    directory = spool_directory(chosen)
    try:
        free = free_bytes(directory)
    except OSError as error:
        raise SettingsError(
            f"dump.spool_directory {directory}: {error.strerror}", hint="make it, or name another"
        ) from error
    asked = request.tool_compression
    return DumpWishes(
        server=context.server.name,
        repository="",
        scope=request.scope,
        databases=request.databases,
        dump_format=dump_format,
        content=request.content,
        jobs=chosen.jobs,
        compression=chosen.compression,
        level=chosen.level,
        is_encrypted=is_encrypted,
        with_globals=request.with_globals,
        with_proofs=request.with_proofs,
        passwords=request.passwords,
        tool_compression=parse_compression(asked) if asked else None,
        spool_directory=directory,
        free_bytes=free,
    )
