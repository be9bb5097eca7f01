"""``wal status``: what is archived, what waits, what fails and why, for people and monitoring."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

import msgspec

from pgrecall.agent.lock import running_agent
from pgrecall.app.archive_wait import (
    ArchiveWait,
    archiving_problem,
    require_primary,
    server_session,
)
from pgrecall.app.context import RunContext
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.app.opened import OpenedRepository
from pgrecall.app.requests import WalStatusRequest
from pgrecall.check.plan import CheckFacts, Expected, judge
from pgrecall.check.probes import ask_server, failed
from pgrecall.check.wal_state import (
    ArchiveLag,
    Thresholds,
    archiver_findings,
    lag_findings,
    slot_findings,
)
from pgrecall.errors import AgentPlaceError, NotArchivedError, PgrecallError
from pgrecall.model.findings import Finding, Severity, worst
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.postgres.actions import (
    ArchiverFacts,
    create_restore_point,
    file_before,
    switch_quietly,
)
from pgrecall.postgres.archiving import (
    READY,
    PendingWal,
    ReceiverState,
    WalPosition,
    pending_wal,
    receivers,
    reset_archiver_statistics,
    wal_position,
)
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.facts import ServerFacts
from pgrecall.postgres.server_log import last_message
from pgrecall.postgres.slots import SlotState, list_slots
from pgrecall.repository.identity import require_generation
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import RepositorySettings
from pgrecall.wal.agent_places import agent_directory, socket_path
from pgrecall.wal.commands import archive_command

_CONFIGURATION = frozenset(
    {"wal-level", "archive-mode", "archive-library", "archive-command", "standby-does-not-archive"}
)
_STREAMED = frozenset({"archive-mode", "archive-command", "standby-does-not-archive"})


class WalStatusPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``--test`` and ``--reset-stats`` will do."""

    server: str
    actions: tuple[str, ...]


class RepositoryWal(msgspec.Struct, frozen=True, kw_only=True):
    """The newest whole segment of the server's timeline in one repository.

    ``behind_bytes``: from its end to the server's position. Empty and None: none is
    there, or ``error`` says why it cannot be told.
    """

    name: str
    role: str
    newest_segment: str = ""
    behind_bytes: int | None = None
    error: str = ""


class ArchivingProbe(msgspec.Struct, frozen=True, kw_only=True):
    """``--test``: a restore point that the server's own archive_command brought here."""

    restore_point: str
    lsn: str
    segment: str
    durable_in: tuple[str, ...]
    duration_seconds: float


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """The agent of this server on this host; ``pid`` 0: it runs, and its pid is not known."""

    is_running: bool
    pid: int | None = None
    has_socket: bool = False


class WalStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What ``wal status`` prints; ``result`` is the gravest of the findings.

    ``asked_at`` and the archiver's times are of the server's clock. ``pending`` is
    None when it cannot be told.
    """

    server: str
    result: Severity
    asked_at: datetime
    role: str
    timeline: int
    lsn: str
    segment: str
    archive_mode: str
    lag: ArchiveLag
    pending: PendingWal | None
    archiver: ArchiverFacts
    agent: AgentState
    repositories: tuple[RepositoryWal, ...]
    slots: tuple[SlotState, ...]
    receivers: tuple[ReceiverState, ...]
    findings: tuple[Finding, ...]
    probe: ArchivingProbe | None = None
    was_reset: bool = False
    plan: WalStatusPlan | None = None


def run_wal_status(context: RunContext, request: WalStatusRequest) -> WalStatus:
    """Ask the server and the repositories; act only as ``test`` and ``reset_stats`` say.

    What does not work becomes a finding. Raises PostgresError when the server cannot be
    asked, SettingsError, and ServerIsStandbyError for a test on a standby.
    """
    try:
        with server_session(context, "wal status") as connection:
            return _WalStatusRun(context, request, connection).run()
    finally:
        context.progress.done()


class _WalStatusRun:
    """One look; ``findings`` grows."""

    def __init__(
        self, context: RunContext, request: WalStatusRequest, connection: Connection
    ) -> None:
        self._context = context
        self._request = request
        self._connection = connection
        self._findings: list[Finding] = []

    def run(self) -> WalStatus:
        plan, is_approved = self._plan()
        probe = self._probe() if self._request.test and is_approved else None
        self._context.progress.phase("server")
        facts = ask_server(self._connection, self._context.settings.receive.slot)
        position = wal_position(self._connection)
        slots = list_slots(self._connection)
        streaming = receivers(self._connection)
        pending = self._pending(facts.server)
        self._configuration(facts, slots)
        self._findings += archiver_findings(facts.archiver, self._complaint(facts.server))
        self._findings += slot_findings(slots)
        self._context.progress.phase("repositories")
        repositories = [
            self._repository(one, facts.server, position) for one in self._context.repositories
        ]
        lag = _lag(position, facts.server, facts.archiver, pending, repositories)
        self._findings += lag_findings(lag, _thresholds(self._request))
        is_reset = self._request.reset_stats and is_approved
        if is_reset:
            reset_archiver_statistics(self._connection)
        return WalStatus(
            server=self._context.server.name,
            result=worst(self._findings),
            asked_at=position.asked_at,
            role="standby" if position.is_in_recovery else "primary",
            timeline=facts.server.timeline,
            lsn=position.lsn,
            segment=_segment(position, facts.server.timeline),
            archive_mode=facts.server.archive_mode,
            lag=lag,
            pending=pending,
            archiver=facts.archiver,
            agent=self._agent(),
            repositories=tuple(repositories),
            slots=tuple(slots),
            receivers=tuple(streaming),
            findings=tuple(self._findings),
            probe=probe,
            was_reset=is_reset,
            plan=plan,
        )

    # --- acts ----------------------------------------------------------------------

    def _plan(self) -> tuple[WalStatusPlan | None, bool]:
        actions = []
        if self._request.test:
            require_primary(self._connection, self._context.server.name, "it archives no probe")
            actions.append("make a restore point, switch WAL, and wait until it is durable")
        if self._request.reset_stats:
            actions.append("set the counters of pg_stat_archiver back")
        if not actions:
            return None, False
        plan = WalStatusPlan(server=self._context.server.name, actions=tuple(actions))
        return plan, self._context.approve(plan)

    def _probe(self) -> ArchivingProbe | None:
        self._context.progress.phase("probe")
        began = time.monotonic()
        name = f"pgrecall-test-{self._context.run_id}"[:63]
        try:
            problem = archiving_problem(self._connection)
            if problem:
                raise NotArchivedError(problem, hint="turn archiving on: pgrecall wal enable")
            wait = ArchiveWait(self._context, self._connection)
            before = wait.before()
            lsn = create_restore_point(self._connection, name)
            file, _ = file_before(self._connection, lsn)
            switch_quietly(self._connection)
            names = wait.until_durable(file, before, self._request.timeout_seconds)
            self._findings += wait.findings
            for one in wait.required:
                if name not in {point.name for point in one.archive.index(file).restore_points}:
                    raise NotArchivedError(
                        f"{file} is in repository {one.name}, without the restore point that the"
                        " server wrote into it",
                        hint="another server may archive under this name: pgrecall check",
                    )
        except PgrecallError as error:
            self._findings.append(
                Finding(
                    severity="fail",
                    code="probe-failed",
                    message=f"the probe did not arrive: {error.message}",
                    hint=error.hint,
                )
            )
            return None
        return ArchivingProbe(
            restore_point=name,
            lsn=str(lsn),
            segment=file,
            durable_in=tuple(names),
            duration_seconds=round(time.monotonic() - began, 3),
        )

    # --- looks ---------------------------------------------------------------------

    def _configuration(self, facts: CheckFacts, slots: list[SlotState]) -> None:
        """The findings of ``check`` on how archiving is set up, as far as they are none of ok."""
        context = self._context
        config = os.path.abspath(context.settings.path) if context.settings.path else ""
        name = context.server.name
        expected = Expected(
            server=name,
            config=config,
            archive_command=archive_command(pgrecall_command(), config, name),
        )
        own = context.settings.receive.slot
        is_streamed = any(slot.name == own and slot.is_active for slot in slots)
        left_out = _STREAMED if is_streamed else frozenset[str]()
        self._findings += [
            finding
            for finding in judge(facts, expected)
            if finding.severity != "ok" and finding.code in _CONFIGURATION - left_out
        ]

    def _complaint(self, server: ServerFacts) -> str:
        directory = self._context.server.data_directory or server.data_directory
        return last_message(self._connection, directory, "pgrecall: ") if directory else ""

    def _pending(self, server: ServerFacts) -> PendingWal | None:
        told = pending_wal(self._connection)
        if told is not None:
            return told
        directory = self._context.server.data_directory or server.data_directory
        found = _local_pending(f"{directory}/pg_wal/archive_status") if directory else None
        if found is None:
            self._findings.append(
                Finding(
                    severity="warn",
                    code="pending-unknown",
                    message="how many segments wait cannot be told: the role may not list"
                    " archive_status",
                    hint="GRANT pg_monitor to the role, or run as the server's own user",
                )
            )
        return found

    def _repository(
        self, settings: RepositorySettings, server: ServerFacts, position: WalPosition
    ) -> RepositoryWal:
        name = self._context.server.name
        try:
            opened = OpenedRepository(settings, self._context.environment)
            generation = require_generation(
                opened.store, name, server.system_identifier, f"the server {name!r}"
            )
            newest = WalArchive(opened.store, name, generation).newest(server.timeline)
        except PgrecallError as error:
            severity: Severity = "fail" if settings.role == "required" else "warn"
            self._findings.append(failed(error, severity, settings.name))
            return RepositoryWal(name=settings.name, role=settings.role, error=error.message)
        if newest is None:
            return RepositoryWal(name=settings.name, role=settings.role)
        return RepositoryWal(
            name=settings.name,
            role=settings.role,
            newest_segment=newest.name,
            behind_bytes=_behind(position, newest.name),
        )

    def _agent(self) -> AgentState:
        settings, server = self._context.settings, self._context.server
        has_socket = os.path.exists(socket_path(settings, server))
        try:
            pid = running_agent(agent_directory(settings, server))
        except AgentPlaceError as error:
            self._findings.append(failed(error, "warn", "agent"))
            return AgentState(is_running=False, has_socket=has_socket)
        return AgentState(is_running=pid is not None, pid=pid, has_socket=has_socket)


def _thresholds(request: WalStatusRequest) -> Thresholds:
    defaults = Thresholds()
    is_given = request.warn_seconds is not None or request.fail_seconds is not None
    return Thresholds(
        # Who names one bound of time means that one, not the other's default as well.
        warn_seconds=request.warn_seconds if is_given else defaults.warn_seconds,
        fail_seconds=request.fail_seconds if is_given else defaults.fail_seconds,
        warn_bytes=request.warn_bytes,
        fail_bytes=request.fail_bytes,
        warn_segments=request.warn_segments,
        fail_segments=request.fail_segments,
    )


def _lag(
    position: WalPosition,
    server: ServerFacts,
    archiver: ArchiverFacts,
    pending: PendingWal | None,
    repositories: list[RepositoryWal],
) -> ArchiveLag:
    told = [one.behind_bytes for one in repositories if one.behind_bytes is not None]
    required = [
        one.behind_bytes
        for one in repositories
        if one.behind_bytes is not None and one.role == "required"
    ]
    behind = max(required or told, default=None)
    last = archiver.last_archived_file
    if behind is None and len(last) == 24 and int(last[:8], 16) == server.timeline:
        behind = _behind(position, last)
    seconds: float | None = None
    if pending is not None:
        oldest = pending.oldest_at
        seconds = max(0.0, (position.asked_at - oldest).total_seconds()) if oldest else 0.0
    return ArchiveLag(
        waiting_seconds=seconds,
        waiting_segments=pending.segments if pending is not None else None,
        behind_bytes=behind,
    )


def _behind(position: WalPosition, segment: str) -> int | None:
    if not position.lsn:
        return None
    end = WalFile(segment).start(position.segment_bytes) + position.segment_bytes
    return max(0, Lsn.parse(position.lsn) - end)


def _segment(position: WalPosition, timeline: int) -> str:
    if not position.lsn:
        return ""
    return segment_name(timeline, Lsn.parse(position.lsn), position.segment_bytes)


def _local_pending(directory: str) -> PendingWal | None:
    """As postgres.archiving.pending_wal, from the directory; None when it cannot be read."""
    found: list[tuple[float, str]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.name.endswith(READY):
                    continue
                try:
                    found.append((entry.stat().st_mtime, entry.name.removesuffix(READY)))
                except FileNotFoundError:
                    continue  # archived meanwhile
    except OSError:
        return None
    found.sort()
    return PendingWal(
        files=len(found),
        segments=sum(len(name) == 24 for _, name in found),
        oldest=found[0][1] if found else "",
        oldest_at=datetime.fromtimestamp(found[0][0], UTC) if found else None,
    )
