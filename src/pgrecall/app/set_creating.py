"""``set create``: capture, backup, dump and the WAL of one moment, kept together by one record.

The backup comes first. Then the dump takes its snapshots, and at that very moment the capture is
made and the restore point is written: so that what the dump holds, what the capture says, and what
a recovery to the restore point gives back, are of one moment.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime

import msgspec

from pgrecall import __version__
from pgrecall.app.archive_wait import ArchiveWait, server_session
from pgrecall.app.backing_up import run_backup
from pgrecall.app.capturing import run_capture
from pgrecall.app.context import RunContext, approving
from pgrecall.app.copying import copy_everywhere
from pgrecall.app.dumping import run_dump
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.requests import BackupRequest, DumpRequest, SetCreateRequest
from pgrecall.app.switching import prepared_wait
from pgrecall.backup.plan import BackupPlan
from pgrecall.dump.plan import DumpPlan
from pgrecall.errors import UsageError
from pgrecall.further_errors import SetError
from pgrecall.model.captures import CaptureRecord
from pgrecall.model.dumps import DumpCompletion
from pgrecall.model.findings import Finding, worst
from pgrecall.model.ids import SET, new_id
from pgrecall.model.manifest import Completion
from pgrecall.model.runs import ChainHead, RunFacts
from pgrecall.model.sets import SetPoint, SetRecord
from pgrecall.postgres.actions import (
    ArchiverFacts,
    create_restore_point,
    file_before,
    server_clock,
    switch_quietly,
)
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.facts import system_identifier
from pgrecall.repository.capture_log import CaptureLog
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.repository.identity import Generation, require_generation
from pgrecall.repository.run_chains import RunChains
from pgrecall.repository.set_catalog import SetCatalog
from pgrecall.system.clock import SystemClock
from pgrecall.system.faults import reached

_ON_STANDBY = "a set ends at a restore point, which is made on the primary"


class SetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``set create`` does. ``restore_point``: its name; empty for a set without a backup."""

    server: str
    repository: str
    parts: tuple[str, ...]
    restore_point: str
    backup: BackupPlan | None = None
    dump: DumpPlan | None = None


class SetResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``set create`` prints; ``recovery_set`` is absent after a dry run."""

    plan: SetPlan
    recovery_set: SetRecord | None = None
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        made = self.recovery_set
        return RunFacts(
            outcome=worst(list(self.findings)),
            backup_id=made.set_id if made is not None else "",
            raw_bytes=made.raw_bytes if made is not None else 0,
            stored_bytes=made.stored_bytes if made is not None else 0,
        )


def create_set(context: RunContext, request: SetCreateRequest) -> SetResult:
    """Make a recovery set of the chosen server in its main repository.

    When it raises there is no set; parts that were complete by then stay, as ordinary backups
    and dumps. Raises what ``backup``, ``dump`` and ``restore-point`` raise, SetError, UsageError.
    """
    creation = _Creation(context, request)
    plan = creation.plan()
    if not context.approve(plan):
        return SetResult(plan=plan)
    try:
        with using(context, creation.opened, "backup"):
            made = creation.carry_out()
    finally:
        context.progress.done()
    # Its parts are there already; with them goes the record.
    copies = copy_everywhere(context, made.parts[0], creation.opened.settings.name)
    restore = f"pgrecall set restore {made.set_id} --target-dir DIR"
    return SetResult(
        plan=plan,
        recovery_set=made,
        findings=(*creation.findings, *copies),
        next_steps=(f"to bring it back: {restore}", f"to prove it: pgrecall verify {made.set_id}"),
    )


class _Creation:
    def __init__(self, context: RunContext, request: SetCreateRequest) -> None:
        if not request.physical and not request.dumps:
            raise UsageError(
                "--no-physical and --no-dumps leave nothing to restore",
                hint="give one of them; pgrecall capture keeps just the configuration",
            )
        self._context = context
        self._request = request
        self._clock = SystemClock()
        self.opened: OpenedRepository = main_repository(context)
        self.findings: list[Finding] = []
        self._set_id = new_id(SET, self._clock.now())
        self._silent = approving(context, _approved)
        self._capture: CaptureRecord | None = None
        self._point: _Point | None = None

    def plan(self) -> SetPlan:
        """Everything that would be made; the server is asked, and nothing is changed."""
        request, planned = self._request, approving(self._context, _not_yet)
        backup = dump = None
        parts = ["capture"]
        if request.physical:
            with server_session(self._context, "set create") as connection:
                prepared_wait(self._context, connection, _ON_STANDBY)
            backup = run_backup(planned, BackupRequest(dry_run=True)).plan
            parts += ["backup", "WAL up to a restore point"]
        if request.dumps:
            dump = run_dump(planned, self._dump_request()).plan
            parts += ["globals", f"dumps of {len(dump.databases)} databases"]
        return SetPlan(
            server=self._context.server.name,
            repository=self.opened.settings.name,
            parts=tuple(parts),
            restore_point=self._set_id if request.physical else "",
            backup=backup,
            dump=dump,
        )

    def carry_out(self) -> SetRecord:
        """Make every part, then the record; durable when it returns."""
        started_at, began = self._clock.now(), self._clock.monotonic()
        with server_session(self._context, "set create") as connection:
            identifier = system_identifier(connection)
            version_num = connection.version_num
        backup = self._back_up() if self._request.physical else None
        reached("set.backed-up")
        dump = self._dump_at_moment(backup)
        reached("set.dumped")
        capture, point = self._capture, self._point
        assert capture is not None
        generation = self._generation(identifier)
        self._require_parts(backup, dump)
        made_at = capture.captured_at
        if point is not None:
            made_at = point.record.created_at
        elif dump is not None:
            made_at = dump.snapshot_at
        totals = [one.totals for one in (backup, dump) if one is not None]
        record = SetRecord(
            set_id=self._set_id,
            repository_id=self.opened.identity.repository_id,
            server=self._context.server.name,
            generation=generation.number,
            system_identifier=str(identifier),
            version_num=version_num,
            capture_id=capture.capture_id,
            dump_id=dump.backup_id if dump is not None else "",
            backup_id=backup.backup_id if backup is not None else "",
            point=point.record if point is not None else None,
            databases=dump.databases if dump is not None else _databases(capture),
            slots=capture.facts.slots,
            made_at=made_at,
            dumped_at=dump.snapshot_at if dump is not None else None,
            started_at=started_at,
            completed_at=self._clock.now(),
            duration_seconds=round(self._clock.monotonic() - began, 3),
            raw_bytes=sum(one.raw_bytes for one in totals),
            stored_bytes=sum(one.stored_bytes for one in totals),
            worst=worst(self.findings),
            finding_count=len(self.findings),
            tool_version=__version__,
            run_heads=self._run_heads(),
        )
        reached("set.parts-complete")
        SetCatalog(self.opened.store, record.server).add(record)
        reached("set.completed")
        return record

    # --- parts -----------------------------------------------------------------------

    def _back_up(self) -> Completion:
        result = run_backup(self._silent, BackupRequest())
        self.findings += result.findings
        assert result.backup is not None
        return result.backup

    def _dump_at_moment(self, backup: Completion | None) -> DumpCompletion | None:
        """The moment of the set: with the dump's snapshots, where there is a dump."""
        dump = None
        with ExitStack() as opened:
            if backup is not None:
                connection = opened.enter_context(server_session(self._context, "set create"))
                wait = prepared_wait(self._context, connection, _ON_STANDBY)
                self._point = _Point(connection, wait, backup)
            if self._request.dumps:
                result = run_dump(self._silent, self._dump_request(), at_snapshots=self._moment)
                self.findings += result.findings
                dump = result.dump
            else:
                self._moment()
            if self._point is not None:
                self._context.progress.phase(f"wait for {self._point.record.segment}")
                self._point.wait()
                self.findings += self._point.findings
        return dump

    def _moment(self) -> None:
        if self._point is not None:
            self._point.make(self._set_id)
        reached("set.point-made")
        captured = run_capture(self._silent)
        self.findings += captured.findings
        log = CaptureLog(self.opened.store, self._context.server.name)
        self._capture = log.get(captured.capture_id)

    def _generation(self, identifier: int) -> Generation:
        name = self._context.server.name
        return require_generation(self.opened.store, name, identifier, f"the server {name!r}")

    def _require_parts(self, backup: Completion | None, dump: DumpCompletion | None) -> None:
        """Nothing of it may have expired meanwhile; raises BackupNotFoundError and its like."""
        name = self._context.server.name
        if backup is not None:
            self.opened.catalog(name).get(backup.backup_id)
        if dump is not None:
            DumpCatalog(self.opened.store, name).get(dump.backup_id)

    def _dump_request(self) -> DumpRequest:
        return DumpRequest(with_proofs=self._request.with_proofs, passwords=self._request.passwords)

    def _run_heads(self) -> tuple[ChainHead, ...]:
        chains = RunChains(
            self.opened.store, self._context.server.name, self.opened.identity.repository_id
        )
        return chains.heads()


class _Point:
    """The restore point of a set: made in one moment, awaited later."""

    def __init__(self, connection: Connection, wait: ArchiveWait, backup: Completion) -> None:
        self._connection = connection
        self._wait = wait
        self._backup = backup
        self._before: ArchiverFacts = wait.before()
        self._record: SetPoint | None = None

    @property
    def record(self) -> SetPoint:
        """What was made."""
        assert self._record is not None
        return self._record

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What best-effort repositories lack."""
        return tuple(self._wait.findings)

    def make(self, name: str) -> None:
        """Write it, and send its segment off. Raises SetError, PostgresError."""
        self._before = self._wait.before()
        lsn = create_restore_point(self._connection, name)
        created_at: datetime = server_clock(self._connection)
        # It is in the segment that holds its last byte; the switch sends that one off.
        segment, _ = file_before(self._connection, lsn)
        switch_quietly(self._connection)
        timeline = int(segment[:8], 16)
        if timeline != self._backup.timeline:
            raise SetError(
                f"the server went from timeline {self._backup.timeline} to {timeline} since the"
                " backup of the set began: it was promoted",
                hint="make a new set; the backup and what was archived stay",
            )
        self._record = SetPoint(
            lsn=str(lsn),
            created_at=created_at,
            timeline=timeline,
            segment=segment,
            start_lsn=self._backup.start_lsn,
        )

    def wait(self) -> None:
        """Return when every required repository has it; raises NotArchivedError."""
        self._wait.until_durable(self.record.segment, self._before, None)


def _databases(capture: CaptureRecord) -> tuple[str, ...]:
    return tuple(one.name for one in capture.facts.databases if one.allows_connections)


def _approved(plan: msgspec.Struct, *, question: str = "") -> bool:
    """The plan of a part was shown with that of the whole."""
    del plan, question
    return True


def _not_yet(plan: msgspec.Struct, *, question: str = "") -> bool:
    """The plan of a part is wanted, and nothing else."""
    del plan, question
    return False
