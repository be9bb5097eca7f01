"""``wal enable --undo``: everything that was changed goes back to what it was, and nothing else."""

from __future__ import annotations

import os

import msgspec

from pgrecall.app.capturing_unasked import capture_unasked
from pgrecall.app.context import RunContext
from pgrecall.app.enabling_places import (
    local_data_directory,
    open_all,
    open_changing_session,
    recorded_changes,
    restart_server,
)
from pgrecall.app.requests import EnableRequest
from pgrecall.errors import (
    ArchivingRefusedError,
    PostgresError,
    PostgresUnreachableError,
    SlotError,
)
from pgrecall.model.findings import Finding, worst
from pgrecall.model.runs import RunFacts
from pgrecall.postgres import hba
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.facts import ServerFacts, server_facts
from pgrecall.postgres.parameters import ParameterFacts, parameter_facts, reload, set_parameter
from pgrecall.postgres.restarting import restart_problem
from pgrecall.postgres.roles import role_facts, take, uses_of
from pgrecall.postgres.slots import drop_idle_slot, slot_state
from pgrecall.repository.enablements import (
    Change,
    SettingChange,
    merged,
    record_undone,
)
from pgrecall.system.clock import SystemClock
from pgrecall.system.faults import reached

_SOMEBODY = "somebody"


class UndoStep(msgspec.Struct, frozen=True):
    """One thing: ``doing`` is back, drop, revoke, take out, or leave; ``to`` what it will be."""

    what: str
    doing: str
    now: str
    to: str
    why: str


class UndoPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is going to be taken back; ``changes`` are the runs of wal enable that it undoes."""

    server: str
    changes: tuple[str, ...]
    steps: tuple[UndoStep, ...] = ()
    restart_for: tuple[str, ...] = ()
    restarts: bool = False
    findings: tuple[Finding, ...] = ()


class UndoResult(msgspec.Struct, frozen=True, kw_only=True):
    """``outcome``: undone, nothing to undo, nothing was changed.

    ``capture_id``: the capture of before.
    """

    plan: UndoPlan
    outcome: str
    done: tuple[str, ...] = ()
    pending_restart: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    capture_id: str = ""

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=worst(list(self.findings)), capture_id=self.capture_id)


def run_undo(context: RunContext, request: EnableRequest) -> UndoResult:
    """Show what goes back, and do it when it is approved.

    What somebody else has changed since is left as it is, and said. Repositories
    that cannot be read do not keep the server from being put back, as long as one
    tells what was changed. Raises StoreError and its kinds when none does,
    PostgresError and its kinds, ArchivingRefusedError, and ServerBeingChangedError while somebody
    else is at it.
    """
    name = context.server.name
    opened = open_all(context, needs_required=False)
    with open_changing_session(context, request, "undoing wal enable") as connection:
        facts = server_facts(connection)
        changes = recorded_changes(context, opened, facts)
        if not changes:
            plan = UndoPlan(server=name, changes=(), findings=tuple(opened.findings()))
            context.approve(plan)
            return UndoResult(plan=plan, outcome="nothing to undo")
        undoing = _Undoing(context, request, connection, facts, changes)
        plan = undoing.plan(opened.findings())
        question = f"Turn archiving of the server {name!r} back to what it was?"
        if not context.approve(plan, question="" if request.dry_run else question):
            return UndoResult(plan=plan, outcome="nothing was changed")
        before = capture_unasked(context, connection=connection)
        reached("enable.undoing")
        pending = undoing.run()
        # Before a restart, with which the session ends, and somebody else may begin.
        ids = [change.change_id for change in changes]
        now = SystemClock().now()
        for one in opened.repositories:
            record_undone(one.store, name, ids, now)
        if plan.restarts and pending:
            undoing.restart()
            pending = ()
    return UndoResult(
        plan=plan,
        outcome="undone",
        done=tuple(undoing.done),
        pending_restart=pending,
        findings=(*before.findings, *undoing.findings),
        capture_id=before.capture_id,
    )


class _Undoing:
    """One undoing: looks at each thing, then puts it back. ``done`` and ``findings`` grow."""

    def __init__(
        self,
        context: RunContext,
        request: EnableRequest,
        connection: Connection,
        facts: ServerFacts,
        changes: list[Change],
    ) -> None:
        self._context = context
        self._request = request
        self._connection = connection
        self._facts = facts
        self._changes = changes
        self._settings = merged(changes)
        self._parameters: ParameterFacts = parameter_facts(
            connection, [*(one.name for one in self._settings), "logging_collector"]
        )
        self._pgdata = local_data_directory(context, facts)
        self.done: list[str] = []
        self.findings: list[Finding] = []

    # --- the plan -----------------------------------------------------------------------

    def plan(self, findings: list[Finding]) -> UndoPlan:
        """Everything that goes back. Raises ArchivingRefusedError when it cannot from here."""
        if self._settings and not (self._parameters.has_files and self._parameters.allows_alter):
            raise ArchivingRefusedError(
                "this role may not change the server's settings, or allow_alter_system is off",
                hint="say --admin with a superuser; lines that were pasted by hand go by hand",
            )
        steps = [self._setting_step(one) for one in self._settings]
        restart_for = tuple(
            one.name
            for one, step in zip(self._settings, steps, strict=True)
            if step.doing == "back" and self._parameters.by_name[one.name].needs_restart
        )
        for change in self._changes:
            steps += self._other_steps(change)
        restarts = self._request.restart and bool(restart_for)
        collects = self._parameters.by_name["logging_collector"].value == "on"
        problem = restart_problem(self._pgdata, has_collector=collects) if restarts else ""
        if problem:
            raise ArchivingRefusedError(
                f"the server cannot be restarted from here: {problem}",
                hint="leave --restart out, and restart it by what started it",
            )
        if any(one.name == "archive_command" for one in self._settings):
            findings.append(
                Finding(
                    severity="warn",
                    code="archiving-ends",
                    message="the archive ends here: later moments cannot be reached any more",
                    hint="backups and WAL that are stored stay, and can be restored",
                )
            )
        return UndoPlan(
            server=self._context.server.name,
            changes=tuple(change.change_id for change in self._changes),
            steps=tuple(steps),
            restart_for=restart_for,
            restarts=restarts,
            findings=tuple(findings),
        )

    def _setting_step(self, change: SettingChange) -> UndoStep:
        present = self._parameters.by_name.get(change.name)
        now = present.auto_value if present is not None else None
        to = "(not set)" if change.before is None else change.before
        shown = "(not set)" if now is None else now
        if now == change.before:
            return UndoStep(change.name, "leave", shown, to, "it is that already")
        if now != change.after:
            return UndoStep(change.name, "leave", shown, shown, f"{_SOMEBODY} changed it since")
        if reason := self._needed_by(change.name):
            return UndoStep(change.name, "leave", shown, shown, reason)
        return UndoStep(change.name, "back", shown, to, "what it was before wal enable")

    def _needed_by(self, name: str) -> str:
        """Why the server would not start again with what the setting was before; mostly empty.

        wal_level was minimal, and max_replication_slots 0, or they would not have been set.
        """
        if name not in {"wal_level", "max_replication_slots"}:
            return ""
        dropped = {change.slot for change in self._changes}
        slots = self._connection.rows(
            "SELECT slot_name, active FROM pg_catalog.pg_replication_slots ORDER BY 1"
        )
        staying = [name for name, is_active in slots if is_active or name not in dropped]
        if staying:
            return f"replication slots need it: {', '.join(staying)}"
        for one in self._settings:
            if name == "wal_level" and one.name in {"archive_mode", "max_wal_senders"}:
                step = self._setting_step(one)
                if step.why.startswith(_SOMEBODY):
                    return f"{one.name}, which somebody changed since, needs it"
        return ""

    def _other_steps(self, change: Change) -> list[UndoStep]:
        steps = []
        if change.slot:
            what, slot = f"slot {change.slot!r}", slot_state(self._connection, change.slot)
            if slot is None:
                steps.append(UndoStep(what, "leave", "absent", "absent", "it is gone"))
            elif slot.is_active:
                steps.append(UndoStep(what, "leave", "in use", "in use", "a receiver uses it"))
            else:
                steps.append(UndoStep(what, "drop", slot.kind, "absent", "wal enable made it"))
        if change.role is not None:
            steps.append(self._role_step(change))
        for file in change.files:
            steps.append(
                UndoStep(file.path, "take out", "lines at the top", "as before", "wal enable's own")
            )
        return steps

    def _role_step(self, change: Change) -> UndoStep:
        assert change.role is not None
        name = change.role.name
        what, role = f"role {name!r}", role_facts(self._connection, name)
        if not role.exists:
            return UndoStep(what, "leave", "absent", "absent", "it is gone")
        if not change.role.makes:
            return UndoStep(what, "revoke", "there", "there", "only what wal enable granted")
        if change.change_id not in role.comment:
            return UndoStep(what, "leave", "there", "there", "it is not the one that was made")
        uses = uses_of(self._connection, name)
        if uses:
            return UndoStep(what, "leave", "there", "there", uses)
        return UndoStep(what, "drop", "there", "absent", "wal enable made it")

    # --- the act --------------------------------------------------------------------------

    def run(self) -> tuple[str, ...]:
        """Settings, slot, role, files, reload; returns what waits for a restart."""
        changed = False
        for one in self._settings:
            step = self._setting_step(one)
            if step.doing == "back":
                set_parameter(self._connection, one.name, one.before)
                changed = True
                self.done.append(f"{one.name}: back to {step.to}")
            elif (
                step.now == step.to and one.before != self._parameters.by_name[one.name].auto_value
            ):
                self._left(one.name, f"it is {step.now!r} now: {step.why}")
        for change in reversed(self._changes):
            changed = self._files(change) or changed
            self._slot_and_role(change)
        if changed:
            reload(self._connection)
        now = parameter_facts(self._connection, [one.name for one in self._settings]).by_name
        return tuple(name for name, parameter in now.items() if parameter.is_pending)

    def restart(self) -> None:
        """Restart the server; the session ends with it, not before."""
        restart_server(self._context, self._pgdata, self._facts.major)
        self.done.append("restarted the server")

    def _slot_and_role(self, change: Change) -> None:
        for step in self._other_steps(change):
            if step.doing == "leave" and step.now != "absent":
                self._left(step.what, step.why)
        try:
            if change.slot and _does(self._other_steps(change), f"slot {change.slot!r}"):
                drop_idle_slot(self._connection, change.slot)
                self.done.append(f"dropped the slot {change.slot!r}")
            if change.role is not None and self._role_step(change).doing != "leave":
                take(self._connection, change.role)
                done = "dropped" if change.role.makes else "took the rights from"
                self.done.append(f"{done} the role {change.role.name!r}")
        except PostgresUnreachableError:
            raise
        except (PostgresError, SlotError) as error:
            self._left("slot and role", error.message)

    def _files(self, change: Change) -> bool:
        """Take the lines out again; True when a file was changed."""
        changed = False
        for file in change.files:
            if not os.path.exists(file.path):
                self._left(file.path, "the file is not on this host")
                continue
            text = hba.read_file(file.path).decode("utf-8", "surrogateescape")
            without = hba.without_block(text, change.change_id)
            if without == text:
                continue
            hba.replace_file(file.path, without.encode("utf-8", "surrogateescape"))
            self.done.append(f"took the lines out of {file.path}")
            changed = True
        return changed

    def _left(self, subject: str, why: str) -> None:
        self.findings.append(
            Finding(
                severity="warn",
                code="left-as-it-is",
                subject=subject,
                message=f"left as it is: {why}",
                hint="change it by hand, if it is not to stay",
            )
        )


def _does(steps: list[UndoStep], what: str) -> bool:
    return any(step.what == what and step.doing != "leave" for step in steps)
