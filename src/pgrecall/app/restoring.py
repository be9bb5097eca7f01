"""``restore``: choose, plan, show the plan, write, and start if that is asked."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.copy_place import CopyPlace, choose_place
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.requests import RestoreRequest
from pgrecall.app.restore_commands import restore_command_of
from pgrecall.app.starting import Started, start_restored
from pgrecall.app.taking_over import record_owner
from pgrecall.errors import (
    BackupNotFoundError,
    InterruptedRunError,
    PostgresRightsError,
    UsageError,
)
from pgrecall.model.findings import Finding, worst
from pgrecall.model.ids import RESTORE, new_id
from pgrecall.model.manifest import Completion, ManifestRoot
from pgrecall.model.runs import RunFacts
from pgrecall.model.targets import Latest
from pgrecall.repository.contents import Contents
from pgrecall.repository.identity import Generation, latest_generation, read_generation
from pgrecall.repository.pack_source import PackSource
from pgrecall.repository.retention_log import read_state
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.choice import Choice, Chooser
from pgrecall.restore.destination import (
    check_directory,
    check_leftover,
    check_place,
    check_replayed_tablespaces,
    check_space,
    check_writable,
    leftover_of,
    map_tablespaces,
)
from pgrecall.restore.plan import RestorePlan, RestoreWishes, needed_parameters, plan_restore
from pgrecall.restore.recovery_settings import (
    IN_PLACE_TABLESPACES,
    isolation_settings,
    raised_parameters,
    recovery_settings,
)
from pgrecall.restore.run import RestoreJob, RestoreRun
from pgrecall.system.clock import SystemClock
from pgrecall.system.memory import keep_freed_memory

_WAL_READERS = 4


class RestoreResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``restore`` prints. After a dry run there is only the plan.

    ``settings`` are those written into postgresql.auto.conf.
    """

    plan: RestorePlan
    restore_id: str = ""
    restored_to: str = ""
    restore_seconds: float = 0.0
    settings: dict[str, str] = {}
    started: Started | None = None
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
    question = "Shall the restored server replace the one that owns the archive?"
    if not context.approve(plan, question=question if request.take_over else ""):
        return RestoreResult(plan=plan)
    used = [prepared.choice.backup.backup_id]
    with using(context, prepared.opened, "restore", used):
        prepared.opened.catalog(context.server.name).get(*used)  # not expired meanwhile
        return prepared.carry_out(plan)


class _Preparation:
    """Everything that is known before the first byte is written."""

    def __init__(self, context: RunContext, request: RestoreRequest) -> None:
        _refuse_contradictions(request)
        self.context = context
        self.request = request
        self.clock = SystemClock()
        self.opened = main_repository(context)
        self.backups, self.generation, self.damaged = _backups(
            context, self.opened, request.backup_id
        )
        self.archive = WalArchive(self.opened.store, context.server.name, self.generation)
        state = read_state(self.opened.store, context.server.name)
        self.archive.hide(state.hidden_wal(self.generation.number))
        self.choice = self._choose()
        manifest = self.opened.catalog(context.server.name).manifest(self.choice.backup)
        self.root: ManifestRoot = manifest.root
        packs = manifest.packs()
        self.contents = Contents(len(packs), manifest.root.server.block_bytes)
        self.contents.read(manifest.files())
        self.source = PackSource(
            self.opened.store, context.server.name, self.choice.backup.backup_id, packs
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
        self._check_places()

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
            clears=self.leftover.restore_id if self.leftover else "",
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
        now = self.clock.now()
        restore_id = new_id(RESTORE, now)
        place = None if self.request.take_over else choose_place(self.target_dir, self.request.port)
        settings = self._settings(place)
        job = RestoreJob(
            restore_id=restore_id,
            server=self.context.server.name,
            target_dir=self.target_dir,
            tablespaces=self.tablespaces,
            settings=settings,
            signal="standby.signal" if self.request.standby else "recovery.signal",
            workers=self.context.settings.restore.workers or 2 * (os.cpu_count() or 1),
            planned_to=self.choice.looked_to(self.archive.segment_bytes),
            now=now,
        )
        run = RestoreRun(job, self.root, self.contents, self.source, progress=self.context.progress)
        run.check_packs()
        if self.request.verify_wal:
            self._verify_wal()
        run.run(self.leftover)
        seconds = time.monotonic() - began
        started = None
        if self.request.start:
            started = self._start(place)
        findings: tuple[Finding, ...] = ()
        if self.request.take_over:
            # Not before recovery has worked, where we see it: until now the old one archives.
            timeline = started.timeline if started else self.choice.path.history.timeline
            _, findings = record_owner(
                self.context, restore_id=restore_id, timeline=timeline, now=now
            )
        self.context.progress.done()
        return RestoreResult(
            plan=plan,
            restore_id=restore_id,
            restored_to=self.target_dir,
            restore_seconds=round(seconds, 3),
            settings=settings,
            started=started,
            findings=findings,
            next_steps=() if started else (f"start it: pg_ctl -D {self.target_dir} start",),
        )

    # --- parts ---------------------------------------------------------------------

    def _start(self, place: CopyPlace | None) -> Started:
        try:
            return start_restored(
                self.context, self.request, self.root, self.target_dir, place=place
            )
        except InterruptedRunError as error:
            raise InterruptedRunError(
                f"{error.message} while it recovered; {self.target_dir} is restored, and stopped",
                hint=f"to let the recovery go on: pg_ctl -D {self.target_dir} start;"
                " to restore again, remove the directory first",
            ) from error

    def _choose(self) -> Choice:
        chooser = Chooser(self.archive, self.backups, now=self.clock.now())
        return chooser.choose(
            self.request.target,
            timeline=self.request.timeline,
            backup_id=self.request.backup_id,
        )

    def _check_places(self) -> None:
        repositories = self.context.settings.repositories_of(self.context.server)
        check_place(self.target_dir, [one.path for one in repositories if one.store == "local"])
        check_replayed_tablespaces(self.choice.tablespaces, self.tablespaces)
        if self.leftover is None:
            check_directory(self.target_dir, "the destination")
            for space in self.tablespaces:
                check_directory(space.target, f"the directory for tablespace {space.name!r}")
        else:
            check_leftover(self.target_dir, self.leftover)
            for space in self.tablespaces:
                if os.path.abspath(space.target) not in self.leftover.directories:
                    check_directory(space.target, f"the directory for tablespace {space.name!r}")
        for place in (self.target_dir, *(space.target for space in self.tablespaces)):
            check_writable(place)
        check_space(self._space_needed())

    def _space_needed(self) -> list[tuple[str, int]]:
        """Bytes by directory: a file counts where its tablespace goes."""
        table = self.contents.table
        places = {str(space.oid).encode(): space.target for space in self.tablespaces}
        needs: dict[str, int] = {self.target_dir: 0}
        for index in table.files():
            parts = table.path(index).split(b"/", 2)
            place = places.get(parts[1]) if parts[0] == b"pg_tblspc" else None
            where = place or self.target_dir
            needs[where] = needs.get(where, 0) + table.sizes[index]
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
        if any(space.is_in_place for space in self.root.tablespaces) or any(
            not made.location for made in self.choice.tablespaces
        ):
            # Recovery takes a directory in pg_tblspc for damage otherwise, and ends with PANIC.
            chosen[IN_PLACE_TABLESPACES] = "on"
        return chosen

    def _verify_wal(self) -> None:
        self.context.progress.phase("verify WAL")
        own = self.choice.path.unarchived
        names = [name for name in self.choice.needed if name not in own]
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
    context: RunContext, opened: OpenedRepository, backup_id: str
) -> tuple[list[Completion], Generation, list[Finding]]:
    """The backups that may serve, the generation that they are of, and findings on others."""
    server = context.server.name
    complete, findings = opened.catalog(server).survey()
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
        number = opened.catalog(server).get(backup_id).generation
    chosen = [backup for backup in complete if backup.generation == number]
    if not chosen:
        raise BackupNotFoundError(
            f"there is no backup of generation {number} of server {server!r} yet,"
            f" only of older ones (before pg_upgrade or initdb)",
            hint="take one now; an older one is restored with --backup ID",
        )
    return chosen, read_generation(opened.store, server, number), findings
