"""``undo`` of ``captures restore``: what it has changed goes back; others' changes stay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from pgrecall.app.capture_restoring import RestoredParts, restored_of, session_in
from pgrecall.app.capturing import capture_session
from pgrecall.app.capturing_unasked import capture_unasked
from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.rule_files import digest_of, replace_rules
from pgrecall.errors import PgrecallError
from pgrecall.model.capture_restore import auto_values
from pgrecall.model.captures import CaptureFacts
from pgrecall.model.findings import Finding, worst
from pgrecall.model.ids import RUN, kind_of
from pgrecall.model.runs import RunFacts, RunRecord
from pgrecall.postgres import capture_restoring as server_side
from pgrecall.postgres.change_lock import take_change_lock
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.hba import read_file
from pgrecall.postgres.parameters import reload
from pgrecall.postgres.slots import drop_idle_slot
from pgrecall.repository.capture_log import CaptureLog
from pgrecall.repository.journal import Journal


class CaptureUndoPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``undo`` takes back: settings to what they were, files, and what was made is dropped.

    What somebody else has changed since the run is left as it is.
    """

    run_id: str
    server: str
    back_to: str
    settings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()


class CaptureUndoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``undo`` of ``captures restore`` prints."""

    plan: CaptureUndoPlan
    is_undone: bool = False
    capture_id: str = ""
    done: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=worst(list(self.findings)), capture_id=self.capture_id)


def restoring_run(context: RunContext, run_id: str) -> RunRecord | None:
    """The record of a run of captures restore that has changed something; None for any other."""
    if kind_of(run_id) != RUN:
        return None
    record = Journal(main_repository(context).store, context.server.name).get(run_id)
    return record if record is not None and restored_of(record.kept) is not None else None


def undo_capture_restore(context: RunContext, record: RunRecord) -> CaptureUndoResult:
    """Take the run back, as far as nobody changed the same since, which findings say.

    Raises PostgresError and its kinds, StoreError, ServerBeingChangedError.
    """
    made = restored_of(record.kept)
    assert made is not None
    opened = main_repository(context)
    plan = CaptureUndoPlan(
        run_id=record.run_id,
        server=context.server.name,
        back_to=made.before_id,
        settings=made.settings,
        files=tuple(path for path, _, _ in made.files),
        drops=(
            *(f"subscription {name} in {database}" for database, name in made.subscriptions),
            *(f"slot {name}" for name in made.slots),
            *(f"tablespace {name}" for name in made.tablespaces),
        ),
    )
    with capture_session(context) as connection:
        take_change_lock(connection)
        undoing = _Undoing(context, opened, connection, made)
        question = f"Shall the server {context.server.name!r} be as it was before that run?"
        if not context.approve(plan, question=question):
            return CaptureUndoResult(plan=plan)
        before = capture_unasked(context, opened, connection)
        undoing.run()
    return CaptureUndoResult(
        plan=plan,
        is_undone=True,
        capture_id=before.capture_id,
        done=tuple(undoing.done),
        findings=(*before.findings, *undoing.findings),
    )


class _Undoing:
    """Each thing for itself: what cannot go back is a finding. ``done`` and ``findings`` grow."""

    def __init__(
        self,
        context: RunContext,
        opened: OpenedRepository,
        connection: Connection,
        made: RestoredParts,
    ) -> None:
        log = CaptureLog(opened.store, context.server.name)
        self._context = context
        self._connection = connection
        self._made = made
        self._target: CaptureFacts = log.get(made.capture_id).facts
        self._before: CaptureFacts = log.get(made.before_id).facts
        self.done: list[str] = []
        self.findings: list[Finding] = []

    def run(self) -> None:
        """In the other order: what was made, settings, files."""
        for database, name in self._made.subscriptions:
            self._try(f"subscription {name}", partial(self._subscription, database, name))
        for name in self._made.slots:
            self._try(f"slot {name}", partial(self._slot, name))
        for name in self._made.tablespaces:
            self._try(f"tablespace {name}", partial(self._tablespace, name))
        self._settings()
        for path, kept_as, digest in self._made.files:
            self._try(path, partial(self._file, path, kept_as, digest))

    def _try(self, what: str, act: Callable[[], str]) -> None:
        """Do it; ``act`` says why it did not, or nothing."""
        try:
            problem = act()
        except PgrecallError as error:
            problem = error.message
        if problem:
            self.findings.append(
                Finding(
                    "warn",
                    "left-as-it-is",
                    f"left as it is: {problem}",
                    subject=what,
                    hint="change it by hand, if it is not to stay",
                )
            )
        else:
            self.done.append(f"{what}: as before")

    def _subscription(self, database: str, name: str) -> str:
        with session_in(self._context, database) as session:
            is_dropped = server_side.drop_subscription(session, name)
        return "" if is_dropped else "it is enabled, or gone"

    def _slot(self, name: str) -> str:
        drop_idle_slot(self._connection, name)
        return ""

    def _tablespace(self, name: str) -> str:
        server_side.drop_tablespace(self._connection, name)
        return ""

    def _settings(self) -> None:
        names = self._made.settings
        if not names:
            return
        known = server_side.known_settings(self._connection, names)
        before, wanted = auto_values(self._before), {
            one.name: one.value for one in self._target.settings
        }  # fmt: skip

        def back(name: str) -> str:
            now, was = known[name].auto_value, before.get(name)
            then = (None, wanted.get(name, known[name].default))
            if not any(server_side.is_value(name, now, one) for one in then):
                return "somebody changed it since"
            server_side.alter_system(self._connection, name, was)
            return ""

        for name in names:
            self._try(name, partial(back, name))
        reload(self._connection)

    def _file(self, path: str, kept_as: str, digest: str) -> str:
        if digest_of(read_file(path)) != digest:
            return "somebody changed it since"
        replace_rules(self._context, self._connection, path, read_file(kept_as), keep_as="")
        return ""
