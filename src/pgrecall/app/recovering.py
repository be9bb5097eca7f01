"""``recovery status``, ``resume`` and ``promote``: the way on of an instance that recovers."""

from __future__ import annotations

import os
import time
from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.requests import RecoveryRequest
from pgrecall.app.starting import clear_targets_of
from pgrecall.app.taking_over import (
    TakeOver,
    lift_isolation_of,
    owners,
    push_own_wal,
    record_owner,
    refuse_other_timeline,
)
from pgrecall.errors import PostgresUnreachableError, RecoveryError, UsageError
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.control import read_control
from pgrecall.postgres.recovery import promote, recovery_state, resume
from pgrecall.postgres.running import RunningInstance, running_instance
from pgrecall.repository.identity import is_partial_copy, read_copy_marker
from pgrecall.system.clock import SystemClock

_POLL_SECONDS = 0.05


class RecoveryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far an instance is. ``state``: starting, recovering, paused, open.

    ``replayed_to`` is an LSN; ``target`` the recovery target that is set, as
    PostgreSQL names it. ``restore_id`` is empty unless it is a restored copy.
    ``starting`` and an instance that admits nobody leave what only SQL tells empty.
    """

    target_dir: str
    state: str
    pid: int
    host: str
    port: int
    replayed_to: str = ""
    last_commit_at: datetime | None = None
    timeline: int | None = None
    target: str = ""
    archive_mode: str = ""
    restore_id: str = ""


class RecoveryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``resume`` or ``promote`` will do."""

    status: RecoveryStatus
    action: str
    owner_now: dict[str, str] = {}


class RecoveryResult(msgspec.Struct, frozen=True, kw_only=True):
    """The instance after the act; after a dry run, as it is."""

    status: RecoveryStatus
    take_over: TakeOver | None = None
    next_steps: tuple[str, ...] = ()


def recovery_status(context: RunContext, request: RecoveryRequest) -> RecoveryStatus:
    """What the instance in the target directory does now.

    Raises RecoveryError when none runs there, PostgresError when it cannot be asked.
    """
    return _Instance(context, request).status()


def recovery_resume(context: RunContext, request: RecoveryRequest) -> RecoveryResult:
    """Go on after a pause; at a recovery target this ends recovery and promotes.

    Returns when it goes on, or, at a target, when it is open. Raises RecoveryError
    when it is not paused, ends, or is not open within ``wait_seconds``.
    """
    instance = _Instance(context, request)
    status = instance.status()
    ends = f"recovery ends at {status.target} and the instance opens for writing"
    plan = RecoveryPlan(status=status, action=ends if status.target else "recovery goes on")
    if not context.approve(plan):
        return RecoveryResult(status=status)
    with instance.connect("resuming recovery") as connection:
        resume(connection)
    wanted = ("open",) if status.target else ("open", "recovering")
    status = instance.wait_for(wanted)
    if status.state == "open":
        clear_targets_of(instance.directory)
    return RecoveryResult(status=status, next_steps=_after(status))


def recovery_promote(context: RunContext, request: RecoveryRequest) -> RecoveryResult:
    """End recovery where it is; the instance opens for writing on a new timeline.

    A restored copy goes on without archiving. With ``take_over`` (also after an
    earlier promotion) it becomes the owner of the archive in every repository,
    the WAL it has written is pushed, and after a restart it archives by itself;
    the server that it replaces is refused from then on.
    """
    instance = _Instance(context, request)
    status = instance.status()
    plan = _promotion_plan(context, instance, status, take_over=request.take_over)
    question = "Shall this copy replace the server?" if request.take_over else ""
    if not context.approve(plan, question=question):
        return RecoveryResult(status=status)
    if not (request.take_over and status.state == "open"):
        with instance.connect("promoting") as connection:
            promote(connection, max(1, int(request.wait_seconds)))
    status = instance.wait_for(("open",))
    clear_targets_of(instance.directory)
    if not request.take_over:
        return RecoveryResult(status=status, next_steps=_after(status))
    taken = _take_over(context, instance, status)
    steps = [f"stop the server that was replaced; then: pg_ctl -D {instance.directory} restart"]
    if taken.settings_lifted or status.archive_mode == "off":
        steps.append(
            "after the restart say pgrecall recovery promote --take-over once more: it archives"
            " what was written until then"
        )
    steps.append("take a backup: pgrecall backup")
    return RecoveryResult(status=instance.status(), take_over=taken, next_steps=tuple(steps))


def wait_until_open(context: RunContext, target_dir: str, wait_seconds: float) -> RecoveryStatus:
    """Wait until an instance that runs has ended its recovery; its targets are taken out.

    Raises RecoveryError when it ends, or is not open in time.
    """
    instance = _Instance(context, RecoveryRequest(target_dir=target_dir, wait_seconds=wait_seconds))
    status = instance.wait_for(("open",))
    clear_targets_of(instance.directory)
    return status


class _Instance:
    """The instance of one directory, found anew at every look."""

    def __init__(self, context: RunContext, request: RecoveryRequest) -> None:
        own = context.server.data_directory
        if not request.target_dir and not own:
            raise UsageError(
                "which instance? The server has no data_directory", hint="give --target-dir"
            )
        self.directory = os.path.abspath(request.target_dir or own)
        self._context = context
        self._wait_seconds = request.wait_seconds

    def running(self) -> RunningInstance:
        """Raises RecoveryError when nothing runs, DataDirectoryError when it is no PGDATA."""
        found = running_instance(self.directory)
        if found is None:
            state = read_control(self.directory).state
            raise RecoveryError(
                f"no instance runs on {self.directory} (its pg_control says: {state})",
                hint=f"start it: pg_ctl -D {self.directory} start; its log says why it ended",
            )
        return found

    def connect(self, purpose: str) -> Connection:
        """A session with it; raises RecoveryError when it admits nobody."""
        found = self.running()
        if found.word not in {"ready", ""}:
            raise RecoveryError(
                f"the instance of {self.directory} admits nobody now (it is {found.word})",
                hint="wait until it is consistent; with hot_standby = off, use pg_ctl promote",
            )
        server = self._context.server.replace(
            data_directory=self.directory, host=found.host, port=found.port
        )
        return connect(
            server,
            application_name=f"pgrecall {purpose}",
            purpose=purpose,
            environment=self._context.environment,
        )

    def status(self) -> RecoveryStatus:
        """What it does now."""
        found = self.running()
        status = RecoveryStatus(
            target_dir=self.directory,
            state="recovering" if found.word == "standby" else found.word,
            pid=found.pid,
            host=found.host,
            port=found.port,
            restore_id=read_copy_marker(self.directory) or "",
        )
        if found.word not in {"ready", ""}:
            return status
        with self.connect("asking for the state of recovery") as connection:
            state = recovery_state(connection)
            target = _target(connection) if state.is_in_recovery else ""
            archive_mode = connection.value("SELECT pg_catalog.current_setting('archive_mode')")
        word = "paused" if state.is_paused else "recovering" if state.is_in_recovery else "open"
        return msgspec.structs.replace(
            status,
            state=word,
            replayed_to=str(state.replayed_to or ""),
            last_commit_at=state.last_commit_at,
            timeline=state.timeline,
            target=target,
            archive_mode=archive_mode,
        )

    def wait_for(self, states: tuple[str, ...]) -> RecoveryStatus:
        """Poll until it is in one of the states; raises RecoveryError at the deadline."""
        deadline = time.monotonic() + self._wait_seconds
        status: RecoveryStatus | None = None
        while True:
            try:
                status = self.status()
            except PostgresUnreachableError:
                status = None  # between two states; running() tells when it has ended
            if status is not None and status.state in states:
                return status
            if time.monotonic() > deadline:
                shown = status.state if status is not None else "not to be reached"
                raise RecoveryError(
                    f"the instance of {self.directory} is {shown} after"
                    f" {self._wait_seconds:g} seconds",
                    hint="pgrecall recovery status shows it; wait longer with --wait-seconds",
                )
            time.sleep(_POLL_SECONDS)


def _target(connection: Connection) -> str:
    rows = connection.rows(
        "SELECT name, setting FROM pg_catalog.pg_settings WHERE setting <> '' AND name IN"
        " ('recovery_target', 'recovery_target_name', 'recovery_target_time',"
        " 'recovery_target_xid', 'recovery_target_lsn')"
    )
    return ", ".join(f"{name} = {setting}" for name, setting in rows)


def _promotion_plan(
    context: RunContext, instance: _Instance, status: RecoveryStatus, *, take_over: bool
) -> RecoveryPlan:
    if not take_over:
        return RecoveryPlan(status=status, action="recovery ends; the instance opens for writing")
    if not status.restore_id:
        raise RecoveryError(
            f"{instance.directory} is no copy that pgrecall restored",
            hint="leave --take-over out: the original server owns the archive already",
        )
    if is_partial_copy(instance.directory):
        raise RecoveryError(
            f"{instance.directory} was restored with some of its databases only",
            hint="restore all of it, and let that take over",
        )
    return RecoveryPlan(
        status=status,
        action=f"the copy {status.restore_id} opens for writing and owns the archive;"
        " the server that writes it now is refused from then on. It archives after a restart",
        owner_now=owners(context),
    )


def _take_over(context: RunContext, instance: _Instance, status: RecoveryStatus) -> TakeOver:
    now = SystemClock().now()
    timeline = status.timeline or 0
    system_identifier = read_control(instance.directory).system_identifier
    refuse_other_timeline(context, status.restore_id, timeline, system_identifier)
    names, findings = record_owner(
        context, restore_id=status.restore_id, timeline=timeline, now=now
    )
    lifted = lift_isolation_of(instance.directory, now)
    with instance.connect("asking where it writes") as connection:
        current = connection.value(
            "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())"
        )
    pushed = push_own_wal(context, instance.directory, timeline, current)
    return TakeOver(
        restore_id=status.restore_id,
        timeline=timeline,
        repositories=names,
        pushed=pushed,
        settings_lifted=lifted,
        findings=findings,
    )


def _after(status: RecoveryStatus) -> tuple[str, ...]:
    if status.state != "open" or not status.restore_id:
        return ()
    return (
        "the copy does not archive; to let it replace the server:"
        f" pgrecall recovery promote --target-dir {status.target_dir} --take-over",
    )
