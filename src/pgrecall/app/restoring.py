"""``restore``: choose, plan, show the plan, write, and start if that is asked."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.copy_place import CopyPlace, choose_place
from pgrecall.app.damaged_backup import damage_explained, require_unmarked
from pgrecall.app.freshening import Freshness, freshen, may_be_newer
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.overwriting import Overwriting, Work, require_no_delta
from pgrecall.app.replacing import Replacement, replacement, require_settled, target_of
from pgrecall.app.requests import RestoreRequest
from pgrecall.app.restore_checks import DestinationChecks
from pgrecall.app.restore_commands import restore_command_of
from pgrecall.app.salvaging import salvaged_names
from pgrecall.app.selecting import SETTINGS, require_selective, selection_of
from pgrecall.app.starting import Started, start_restored
from pgrecall.app.taking_over import record_owner
from pgrecall.app.thawing import require_thawed
from pgrecall.errors import (
    BackupNotFoundError,
    InterruptedRunError,
    PostgresRightsError,
    TargetUnreachableError,
    UsageError,
)
from pgrecall.model.findings import Finding, worst
from pgrecall.model.ids import RESTORE, new_id
from pgrecall.model.manifest import Completion, ManifestRoot
from pgrecall.model.runs import RunFacts
from pgrecall.model.targets import Latest
from pgrecall.repository.block_digests import DigestReader
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.contents import Contents
from pgrecall.repository.identity import Generation, latest_generation, read_generation
from pgrecall.repository.pack_source import PackSource
from pgrecall.repository.retention_log import read_state
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.choice import Choice, Chooser
from pgrecall.restore.delta import DeltaRun, Over
from pgrecall.restore.destination import leftover_of, map_tablespaces
from pgrecall.restore.plan import RestorePlan, RestoreWishes, needed_parameters, plan_restore
from pgrecall.restore.recovery_settings import (
    IN_PLACE_TABLESPACES,
    isolation_settings,
    raised_parameters,
    recovery_settings,
)
from pgrecall.restore.run import RestoreJob, RestoreRun
from pgrecall.restore.selection import zero_files
from pgrecall.system.clock import SystemClock
from pgrecall.system.memory import keep_freed_memory
from pgrecall.wal.salvage import Salvage

_WAL_READERS = 4


class RestoreResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``restore`` prints. After a dry run there is only the plan.

    ``settings`` are those written into postgresql.auto.conf. ``run_id`` is what
    ``undo`` asks for; ``salvage`` what became of the WAL in the PGDATA that was replaced.
    """

    plan: RestorePlan
    run_id: str = ""
    restore_id: str = ""
    restored_to: str = ""
    restore_seconds: float = 0.0
    settings: dict[str, str] = {}
    started: Started | None = None
    salvage: Salvage | None = None
    kept: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it; a restore that was started measures the RTO."""
        rto = None
        if self.started is not None:
            rto = self.restore_seconds + self.started.recovery_seconds
        return RunFacts(
            outcome=worst(list(self.findings)),
            backup_id=self.plan.backup_id,
            raw_bytes=self.plan.backup_bytes,
            stored_bytes=self.plan.stored_bytes,
            rto_seconds=rto,
            kept_in=self.plan.keep_old,
            kept=self.kept,
            salvaged=salvaged_names(self.salvage),
        )


def run_restore(context: RunContext, request: RestoreRequest) -> RestoreResult:
    """Bring the chosen server back to a moment, into an empty directory.

    Before a byte is written it is proven that the backup is whole, that WAL
    reaches the target without a gap, that the place is empty and has room.
    Raises RestoreError and its kinds, RepositoryError, StoreError, UsageError.
    """
    keep_freed_memory()
    prepared = _Preparation(context, request)
    plan = prepared.plan()
    if not context.approve(plan, question=_question(request, plan)):
        return RestoreResult(plan=plan)
    used = [prepared.choice.backup.backup_id]
    with using(context, prepared.opened, "restore", used):
        prepared.opened.catalog(context.server.name).get(*used)  # not expired meanwhile
        return prepared.carry_out(plan)


def _question(request: RestoreRequest, plan: RestorePlan) -> str:
    if request.take_over:
        return "Shall the restored server replace the one that owns the archive?"
    if request.keep_old:
        return f"Shall the data directory {plan.target_dir} be replaced?"
    if request.delta:
        return f"Shall the data directory {plan.target_dir} be overwritten?"
    return ""


class _Preparation:
    """Everything that is known before the first byte is written."""

    def __init__(self, context: RunContext, request: RestoreRequest) -> None:
        _refuse_contradictions(request)
        require_selective(request)
        self.context = context
        self.request = request
        self.clock = SystemClock()
        self.opened = main_repository(context)
        self.backups, self.generation, self.damaged = _backups(context, self.opened, request)
        self.archive = WalArchive(self.opened.store, context.server.name, self.generation)
        self.now = self.clock.now()
        self.work = Work(
            context.settings.restore.workers or 2 * (os.cpu_count() or 1), context.progress
        )
        self.restore_id = new_id(RESTORE, self.now)
        self.replacement = self._replacement()
        state = read_state(self.opened.store, context.server.name)
        self.archive.hide(state.hidden_wal(self.generation.number))
        self.choice = self._choose()
        require_thawed(context, self.opened.settings, self.choice.backup)
        with damage_explained(context, self.opened, self.choice.backup):
            manifest = self.opened.catalog(context.server.name).manifest(self.choice.backup)
            self.root: ManifestRoot = manifest.root
            packs = manifest.packs()
            self.contents = Contents(len(packs), manifest.root.server.block_bytes)
            self.contents.read(manifest.files())
        self.source = PackSource(
            self.opened.store, context.server.name, self.choice.backup.backup_id, packs
        )
        self.selection = selection_of(context, self.archive, self.choice, request)
        self.zeros: frozenset[int] = frozenset()
        if self.selection is not None:
            self.zeros = zero_files(self.contents.table, self.selection)
        digests = DigestReader(
            self.opened.store,
            context.server.name,
            self.choice.backup.backup_id,
            manifest.digests(),
        )
        own = context.server.data_directory or self.root.server.data_directory
        self.target_dir = os.path.abspath(request.target_dir or own)
        self.is_own_place = os.path.realpath(self.target_dir) == os.path.realpath(own)
        self.tablespaces = map_tablespaces(
            self.root.tablespaces,
            request.tablespace_map,
            self.target_dir,
            is_own_place=self.is_own_place,
        )
        self.leftover = leftover_of(self.target_dir)
        require_settled(self.target_dir, resumes=self.replacement is not None)
        require_no_delta(self.leftover, self.target_dir, repeats=request.delta)
        if isinstance(self.replacement, Overwriting):
            self.replacement.compare(
                self.contents, self.root, digests, self.tablespaces, run=self.work
            )
        checks = DestinationChecks(context, request, self.root, self.target_dir, self.tablespaces)
        checks.run(self.leftover, self.replacement, self.choice.tablespaces, self._space_needed())

    def plan(self) -> RestorePlan:
        """The plan, from what was found."""
        wishes = RestoreWishes(
            server=self.context.server.name,
            repository=self.opened.settings.name,
            target=self.request.target,
            target_dir=self.target_dir,
            action=self.request.action,
            is_standby=self.request.standby,
            takes_over=self.request.take_over,
            clears=self.leftover.restore_id if self.leftover and not self.request.delta else "",
            replaces=tuple(self.replacement.plan_words()) if self.replacement else (),
            leaves_out=self.selection.others if self.selection else (),
            keep_old=self.replacement.keep_dir if self.replacement else "",
            written_bytes=self.replacement.written_bytes if self.replacement else None,
        )
        return plan_restore(
            wishes,
            self.choice,
            self.root,
            self.tablespaces,
            segment_bytes=self.archive.segment_bytes,
            damaged=self.damaged,
        )

    def carry_out(self, plan: RestorePlan) -> RestoreResult:
        """Write, take over, start."""
        began = time.monotonic()
        now, restore_id, replacing = self.now, self.restore_id, self.replacement
        place = None if self.request.take_over else choose_place(self.target_dir, self.request.port)
        settings = self._settings(place)
        salvage = None
        job = RestoreJob(
            restore_id=restore_id,
            server=self.context.server.name,
            target_dir=self.target_dir,
            tablespaces=self.tablespaces,
            settings=settings,
            signal="standby.signal" if self.request.standby else "recovery.signal",
            workers=self.work.workers,
            planned_to=self.choice.looked_to(self.archive.segment_bytes),
            zeros=self.zeros,
            now=now,
            wal_place=replacing.wal_place if replacing else None,
        )
        run = self._run(job)
        with damage_explained(self.context, self.opened, self.choice.backup, self.root):
            run.check_packs()
            if self.request.verify_wal:
                self._verify_wal()
            if replacing is not None:
                salvage = replacing.old_wal.salvage()
                run.bring_wal(replacing.old_wal.files_for(self.choice, salvage))
                if isinstance(run, DeltaRun):
                    aside = replacing.old_wal.not_archived(salvage)
                    run.set_wal_aside(aside, is_foreign=replacing.old_wal.is_foreign)
            run.run(self.leftover)
        seconds = time.monotonic() - began
        started = None
        if self.request.start:
            started = self._start(place)
        findings: tuple[Finding, ...] = ()
        if started is not None:
            findings = started.findings
        if replacing is not None and salvage is not None:
            findings += tuple(replacing.old_wal.findings(salvage))
        if self.request.take_over:
            # Not before recovery has worked, where we see it: until now the old one archives.
            timeline = started.timeline if started else self.choice.path.history.timeline
            _, others = record_owner(
                self.context, restore_id=restore_id, timeline=timeline, now=now
            )
            findings += others
        self.context.progress.done()
        return RestoreResult(
            plan=plan,
            run_id=self.context.run_id,
            restore_id=restore_id,
            restored_to=self.target_dir,
            restore_seconds=round(seconds, 3),
            settings=settings,
            started=started,
            salvage=salvage,
            kept=replacing.kept_words() if replacing else (),
            findings=findings,
            next_steps=self._next_steps(started),
        )

    # --- parts ---------------------------------------------------------------------

    def _run(self, job: RestoreJob) -> RestoreRun:
        replacing, progress = self.replacement, self.context.progress
        parts = (job, self.root, self.contents, self.source)
        if isinstance(replacing, Overwriting):
            over = Over(replacing.old, replacing.comparison, replacing.keeping)
            return DeltaRun(*parts, progress=progress, over=over)
        keeping = replacing.keeping if replacing is not None else None
        return RestoreRun(*parts, progress=progress, keeping=keeping)

    def _start(self, place: CopyPlace | None) -> Started:
        try:
            return start_restored(
                self.context,
                self.request,
                self.root,
                self.target_dir,
                place=place,
                selection=self.selection,
            )
        except InterruptedRunError as error:
            raise InterruptedRunError(
                f"{error.message} while it recovered; {self.target_dir} is restored, and stopped",
                hint=f"to let the recovery go on: pg_ctl -D {self.target_dir} start;"
                " to restore again, remove the directory first",
            ) from error

    def _next_steps(self, started: Started | None) -> tuple[str, ...]:
        steps = [] if started else [f"start it: pg_ctl -D {self.target_dir} start"]
        if self.replacement is not None and self.replacement.keep_dir:
            steps.append(
                f"to take it back: pgrecall undo {self.context.run_id}; when all is well, remove"
                f" {self.replacement.keep_dir}"
            )
        return tuple(steps)

    def _replacement(self) -> Replacement | Overwriting | None:
        request = self.request
        if request.delta:
            target_dir = target_of(self.context, request.target_dir)
            keeping = self._replaced(copies=True).keeping if request.keep_old else None
            return Overwriting(self.context, self.archive, target_dir, keeping)
        if not request.keep_old:
            return None
        return self._replaced(copies=False)

    def _replaced(self, *, copies: bool) -> Replacement:
        return replacement(
            self.context,
            self.archive,
            target_dir=target_of(self.context, self.request.target_dir),
            keep_old=self.request.keep_old,
            identity=(self.restore_id, self.now),
            copies=copies,
        )

    def _choose(self) -> Choice:
        """The choice; where the archive ends before the target, once more with newer WAL."""
        try:
            choice = self._chosen()
        except TargetUnreachableError:
            if not self._freshened().is_switched:
                raise
            return self._chosen()
        if may_be_newer(choice):
            fresh = self._freshened()
            choice = self._chosen() if fresh.is_switched else choice
            choice.reasons += [fresh.reason] if fresh.reason else []
            choice.findings += fresh.findings
        return choice

    def _freshened(self) -> Freshness:
        """Ask a live server for its newest WAL, if this is a restore beside it."""
        request, own = self.request, self.context.server.data_directory
        is_beside = bool(request.target_dir) and (
            not own or os.path.realpath(request.target_dir) != os.path.realpath(own)
        )
        if self.replacement is not None or not is_beside or not request.switch_wal:
            return Freshness(False, "")
        if request.dry_run:
            return Freshness(False, "a live server is made to archive its newest WAL first")
        return freshen(self.context, self.generation.system_identifier)

    def _chosen(self) -> Choice:
        view = self.replacement.old_wal.view if self.replacement else self.archive
        chooser = Chooser(view, self.backups, now=self.now)
        return chooser.choose(
            self.request.target,
            timeline=self.request.timeline,
            backup_id=self.request.backup_id,
        )

    def _space_needed(self) -> list[tuple[str, int]]:
        """Bytes by directory: a file counts where its tablespace goes."""
        if isinstance(self.replacement, Overwriting):
            return self.replacement.space_needed(self.contents)
        table = self.contents.table
        places = {str(space.oid).encode(): space.target for space in self.tablespaces}
        needs: dict[str, int] = {self.target_dir: 0}
        for index in table.files():
            parts = table.path(index).split(b"/", 2)
            place = places.get(parts[1]) if parts[0] == b"pg_tblspc" else None
            where = place or self.target_dir
            size = 0 if index in self.zeros else table.sizes[index]
            needs[where] = needs.get(where, 0) + size
        return list(needs.items())

    def _settings(self, place: CopyPlace | None) -> dict[str, str]:
        request, settings = self.request, self.context.settings
        command = restore_command_of(settings, self.context.server, standby=request.standby)
        chosen: dict[str, str] = {}
        if place is not None:
            chosen.update(isolation_settings(self.root.server.settings))
            chosen["port"] = str(place.port)
            chosen["unix_socket_directories"] = place.socket_directory
        needed = needed_parameters(self.choice, self.root)
        # A copy is started by its files alone, without what the server got on its command line.
        at_backup = {} if place is not None else self.root.server.settings
        chosen.update(raised_parameters(needed, at_backup))
        chosen.update(
            recovery_settings(
                self.choice.target,
                restore_command=command,
                timeline=("latest" if request.standby else str(self.choice.path.history.timeline)),
                action=request.action,
            )
        )
        if self.selection is not None:
            chosen.update(SETTINGS)
        if any(space.is_in_place for space in self.root.tablespaces) or any(
            not made.location for made in self.choice.tablespaces
        ):
            # Recovery takes a directory in pg_tblspc for damage otherwise, and ends with PANIC.
            chosen[IN_PLACE_TABLESPACES] = "on"
        return chosen

    def _verify_wal(self) -> None:
        self.context.progress.phase("verify WAL")
        own = self.choice.path.unarchived
        local = self.replacement.old_wal.names() if self.replacement else ()
        names = [name for name in self.choice.needed if name not in own and name not in local]
        with ThreadPoolExecutor(_WAL_READERS, thread_name_prefix="verify-wal") as pool:
            for _ in pool.map(self._read_segment, names):
                pass

    def _read_segment(self, name: str) -> None:
        self.archive.read(name)


def _refuse_contradictions(request: RestoreRequest) -> None:
    if request.standby and not isinstance(request.target, Latest):
        raise UsageError(
            "a standby follows its primary and stops at no target",
            hint="leave the target out, or leave --standby out",
        )
    if request.start and os.geteuid() == 0:
        raise PostgresRightsError(
            "PostgreSQL refuses to run as root, so --start cannot work",
            hint="run the restore as the user that owns the data directory:"
            " runuser -u postgres -- pgrecall restore ...",
        )


def _backups(
    context: RunContext, opened: OpenedRepository, request: RestoreRequest
) -> tuple[list[Completion], Generation, list[Finding]]:
    """The backups that may serve, the generation that they are of, and findings on others."""
    server, backup_id = context.server.name, request.backup_id
    complete, findings = _candidates(opened.catalog(server), request)
    latest = latest_generation(opened.store, server)
    if latest is None or not complete:
        damaged = "; ".join(finding.message for finding in findings)
        raise BackupNotFoundError(
            f"there is no complete backup of server {server!r} in {opened.store.name}"
            + (f" ({damaged})" if damaged else ""),
            hint="take one: pgrecall backup",
        )
    number = latest.number
    if backup_id:
        named = next((one for one in complete if one.backup_id == backup_id), None)
        number = (named or opened.catalog(server).get(backup_id)).generation  # which says why not
    chosen = [backup for backup in complete if backup.generation == number]
    if not chosen:
        raise BackupNotFoundError(
            f"there is no backup of generation {number} of server {server!r} yet,"
            f" only of older ones (before pg_upgrade or initdb)",
            hint="take one now; an older one is restored with --backup ID",
        )
    return chosen, read_generation(opened.store, server, number), findings


def _candidates(
    catalog: Catalog, request: RestoreRequest
) -> tuple[list[Completion], list[Finding]]:
    """What may be chosen from; one that was named is taken even if damaged, when that is wanted."""
    if not request.backup_id:
        return catalog.usable()
    marked = require_unmarked(catalog, request.backup_id, is_allowed=request.allow_damaged)
    complete, findings = catalog.survey()
    return complete, [*findings, *marked]
