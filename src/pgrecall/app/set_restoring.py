"""``set restore``: all of a recovery set, in order; here from its backup, to its restore point."""

from __future__ import annotations

import os
import re
import time
from functools import partial
from pathlib import Path

import msgspec

from pgrecall.app.context import RunContext, approving
from pgrecall.app.copy_place import CopyPlace
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.recovering import wait_until_open
from pgrecall.app.requests import RestoreRequest, SetRestoreRequest
from pgrecall.app.restoring import run_restore
from pgrecall.app.set_examining import Connect, examine, make_slots, slot_findings
from pgrecall.app.set_loading import load_set
from pgrecall.app.set_results import SetRestorePlan, SetRestoreResult
from pgrecall.app.starting import Started, start_restored
from pgrecall.errors import UsageError
from pgrecall.model.captures import CaptureRecord
from pgrecall.model.sets import SetRecord
from pgrecall.model.targets import ToName
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.instance import running_postmaster
from pgrecall.repository.capture_log import CaptureLog
from pgrecall.repository.set_catalog import SetCatalog
from pgrecall.restore.configuration import AUTO_CONF
from pgrecall.restore.destination import UNFINISHED_MARKER
from pgrecall.restore.plan import RestorePlan
from pgrecall.restore.recovery_settings import ISOLATION, OWNED
from pgrecall.sets.compare import Expectation, SetCheck, findings_of
from pgrecall.sets.plan import choose_mode, new_places
from pgrecall.store.base import SUITE_NONE
from pgrecall.system.faults import reached

_PLACE = re.compile(r"^(port|unix_socket_directories) = '((?:[^'\\]|'')*)'", re.MULTILINE)
# Commented out when it was reached.
_TARGET = re.compile(r"^(?:# )?recovery_target_name = '([^']*)'", re.MULTILINE)
_WAIT_SECONDS = 3600.0
_STEPS = (
    "put the files of the backup back",
    "recover to the restore point of the set, and open",
    "make the replication slots again",
    "compare everything with the capture",
)


def restore_set(context: RunContext, request: SetRestoreRequest) -> SetRestoreResult:
    """Bring a recovery set back, from its backup or from its dump.

    Nothing that exists is replaced. After a kill the same call goes on, or begins anew where that
    is cleaner. Raises SetNotFoundError, SetError, UsageError, and what a restore or load raises.
    """
    opened = main_repository(context)
    record = SetCatalog(opened.store, context.server.name).get(request.set_id)
    capture = CaptureLog(opened.store, context.server.name).get(record.capture_id)
    mode = choose_mode(record, request.mode)
    with using(context, opened, "restore", [record.set_id, *record.parts]):
        if mode == "logical":
            return load_set(context, opened, request, record, capture)
        return _Physical(context, opened, request, record, capture).run()


class _Physical:
    def __init__(
        self,
        context: RunContext,
        opened: OpenedRepository,
        request: SetRestoreRequest,
        record: SetRecord,
        capture: CaptureRecord,
    ) -> None:
        if not request.target_dir:
            raise UsageError(
                "--target-dir is missing", hint="name an empty directory for the restored server"
            )
        if request.host or request.user:
            raise UsageError(
                "--host and --user are for a logical restore: files go into a directory",
                hint="leave them out, or say --logical",
            )
        self._context = context
        self._opened = opened
        self._request = request
        self._record = record
        self._capture = capture
        self._directory = os.path.abspath(request.target_dir)
        self._places = new_places(capture.facts.tablespaces, request.tablespace_map)
        self._plan: SetRestorePlan | None = None

    def run(self) -> SetRestoreResult:
        """Restore, or go on with what a killed run has left; then examine."""
        began = time.monotonic()
        place = left_by(self._directory, self._record.set_id)
        started = self._restore() if place is None else self._go_on(place)
        assert self._plan is not None
        if started is None:
            return SetRestoreResult(plan=self._plan)
        seconds = time.monotonic() - began
        reached("set-restore.recovered")
        opens = partial(self._connect, started)
        self._context.progress.phase("slots")
        slots = make_slots(self._record, opens) if self._request.slots else ()
        reached("set-restore.slots")
        self._context.progress.phase("compare")
        checks = (self._stopped(started), *self._compare(opens))
        self._context.progress.done()
        return SetRestoreResult(
            plan=self._plan,
            run_id=self._context.run_id,
            host=started.socket_directory,
            port=started.port,
            restore_seconds=round(seconds, 3),
            started=started,
            checks=checks,
            slots=slots,
            findings=(*started.findings, *slot_findings(slots), *findings_of(checks)),
            next_steps=self._next_steps(keeps_wal=any(one.is_made for one in slots)),
        )

    # --- phases ----------------------------------------------------------------------

    def _restore(self) -> Started | None:
        assert self._record.point is not None
        restored = run_restore(
            approving(self._context, self._approve),
            RestoreRequest(
                target=ToName(self._record.set_id),
                timeline=self._record.point.timeline,
                backup_id=self._record.backup_id,
                target_dir=self._directory,
                tablespace_map=self._places,
                start=True,
                port=self._request.port,
                switch_wal=False,
                dry_run=self._request.dry_run,
            ),
        )
        return restored.started

    def _approve(self, plan: msgspec.Struct, *, question: str = "") -> bool:
        """Show the restore's plan as a part of ours, and ask."""
        del question
        restore = msgspec.convert(plan, RestorePlan, from_attributes=True)
        return self._shown(restore, "")

    def _go_on(self, place: CopyPlace) -> Started | None:
        """The files are all there: start it if it does not run, and wait until it is open."""
        is_running = running_postmaster(self._directory) is not None
        what = "runs" if is_running else "is started"
        if not self._shown(None, f"its files are there; it {what}, and is examined"):
            return None
        if not is_running:
            catalog = self._opened.catalog(self._context.server.name)
            root = catalog.manifest(catalog.get(self._record.backup_id)).root
            request = RestoreRequest(target_dir=self._directory, start=True)
            return start_restored(self._context, request, root, self._directory, place=place)
        status = wait_until_open(self._context, self._directory, _WAIT_SECONDS)
        return Started(
            state="open",
            pid=status.pid,
            port=place.port,
            socket_directory=place.socket_directory,
            timeline=status.timeline or 0,
            stopped="",
            replayed_to=status.replayed_to,
            last_commit_at=status.last_commit_at,
            recovery_seconds=0.0,
            log_path=os.path.join(self._directory, "pgrecall_recovery.log"),
        )

    def _shown(self, restore: RestorePlan | None, goes_on: str) -> bool:
        self._plan = SetRestorePlan(
            server=self._context.server.name,
            set_id=self._record.set_id,
            mode="physical",
            made_at=self._record.made_at,
            target=self._directory,
            steps=_STEPS if not goes_on else _STEPS[2:],
            goes_on=goes_on,
            restore=restore,
        )
        question = f"Restore the set {self._record.set_id} into {self._directory}?"
        return self._context.approve(self._plan, question=question)

    # --- parts -----------------------------------------------------------------------

    def _connect(self, started: Started, database: str) -> Connection:
        server = self._context.server
        return connect(
            server.replace(
                data_directory=self._directory,
                host=started.socket_directory,
                port=started.port,
                database=database or server.database,
            ),
            application_name="pgrecall set restore",
            purpose="set restore",
            environment=self._context.environment,
        )

    def _stopped(self, started: Started) -> SetCheck:
        """Whether recovery has ended at the restore point, in PostgreSQL's own words."""
        said = started.stopped or _stopped_before(started.log_path)
        is_there = self._record.set_id in said
        return SetCheck(
            what="restore point",
            wanted=1,
            equal=int(is_there),
            result="ok" if is_there else "fail",
            differences=() if is_there else (said or "the log names no end of recovery",),
        )

    def _compare(self, opens: Connect) -> tuple[SetCheck, ...]:
        expected = Expectation(
            other_settings=ISOLATION | OWNED | {"allow_in_place_tablespaces"},
            tablespaces=self._places,
        )
        is_encrypted = self._opened.store.suite != SUITE_NONE
        return examine(self._capture, opens, expected, with_secrets=is_encrypted)

    def _next_steps(self, *, keeps_wal: bool) -> tuple[str, ...]:
        directory = self._directory
        steps = [
            "it runs beside everything else and does not archive; to let it replace the server:"
            f" pgrecall recovery promote --target-dir {directory} --take-over"
        ]
        if keeps_wal:
            steps.append("its slots keep WAL until somebody uses them: drop those nobody needs")
        return tuple(steps)


def left_by(directory: str, set_id: str) -> CopyPlace | None:
    """Where the copy of that set listens whose files are all in ``directory``; None: there is none.

    A restore writes pg_control last, and then takes its marker away.
    """
    if os.path.lexists(os.path.join(directory, UNFINISHED_MARKER)):
        return None
    try:
        text = Path(directory, AUTO_CONF).read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    if not os.path.exists(os.path.join(directory, "global", "pg_control")):
        return None
    targets = _TARGET.findall(text)
    # The last ones count; a copy that has taken over has none of its own.
    found = {match[1]: match[2] for match in _PLACE.finditer(text)}
    if not targets or targets[-1] != set_id or len(found) != 2:
        return None
    return CopyPlace(int(found["port"]), found["unix_socket_directories"].replace("''", "'"))


def _stopped_before(log_path: str) -> str:
    """What the log of an earlier run says of the end of recovery."""
    try:
        lines = Path(log_path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((one for one in reversed(lines) if "recovery stopping" in one), "")
