"""``wal enable``: turn archiving on, after it was recorded how things were before."""

from __future__ import annotations

import time

import msgspec

from pgrecall.app.capturing_unasked import capture_unasked
from pgrecall.app.context import RunContext
from pgrecall.app.enabling_places import (
    OpenedAll,
    administrator,
    open_all,
    open_changing_session,
    recorded_changes,
    require_primary,
    restart_server,
)
from pgrecall.app.enabling_prepared import (
    EnablePlan,
    Prepared,
    prepare,
    refuse,
    require_known,
    starts_archiving,
)
from pgrecall.app.enabling_probe import may_probe, probe_push
from pgrecall.app.requests import EnableRequest
from pgrecall.errors import (
    ArchivingRefusedError,
    PgrecallError,
    PostgresRightsError,
    PostgresUnreachableError,
    ServerBeingChangedError,
)
from pgrecall.model.findings import Finding, worst
from pgrecall.model.ids import CHANGE, new_id
from pgrecall.model.runs import RunFacts
from pgrecall.postgres import hba
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.facts import server_facts
from pgrecall.postgres.parameters import parameter_facts, reload, set_parameter
from pgrecall.postgres.roles import give
from pgrecall.postgres.slots import make_slot
from pgrecall.repository.enablements import Change, FileChange, SettingChange, record_change
from pgrecall.settings import resolve_secret
from pgrecall.system.clock import SystemClock
from pgrecall.system.faults import reached

_ADMISSION_SECONDS = 5.0
_POLL_SECONDS = 0.05


class EnableResult(msgspec.Struct, frozen=True, kw_only=True):
    """``outcome``: enabled, nothing to do, by hand, nothing was changed.

    ``change_id`` names the record that --undo goes by, ``capture_id`` the capture of before.
    ``pending_restart``: settings that do not count before a restart. ``next_steps`` are
    sentences and lines to paste.
    """

    plan: EnablePlan
    outcome: str
    change_id: str = ""
    capture_id: str = ""
    done: tuple[str, ...] = ()
    pending_restart: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=worst(list(self.findings)), capture_id=self.capture_id)


def run_enable(context: RunContext, request: EnableRequest) -> EnableResult:
    """Show the plan, and carry it out when it is approved.

    What was there is recorded in every repository first, durably. A run that ends
    in the middle can be repeated, or undone. Raises ArchivingRefusedError (a standby,
    a foreign archive_command, archive_library, a failing push), IdentityError,
    NotOwnerError, StoreError, RepositoryError, PostgresError and its kinds, and
    ServerBeingChangedError while somebody else is at it.
    """
    opened = open_all(context, needs_required=True)
    with open_changing_session(context, request, "enabling archiving") as connection:
        facts = server_facts(connection)
        require_primary(context.server.name, facts)
        require_known(context, opened, facts)
        prepared = prepare(context, request, connection, facts)
        plan = msgspec.structs.replace(
            prepared.plan, findings=(*prepared.plan.findings, *opened.findings())
        )
        prepared = msgspec.structs.replace(prepared, plan=plan)
        if not prepared.acts:
            context.approve(plan)
            refuse(plan)
            outcome = "by hand" if plan.by_hand else "nothing to do"
            return EnableResult(plan=plan, outcome=outcome, next_steps=_after(prepared, request))
        if request.dry_run:
            context.approve(plan)
            refuse(plan)
            return EnableResult(plan=plan, outcome="nothing was changed")
        refuse(plan)
        if not context.approve(plan, question=f"Change the server {context.server.name!r} so?"):
            return EnableResult(plan=plan, outcome="nothing was changed")
        password = resolve_secret(request.role_password, context.environment)
        before = capture_unasked(context, connection=connection)
        enabling = _Enabling(context, request, prepared, connection, opened, password=password)
        enabling.record()
        try:
            result = enabling.run()
            return msgspec.structs.replace(
                result,
                capture_id=before.capture_id,
                findings=(*before.findings, *result.findings),
            )
        except PgrecallError as error:
            error.hint = f"{error.hint}. Then the same command once more, or --undo".lstrip(". ")
            raise
        finally:
            enabling.close()


class _Enabling:
    """One approved run; ``done`` grows."""

    def __init__(
        self,
        context: RunContext,
        request: EnableRequest,
        prepared: Prepared,
        connection: Connection,
        opened: OpenedAll,
        *,
        password: str,
    ) -> None:
        self._context = context
        self._request = request
        self._prepared = prepared
        self._connection = connection
        self._password = password
        self._opened = opened
        self._recorded: frozenset[str] = frozenset()
        self._change_id = new_id(CHANGE, SystemClock().now())
        self.done: list[str] = []
        self.findings: list[Finding] = []

    def run(self) -> EnableResult:
        """Probe, role, slot, files, settings, restart; then look whether it counts."""
        decision, plan = self._prepared.decision, self._prepared.plan
        reached("enable.recorded")
        if starts_archiving(decision) and may_probe(self._prepared.pgdata):
            name = probe_push(self._connection, self._prepared.command, self._prepared.pgdata)
            self.done.append(f"archived {name} by the new archive_command, to try it")
        reached("enable.probed")
        self._role()
        is_slot_left = decision.makes_slot and not self._slot()
        if plan.writes_hba:
            self._admit()
        for name, value in decision.settings:
            set_parameter(self._connection, name, value)
            reached(f"enable.set.{name}")
            self.done.append(f"ALTER SYSTEM SET {name} = {value!r}")
        if decision.settings:
            reload(self._connection)
        pending = decision.restart_for
        if plan.restarts:
            pending = ()
            self._restart(is_slot_left=is_slot_left)
            is_slot_left = False
        self._verify(pending)
        self._look_whether_admitted()
        return EnableResult(
            plan=plan,
            outcome="enabled",
            change_id=self._change_id,
            done=tuple(self.done),
            pending_restart=pending,
            findings=tuple(self.findings),
            next_steps=_after(
                self._prepared, self._request, pending=pending, is_slot_left=is_slot_left
            ),
        )

    def close(self) -> None:
        """End the session, which may be another one since a restart."""
        self._connection.close()

    def record(self) -> None:
        """Say in every repository what is going to be done; durable when it returns."""
        prepared, decision = self._prepared, self._prepared.decision
        files: list[FileChange] = []
        if prepared.hba_files is not None and prepared.admission is not None:
            files.append(FileChange(prepared.hba_files.hba, prepared.admission.hba))
            if prepared.admission.ident:
                files.append(FileChange(prepared.hba_files.ident, prepared.admission.ident))
        change = Change(
            change_id=self._change_id,
            recorded_at=SystemClock().now(),
            system_identifier=str(prepared.facts.system_identifier),
            settings=tuple(
                SettingChange(name, prepared.before[name], value)
                for name, value in decision.settings
            ),
            role=decision.role,
            slot=self._context.settings.receive.slot if self._will_make_slot() else "",
            files=tuple(files),
        )
        for one in self._opened.repositories:
            record_change(one.store, self._context.server.name, change)
        self._recorded = self._changes_on_record()

    def _role(self) -> None:
        change = self._prepared.decision.role
        if change is None:
            return
        comment = f"made by pgrecall wal enable {self._change_id}"
        give(self._connection, change, comment=comment, password=self._password)
        what = "made the role" if change.makes else "gave rights to the role"
        self.done.append(f"{what} {change.name!r}")

    def _will_make_slot(self) -> bool:
        plan = self._prepared.plan
        return self._prepared.decision.makes_slot and (plan.restarts or self._can_make_slot())

    def _can_make_slot(self) -> bool:
        """Whether the server can have a slot as it runs now, before any restart."""
        level, slots = self._connection.row(
            "SELECT pg_catalog.current_setting('wal_level'),"
            " pg_catalog.current_setting('max_replication_slots')::pg_catalog.int4"
        )
        return level != "minimal" and int(slots) > 0

    def _slot(self) -> bool:
        """Make the slot; False when the server cannot have one before its restart."""
        if not self._can_make_slot():
            return False
        name = self._context.settings.receive.slot
        make_slot(self._connection, name)
        self.done.append(f"made the slot {name!r}")
        return True

    def _admit(self) -> None:
        """Put the lines at the top of the files, unless the role is admitted as it is."""
        prepared = self._prepared
        files, admission = prepared.hba_files, prepared.admission
        assert files is not None and admission is not None
        if self._is_admitted():
            self.done.append(f"{files.hba} admits the role already and was left alone")
            return
        pairs = [(files.hba, admission.hba)]
        if admission.ident:
            pairs.append((files.ident, admission.ident))
        old = {path: hba.read_file(path) for path, _ in pairs}
        for path, lines in pairs:
            text = old[path].decode("utf-8", "surrogateescape")
            new = hba.with_block(text, lines, self._change_id)
            hba.replace_file(
                path,
                new.encode("utf-8", "surrogateescape"),
                keep_as=f"{path}.{self._change_id}",
            )
        problems = hba.file_problems(self._connection)
        if problems:
            for path, content in old.items():
                hba.replace_file(path, content)
            raise ArchivingRefusedError(
                "the lines were taken out again, PostgreSQL finds errors: " + "; ".join(problems),
                hint="mend the files, or leave --write-hba out and paste the lines by hand",
            )
        reload(self._connection)
        for path in old:
            self.done.append(f"put lines at the top of {path}; it was kept as .{self._change_id}")

    def _restart(self, *, is_slot_left: bool) -> None:
        prepared = self._prepared
        # The session, and the lock, end with the server and not before.
        restart_server(self._context, prepared.pgdata, prepared.facts.major)
        self.done.append("restarted the server")
        self._connection.close()
        reached("enable.restarted")
        self._connection = open_changing_session(
            self._context,
            self._request,
            "enabling archiving",
            done="the settings of the plan are set, and the server was restarted",
        )
        self._require_untouched()
        if is_slot_left:
            self._slot()

    def _changes_on_record(self) -> frozenset[str]:
        changes = recorded_changes(self._context, self._opened, self._prepared.facts)
        return frozenset(change.change_id for change in changes)

    def _require_untouched(self) -> None:
        """Raise ServerBeingChangedError if somebody was quicker after the restart."""
        now = self._changes_on_record()
        others = sorted(now - self._recorded)
        if self._change_id in now and not others:
            return
        what = f"enabled it, too ({', '.join(others)})" if others else "undid this"
        raise ServerBeingChangedError(
            f"when the server had been restarted, somebody else {what}; the rest of the plan was"
            " not carried out",
            hint="look at the plan anew",
        )

    def _verify(self, pending: tuple[str, ...]) -> None:
        """What was set counts now, or waits for the restart; anything else is a finding."""
        names = [name for name, _ in self._prepared.decision.settings]
        now = parameter_facts(self._connection, names).by_name
        for name, value in self._prepared.decision.settings:
            waits = name in pending and now[name].is_pending
            if waits or (now[name].auto_value == value and not now[name].is_pending):
                continue
            self.findings.append(
                Finding(
                    severity="fail",
                    code="setting-does-not-count",
                    subject=name,
                    message=f"it was set to {value!r} and is {now[name].value!r} "
                    f"(from {now[name].source})",
                    hint="look into pg_settings and pg_file_settings; somebody else sets it too",
                )
            )

    def _is_admitted(self) -> bool:
        """Whether a session as the role can be opened, now or within a moment."""
        server = administrator(self._context, self._request)
        secret = self._request.role_password
        server = server.replace(user=self._request.role, password=secret or server.password)
        try:
            connect(
                server,
                application_name="pgrecall wal enable",
                purpose="trying the role",
                environment=self._context.environment,
            ).close()
        except (PostgresRightsError, PostgresUnreachableError):
            return False
        return True

    def _look_whether_admitted(self) -> None:
        if not self._request.role:
            return
        # The postmaster reads the file a moment after the session has noticed the reload.
        deadline = time.monotonic() + (_ADMISSION_SECONDS if self._request.write_hba else 0)
        while not (is_admitted := self._is_admitted()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if is_admitted:
            self.done.append(f"connected as {self._request.role!r}, to try it")
            return
        self.findings.append(
            Finding(
                severity="warn",
                code="role-not-admitted",
                subject=self._request.role,
                message="the role cannot connect yet",
                hint="put the lines of hba (and ident) of the plan at the top of the server's "
                "files and reload, or say --write-hba; with scram, give the role a password",
            )
        )


def _after(
    prepared: Prepared,
    request: EnableRequest,
    *,
    pending: tuple[str, ...] = (),
    is_slot_left: bool = False,
) -> tuple[str, ...]:
    plan, steps = prepared.plan, []
    if plan.by_hand:
        steps.append(f"put the lines of by_hand into {plan.config_file}, and restart the server")
    waiting = pending or (() if prepared.acts else plan.restart_for)
    if waiting and not plan.by_hand:
        steps.append(f"restart the server, for {', '.join(waiting)}")
    if is_slot_left:
        steps.append("after the restart, the same command once more makes the slot")
    if request.role:
        steps.append(f"set user = {request.role!r} for the server in pgrecall.toml")
    steps.append("pgrecall check, then pgrecall backup")
    return tuple(steps)
