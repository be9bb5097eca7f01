"""``captures restore``: bring settings, rules, slots and the like back to what a capture holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import groupby

import msgspec

from pgrecall.app.capture_diffing import not_compared
from pgrecall.app.capturing import capture_into, capture_session, named_capture, observe
from pgrecall.app.context import RunContext
from pgrecall.app.enabling_places import local_data_directory
from pgrecall.app.opened import main_repository
from pgrecall.app.rule_files import replace_rules
from pgrecall.errors import PgrecallError
from pgrecall.further_errors import CaptureRestoreError
from pgrecall.model.capture_diff import Difference, difference
from pgrecall.model.capture_restore import (
    KnownSetting,
    Part,
    RestorePlace,
    RestoreStep,
    content_of,
    plan_steps,
)
from pgrecall.model.captures import CaptureFacts, CaptureRecord
from pgrecall.model.findings import Finding, worst
from pgrecall.model.runs import RunFacts
from pgrecall.postgres import capture_restoring as server_side
from pgrecall.postgres.change_lock import take_change_lock
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.facts import server_facts
from pgrecall.postgres.hba import hba_files
from pgrecall.postgres.parameters import reload
from pgrecall.repository.capture_log import CaptureLog
from pgrecall.system.faults import reached


class CaptureRestorePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What will be done. ``differences``: of the parts, from the server as it is to the capture.

    ``restart_for``: settings that count after a restart only, which is left to you.
    """

    server: str
    capture_id: str
    captured_at: datetime
    parts: tuple[Part, ...]
    differences: tuple[Difference, ...] = ()
    steps: tuple[RestoreStep, ...] = ()
    restart_for: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def acts(self) -> bool:
        """Whether anything changes at all."""
        return any(step.action != "leave" for step in self.steps)


class CaptureRestoreResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``captures restore`` prints. ``outcome``: restored, nothing to do, stopped in the
    middle, nothing was changed. ``before_id``: the capture of before, to which undo goes back.
    """

    plan: CaptureRestorePlan
    outcome: str
    run_id: str = ""
    before_id: str = ""
    done: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    pending_restart: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it, by which it is undone."""
        return RunFacts(
            outcome=worst(list(self.findings)), capture_id=self.before_id, kept=self.kept
        )


class RestoredParts(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has changed, kept in its record: names, and where old files are; no values."""

    capture_id: str
    before_id: str
    settings: tuple[str, ...] = ()
    files: tuple[tuple[str, str, str], ...] = ()
    tablespaces: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    subscriptions: tuple[tuple[str, str], ...] = ()


def run_capture_restore(
    context: RunContext, name: str, parts: Sequence[Part]
) -> CaptureRestoreResult:
    """Bring ``parts`` back to what the capture ``name`` (as for named_capture) holds.

    The server is captured before anything is changed. What fails in the middle ends the run with
    a finding, and what was done stays until it is undone. Raises UsageError, PostgresError and
    its kinds, StoreError, IdentityError, CaptureRestoreError, ServerBeingChangedError: then
    nothing was changed.
    """
    opened = main_repository(context)
    log = CaptureLog(opened.store, context.server.name)
    capture = named_capture(log, name)
    with capture_session(context) as connection:
        take_change_lock(connection)
        live = observe(context, opened, connection)
        plan, known = _plan(context, connection, capture, live, parts)
        if not plan.acts:
            context.approve(plan)
            return CaptureRestoreResult(plan=plan, outcome="nothing to do", findings=_left(plan))
        question = f"Change the server {context.server.name!r} so?"
        if not context.approve(plan, question=question):
            return CaptureRestoreResult(plan=plan, outcome="nothing was changed")
        restoring = _Restoring(context, connection, capture, plan, known)
        before = capture_into(context, opened, connection)
        reached("capture.restoring")
        return restoring.run(before.capture_id)


def _plan(
    context: RunContext,
    connection: Connection,
    capture: CaptureRecord,
    live: CaptureFacts,
    parts: Sequence[Part],
) -> tuple[CaptureRestorePlan, dict[str, KnownSetting]]:
    known: dict[str, KnownSetting] = {}
    if "settings" in parts:
        _require_auto_conf(live)
        named = {one.name for facts in (capture.facts, live) for one in facts.settings}
        known = server_side.known_settings(connection, named)
    files = hba_files(connection)
    place = RestorePlace(
        is_here=bool(local_data_directory(context, server_facts(connection))),
        files={"hba": files.hba, "ident": files.ident},
        settings=known,
        directories={
            one.location: server_side.directory_problem(connection, one.location)
            for one in capture.facts.tablespaces
            if "tablespaces" in parts
        },
    )
    found = difference(live, capture.facts)
    steps = plan_steps(capture.facts, live, place, parts)
    plan = CaptureRestorePlan(
        server=context.server.name,
        capture_id=capture.capture_id,
        captured_at=capture.captured_at,
        parts=tuple(parts),
        differences=tuple(one for one in found.differences if one.kind in parts),
        steps=steps,
        restart_for=tuple(
            step.name
            for step in steps
            if step.action in {"set", "reset"} and known[step.name].needs_restart
        ),
        findings=tuple(
            not_compared(words) for words in found.unknown if words.partition(":")[0] in parts
        ),
    )
    return plan, known


def _require_auto_conf(live: CaptureFacts) -> None:
    """Undo takes the settings from the capture of before: it must hold the file."""
    unread = [
        one
        for one in live.findings
        if one.code == "capture-file" or (one.code == "capture-rights" and one.subject == "files")
    ]
    if unread:
        raise CaptureRestoreError(
            "the configuration files cannot be read, so that settings could not be brought back"
            " to what they are now",
            hint="use a role that may read them: pgrecall capture says what to grant",
        )


class _Restoring:
    """One approved run; ``done`` and ``made`` grow."""

    def __init__(
        self,
        context: RunContext,
        connection: Connection,
        capture: CaptureRecord,
        plan: CaptureRestorePlan,
        known: dict[str, KnownSetting],
    ) -> None:
        self._context = context
        self._connection = connection
        self._facts = capture.facts
        self._plan = plan
        self._known = known
        self._done: list[str] = []
        self._made = RestoredParts(capture_id=capture.capture_id, before_id="")

    def run(self, before_id: str) -> CaptureRestoreResult:
        """Carry the steps out in their order; what fails ends it, and is a finding."""
        self._made = msgspec.structs.replace(self._made, before_id=before_id)
        failed: tuple[Finding, ...] = ()
        doing = ""
        try:
            for part, steps in groupby(self._plan.steps, key=lambda step: step.part):
                for step in steps:
                    if step.action == "leave":
                        continue
                    doing = f"{part} {step.name}"
                    self._act(step)
                    reached(f"capture.restored.{part}")
                if part == "settings" and self._made.settings:
                    doing = "reload"
                    reload(self._connection)
        except PgrecallError as error:
            failed = (Finding("fail", error.code, error.message, subject=doing, hint=error.hint),)
        run_id = self._context.run_id
        undo = (f"to take it back: pgrecall undo {run_id}",) if self._done else ()
        pending = tuple(one for one in self._plan.restart_for if one in self._made.settings)
        restart = (f"restart the server, for {', '.join(pending)}",) if pending else ()
        return CaptureRestoreResult(
            plan=self._plan,
            outcome="stopped in the middle" if failed else "restored",
            run_id=run_id,
            before_id=before_id,
            done=tuple(self._done),
            kept=(restored_record(self._made),) if self._done else (),
            pending_restart=pending,
            findings=(*failed, *_left(self._plan)),
            next_steps=(*restart, *self._after(), *undo),
        )

    def _act(self, step: RestoreStep) -> None:
        acts: dict[str, Callable[[RestoreStep], None]] = {
            "hba": self._file,
            "ident": self._file,
            "settings": self._setting,
            "tablespaces": self._tablespace,
            "slots": self._slot,
            "subscriptions": self._subscription,
        }
        acts[step.part](step)

    def _file(self, step: RestoreStep) -> None:
        wanted = content_of(self._facts, step.part)
        assert wanted is not None
        kept_as = f"{step.name}.{self._context.run_id}"
        digest = replace_rules(
            self._context, self._connection, step.name, wanted.encode(), keep_as=kept_as
        )
        self._add(files=(step.name, kept_as, digest))
        self._done.append(f"wrote {step.name}, and reloaded; the old one is {kept_as}")

    def _setting(self, step: RestoreStep) -> None:
        value = None if step.action == "reset" else self._wanted(step.name)
        server_side.alter_system(self._connection, step.name, value)
        self._add(settings=step.name)
        to = "RESET" if value is None else f"SET to {step.after}"
        self._done.append(f"{step.name}: ALTER SYSTEM {to}")

    def _wanted(self, name: str) -> str | None:
        for one in self._facts.settings:
            if one.name == name:
                return one.value
        return self._known[name].default

    def _tablespace(self, step: RestoreStep) -> None:
        (space,) = [one for one in self._facts.tablespaces if one.name == step.name]
        server_side.create_tablespace(self._connection, space)
        self._add(tablespaces=step.name)
        self._done.append(f"made the tablespace {step.name!r}")

    def _slot(self, step: RestoreStep) -> None:
        (slot,) = [one for one in self._facts.slots if one.name == step.name]
        with session_in(self._context, slot.database) as session:
            server_side.create_slot(session, slot)
        self._add(slots=step.name)
        self._done.append(f"made the {slot.kind} slot {step.name!r}")

    def _subscription(self, step: RestoreStep) -> None:
        (one,) = [
            one for one in self._facts.subscriptions if f"{one.database} {one.name}" == step.name
        ]
        with session_in(self._context, one.database) as session:
            server_side.create_subscription(session, one)
        self._add(subscriptions=(one.database, one.name))
        self._done.append(f"made the subscription {one.name!r} in {one.database!r}, disabled")

    def _add(self, **more: object) -> None:
        grown = {name: (*getattr(self._made, name), value) for name, value in more.items()}
        self._made = msgspec.structs.replace(self._made, **grown)

    def _after(self) -> tuple[str, ...]:
        if not self._made.subscriptions:
            return ()
        return (
            "in each database: ALTER SUBSCRIPTION ... ENABLE, then ... REFRESH PUBLICATION WITH"
            " (copy_data = false), when its slot is there at the publisher",
        )


def session_in(context: RunContext, database: str) -> Connection:
    """A session in another database of the server; empty: the usual one. Raises PostgresError."""
    server = context.server
    return connect(
        server.replace(database=database) if database else server,
        application_name="pgrecall capture",
        purpose="restoring a capture",
        environment=context.environment,
    )


def restored_record(made: RestoredParts) -> str:
    """For RunFacts.kept: what restored_of reads."""
    return json.dumps({"restored_capture": msgspec.to_builtins(made)})


def restored_of(kept: Sequence[str]) -> RestoredParts | None:
    """What a run of captures restore has kept in its record; None for any other run."""
    for text in kept:
        try:
            told = json.loads(text)
        except ValueError:
            continue
        if isinstance(told, dict) and "restored_capture" in told:
            return msgspec.convert(told["restored_capture"], RestoredParts)
    return None


def _left(plan: CaptureRestorePlan) -> tuple[Finding, ...]:
    """A warning for each thing that differs and stays."""
    return tuple(
        Finding(
            "warn",
            "left-as-it-is",
            f"left as it is: {step.why}",
            subject=f"{step.part} {step.name}",
            hint="pgrecall captures show has what it was",
        )
        for step in plan.steps
        if step.action == "leave"
    )
