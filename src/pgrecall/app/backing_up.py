"""``backup``: plan it, show the plan, take it."""

from __future__ import annotations

import os
from functools import partial

import msgspec

from pgrecall.app.capturing_unasked import capture_unasked
from pgrecall.app.context import RunContext
from pgrecall.app.copying import copy_everywhere
from pgrecall.app.leasing import using
from pgrecall.app.naming import names_of_backup
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.requests import BackupRequest
from pgrecall.app.streaming import stream_tools, writer_of
from pgrecall.backup.base import Base
from pgrecall.backup.leftover import find_unfinished
from pgrecall.backup.plan import (
    BackupPlan,
    BackupWishes,
    BaseChoice,
    choose_base,
    holds_base,
    plan_backup,
)
from pgrecall.backup.records import BackupTask, Lineage
from pgrecall.backup.run import BackupRun, BackupTools
from pgrecall.backup.stream_run import StreamRun
from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError
from pgrecall.model.findings import Finding, worst
from pgrecall.model.manifest import BackupSource, Completion
from pgrecall.model.runs import RunFacts
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.control import read_control
from pgrecall.postgres.facts import server_facts, server_rights
from pgrecall.postgres.slots import PHYSICAL, slot_state
from pgrecall.repository.identity import (
    Generation,
    require_generation,
    require_owner,
    require_writer,
)
from pgrecall.repository.retention_log import read_state
from pgrecall.repository.run_chains import RunChains
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.store.remains import remove_abandoned_files
from pgrecall.system.clock import SystemClock
from pgrecall.system.memory import keep_freed_memory
from pgrecall.system.priority import lower_priority


class BackupResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``backup`` prints; ``backup`` is absent after a dry run."""

    plan: BackupPlan
    backup: Completion | None = None
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        totals = self.backup.totals if self.backup is not None else None
        return RunFacts(
            outcome=worst(list(self.findings)),
            backup_id=self.backup.backup_id if self.backup is not None else "",
            raw_bytes=totals.raw_bytes if totals is not None else 0,
            stored_bytes=totals.stored_bytes if totals is not None else 0,
            capture_id=self.backup.capture_id if self.backup is not None else "",
        )


def run_backup(context: RunContext, request: BackupRequest) -> BackupResult:
    """Back up the chosen server into its main repository.

    Raises the errors of plan_backup, BackupError and its kinds, StoreError,
    IdentityError and NotOwnerError; then there is no new backup and the server
    is as before. The process keeps the low priority that [backup] may ask for.
    """
    keep_freed_memory()
    server = context.server
    opened = main_repository(context)
    task = _task(context, opened, request)
    if not context.approve(task.plan):
        return BackupResult(plan=task.plan)
    chosen = context.settings.backup
    lower_priority(chosen.nice, chosen.io_priority)
    before = capture_unasked(context, opened)
    task.capture_id = before.capture_id
    archive = WalArchive(opened.store, server.name, task.generation)
    tools = BackupTools(
        store=opened.store,
        connect=partial(_connect, context),
        archive_has=archive.has,
        progress=context.progress,
        clock=SystemClock(),
        archive_timeout_seconds=context.settings.backup.archive_timeout_seconds,
        page_rereads=context.settings.backup.page_rereads,
        record_names=partial(names_of_backup, context, opened),
        run_heads=RunChains(opened.store, server.name, opened.identity.repository_id).heads,
    )
    run = BackupRun(task, tools)
    if task.plan.source == "stream":
        run = StreamRun(task, tools, stream_tools(context, opened.store, task.facts))
    with using(context, opened, "backup"):
        completion = run.run()
    remove_abandoned_files(opened.settings)
    copies = copy_everywhere(context, completion.backup_id, opened.settings.name)
    findings = (*before.findings, *run.findings, *copies)
    return BackupResult(plan=task.plan, backup=completion, findings=findings)


def _connect(context: RunContext, purpose: str) -> Connection:
    return connect(
        context.server,
        application_name=f"pgrecall {purpose}",
        purpose=purpose,
        environment=context.environment,
    )


def _task(context: RunContext, opened: OpenedRepository, request: BackupRequest) -> BackupTask:
    server, chosen = context.server, context.settings.backup
    with _connect(context, "backup") as connection:
        facts = server_facts(connection)
        rights = server_rights(connection)
        slot = slot_state(connection, context.settings.receive.slot)
        source: BackupSource = "local"
        if (request.source or server.source) == "stream":
            source = "stream"
        known = writer_of(connection) if source == "stream" else None
    data_directory = facts.data_directory
    control = None
    if source == "local":
        data_directory = server.data_directory or data_directory
        control = read_control(data_directory)
    wishes = BackupWishes(
        server=server.name,
        repository=opened.settings.name,
        data_directory=data_directory,
        checkpoint=chosen.checkpoint,
        compression=chosen.compression,
        level=chosen.level,
        workers=chosen.workers or os.cpu_count() or 1,
        with_wal=request.with_wal,
        bytes_per_second=chosen.bytes_per_second,
        is_received=slot is not None and slot.is_active and slot.kind == PHYSICAL,
        source=source,
    )
    where = data_directory if source == "local" else f"the server {server.name!r}"
    generation = require_generation(opened.store, server.name, facts.system_identifier, where)
    base, choice = _base(context, opened, request, generation)
    unfinished = find_unfinished(opened.catalog(server.name)) if source == "local" else None
    plan = plan_backup(wishes, facts, rights, control, choice, unfinished)
    if source == "local":
        restore_id = require_owner(opened.store, server.name, data_directory)
    elif known is not None:
        restore_id = require_writer(opened.store, server.name, known or None, where)
    else:
        restore_id = None  # the stream tells, before the backup counts
    return BackupTask(
        plan,
        facts,
        control,
        lineage=Lineage(opened.identity, generation, restore_id),
        base=base,
        unfinished=unfinished,
    )


def _base(
    context: RunContext, opened: OpenedRepository, request: BackupRequest, generation: Generation
) -> tuple[Base | None, BaseChoice]:
    """The backup to go on from, opened, and why that one or none. Raises StoreError."""
    catalog = opened.catalog(context.server.name)
    choice = choose_base(
        catalog.newest(
            lambda known: holds_base(
                known, generation.number, full_days=context.settings.backup.full_every_days
            )
        ),
        generation.number,
        SystemClock().now(),
        wants_full=request.full,
        full_days=context.settings.backup.full_every_days,
    )
    if choice.base is None:
        return None, choice
    backup_id = choice.base.backup_id
    try:
        base = Base(catalog, choice.base)
    except (CorruptObjectError, ObjectMissingError, RepositoryError) as error:
        return None, BaseChoice(None, f"the newest backup cannot be read: {error.message}")
    if not base.has_digests:
        return None, BaseChoice(None, f"{backup_id} keeps no digests to compare with")
    state = read_state(opened.store, context.server.name)
    packs, afresh_bytes = base.store_afresh({*state.expired, *state.purging})
    if packs:
        said = (
            f"; stores afresh up to {afresh_bytes} bytes, all that is needed of {packs} packs of"
            " expired backups"
        )
        return base, BaseChoice(choice.base, choice.reason + said)
    return base, choice
