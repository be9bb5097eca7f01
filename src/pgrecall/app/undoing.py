"""``undo``: take a restore back, as long as the data directory that it replaced is kept."""

from __future__ import annotations

import os
from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import main_repository
from pgrecall.app.replacing import is_settled
from pgrecall.app.requests import UndoRequest
from pgrecall.app.taking_over import give_back
from pgrecall.errors import DestinationError, RestoreError
from pgrecall.model.findings import Finding, worst
from pgrecall.model.ids import RUN
from pgrecall.model.runs import RunFacts
from pgrecall.postgres.instance import running_postmaster
from pgrecall.repository.identity import read_copy_marker
from pgrecall.repository.journal import Journal
from pgrecall.restore.claim import claimed
from pgrecall.restore.destination import UNFINISHED_MARKER, UnfinishedRestore, leftover_of
from pgrecall.restore.keeping import Keeping
from pgrecall.restore.kept import KeptPart, KeptRecord, KeptState, read_record
from pgrecall.restore.local_wal import LocalWal
from pgrecall.restore.old_data import DATA, OldData, inspect, parts_of
from pgrecall.restore.run import clear_directories
from pgrecall.system.clock import SystemClock


class WrittenSince(msgspec.Struct, frozen=True, kw_only=True):
    """What a restored copy has written by itself: commits on its own timeline, up to an LSN."""

    was_started: bool
    timeline: int = 0
    up_to_lsn: str = ""
    commits: int = 0
    last_commit_at: datetime | None = None


class RestoreUndoPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Plan of ``undo``: ``old`` is the PGDATA that comes back, ``lost`` the copy's own work."""

    run_id: str
    restore_id: str
    target_dir: str
    kept_in: str
    kept_at: datetime
    old: KeptState
    action: str
    copy_goes_to: str
    lost: WrittenSince
    reasons: tuple[str, ...] = ()


class RestoreUndoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``undo`` prints. ``kept``: what became of the restored copy, and where it is."""

    plan: RestoreUndoPlan
    run_id: str = ""
    is_undone: bool = False
    kept: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(
            outcome=worst(list(self.findings)),
            kept_in=self.plan.kept_in if self.kept else "",
            kept=self.kept,
        )


def undo_restore(context: RunContext, request: UndoRequest) -> RestoreUndoResult:
    """Bring the PGDATA back that a restore with ``keep_old`` has replaced.

    The restored copy goes aside, or is removed with ``discard``. After a kill at
    any point the same call goes on. Raises RestoreError when nothing is kept of
    that run, DestinationError when the copy runs or the kept files are not whole.
    """
    undo = _Undo(context, request)
    plan = undo.plan()
    question = f"Shall {plan.target_dir} be what it was before the restore?"
    if not context.approve(plan, question=question):
        return RestoreUndoResult(plan=plan)
    findings = undo.carry_out()
    context.progress.done()
    return RestoreUndoResult(
        plan=plan,
        run_id=context.run_id,
        is_undone=True,
        kept=undo.kept_words(),
        findings=tuple(findings),
        next_steps=(f"start it: pg_ctl -D {plan.target_dir} start",),
    )


class _Undo:
    def __init__(self, context: RunContext, request: UndoRequest) -> None:
        self._context = context
        self._request = request
        self.record = _record_of(context, request)
        self._leftover = leftover_of(self.record.target_dir)
        self._require_stopped()
        self._copy = self._restored_copy()
        self._require_kept()

    def plan(self) -> RestoreUndoPlan:
        """What will be done, and what is lost by it."""
        record = self.record
        aside = next((part.aside for part in self._copy_parts() if part.name == DATA), "")
        if record.phase in {"copying", "copied"}:
            action = "forget the copies of the old files, which are still in their place"
        elif not aside:
            action = "clear the restore, which was never complete, and bring the old files back"
        elif self._discards:
            action = "bring the old files back, and remove the restored copy"
        else:
            action = "set the restored copy aside, and bring the old files back"
        goes_on = "an undo was interrupted: it goes on"
        reasons = (goes_on,) if record.is_undoing else ()
        return RestoreUndoPlan(
            run_id=record.run_ids[-1],
            restore_id=record.restore_id,
            target_dir=record.target_dir,
            kept_in=record.keep_dir,
            kept_at=record.kept_at,
            old=record.old,
            action=action,
            copy_goes_to="" if self._discards else aside,
            lost=self._written_since(),
            reasons=reasons,
        )

    def carry_out(self) -> list[Finding]:
        """Do it; durable when it returns."""
        record, keeping = self.record, Keeping(self.record)
        self._context.progress.phase("undo")
        parts = self._copy_parts()
        places = [part.place for part in parts]
        with claimed(list(dict.fromkeys([*keeping.directories(), *places]))):
            self._require_stopped()
            if record.phase in {"copying", "copied"}:
                keeping.drop_copies(UNFINISHED_MARKER)
                self.record = keeping.record
                return []
            if parts:
                keeping.set_aside(parts, discards=self._discards)
            elif record.phase in {"moving", "kept"}:
                _clear(keeping, self._leftover)
                keeping.begin_return()
            keeping.put_back()
            findings = self._give_archive_back()
            keeping.finish()
        self.record = keeping.record
        return findings

    def kept_words(self) -> tuple[str, ...]:
        """Where the restored copy is now."""
        if self.record.discards:
            return ()
        return tuple(f"restored {part.name}: {part.aside}" for part in self.record.copy_parts)

    # --- what is there -----------------------------------------------------------------

    @property
    def _discards(self) -> bool:
        """Once an undo has begun, what was said then counts."""
        return self.record.discards if self.record.is_undoing else self._request.discard

    def _restored_copy(self) -> OldData | None:
        """The copy that took the old files' place; None when there is none that is whole."""
        record, leftover = self.record, self._leftover
        if record.phase != "kept":
            return None
        control = os.path.join(record.target_dir, "global", "pg_control")
        label = os.path.join(record.target_dir, "backup_label")
        # The marker is removed last: who has begun to work with the copy may not have waited.
        was_started = os.path.exists(control) and not os.path.exists(label)
        if is_settled(record, leftover) or was_started:
            return inspect(record.target_dir, int(record.system_identifier))
        return None

    def _copy_parts(self) -> tuple[KeptPart, ...]:
        if self._copy is None:
            return self.record.copy_parts
        return parts_of(self._copy, self.record.keep_dir, self.record.restore_id)

    def _require_stopped(self) -> None:
        directory = self.record.target_dir
        pid = running_postmaster(directory)
        if pid is not None:
            raise DestinationError(
                f"a server runs on {directory} (process {pid})",
                hint=f"stop it: pg_ctl -D {directory} stop; what it has written since the restore"
                " is not in the old data directory",
            )

    def _require_kept(self) -> None:
        if self.record.phase != "kept":
            return
        for part in self.record.parts:
            names = ["global", "PG_VERSION"] if part.name == DATA else [part.only]
            missing = [name for name in names if not os.path.exists(os.path.join(part.kept, name))]
            if missing and not (part.only and not os.path.isdir(part.kept)):
                raise DestinationError(
                    f"{part.kept} is not whole any more: {missing[0] or part.kept} is missing",
                    hint="was it removed or moved? Put it back, and run this again",
                )
            pid = running_postmaster(part.kept) if part.name == DATA else None
            if pid is not None:
                raise DestinationError(
                    f"a server runs on {part.kept} (process {pid})", hint="stop it first"
                )

    def _written_since(self) -> WrittenSince:
        copy = self._copy
        if copy is None:
            return WrittenSince(was_started=False)
        if os.path.exists(os.path.join(copy.directory, "backup_label")):
            return WrittenSince(was_started=False)
        state = copy.state
        local = LocalWal(
            [copy.wal_directory],
            system_identifier=copy.control.system_identifier,
            segment_bytes=copy.control.segment_bytes,
        )
        own = [name for name in local.names() if int(name[:8], 16) == state.timeline]
        if state.timeline == self.record.old.timeline:
            own = []  # a standby, or paused: nothing of its own
        indexes = [local.index(name) for name in own]
        times = [index.commit_times.last_at for index in indexes if index.commit_times is not None]
        return WrittenSince(
            was_started=True,
            timeline=state.timeline,
            up_to_lsn=str(max((index.end_lsn for index in indexes), default=state.checkpoint_lsn)),
            commits=sum(index.commit_count for index in indexes),
            last_commit_at=max(times, default=None),
        )

    def _give_archive_back(self) -> list[Finding]:
        writer = read_copy_marker(self.record.target_dir)
        return give_back(
            self._context,
            taken_by=self.record.restore_id,
            to=writer or "",
            timeline=self.record.old.timeline,
            now=SystemClock().now(),
        )


def _record_of(context: RunContext, request: UndoRequest) -> KeptRecord:
    """The record of the run, from PGDATA, or from where its journal entry says."""
    directory = request.target_dir or context.server.data_directory
    places = [os.path.abspath(directory)] if directory else []
    if request.run.startswith(f"{RUN}-"):
        run = Journal(main_repository(context).store, context.server.name).get(request.run)
        if run is not None and run.kept_in:
            places.append(run.kept_in)
    for place in places:
        record = read_record(place)
        if record is not None and place == record.keep_dir:
            record = _current(record)
        if record is None:
            continue
        if record.names(request.run):
            return record
        _refuse_older(record, request.run)
    shown = " and ".join(places) or "the data directory"
    raise RestoreError(
        f"nothing is kept of the run {request.run}: {shown} says nothing of it",
        hint="only a restore with --keep-old can be undone; of one into another directory say"
        " --target-dir",
    )


def _current(record: KeptRecord) -> KeptRecord:
    """Of the record in PGDATA and the one beside the kept files the first counts."""
    there = read_record(record.target_dir)
    return there if there is not None and there.restore_id == record.restore_id else record


def _refuse_older(record: KeptRecord, run: str) -> None:
    older = record.previous
    while older is not None:
        if older.names(run):
            raise RestoreError(
                f"after the run {run} the restore {record.run_ids[-1]} has replaced the same data"
                " directory",
                hint=f"take that back first: pgrecall undo {record.run_ids[-1]}",
            )
        older = older.previous


def _clear(keeping: Keeping, leftover: UnfinishedRestore | None) -> None:
    if leftover is None:
        return
    if leftover.is_delta:
        keeping.clear_place(UNFINISHED_MARKER)
        return
    directories = [keeping.record.target_dir, *leftover.directories]
    clear_directories(directories, leftover.spares)
