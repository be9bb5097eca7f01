"""``agent``: plans the components of one server, and runs them until it is told to end."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from pgrecall.agent.component import Component, Facts
from pgrecall.agent.job_runner import Ended, JobRunner
from pgrecall.agent.lock import agent_lock
from pgrecall.agent.notify import Notifier
from pgrecall.agent.process import AgentProcess
from pgrecall.agent.supervisor import Spec, Supervisor
from pgrecall.app.agent_composition import Blueprint, Joints, Place, blueprints, place_of, specs
from pgrecall.app.capturing_unasked import capture_change
from pgrecall.app.context import RunContext
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.app.journalling import write_job
from pgrecall.app.naming import record_names
from pgrecall.app.replication_status import replication_facts
from pgrecall.errors import SettingsError, UsageError
from pgrecall.settings import Settings
from pgrecall.system.clock import SystemClock
from pgrecall.wal.agent_places import agent_directory, socket_path, state_directory

_JOB_PATIENCE_SECONDS = 15.0


class PlannedComponent(msgspec.Struct, frozen=True):
    """A component, and what it will do."""

    name: str
    duty: str


class PlannedJob(msgspec.Struct, frozen=True):
    """A job of the schedule; ``next_at`` is its first moment from now on."""

    job: str
    expression: str
    next_at: datetime | None


class AgentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent for ``server`` runs, and where it keeps what is its own."""

    server: str
    config: str
    directory: str
    socket: str
    data_directory: str
    components: tuple[PlannedComponent, ...]
    jobs: tuple[PlannedJob, ...] = ()


class AgentResult(msgspec.Struct, frozen=True, kw_only=True):
    """With --check only the plan; else how the agent ended.

    ``stuck``: components that did not end in time and were left behind.
    """

    plan: AgentPlan
    started_at: datetime | None = None
    ended_at: datetime | None = None
    ended_by: str = ""
    stuck: tuple[str, ...] = ()


class Agent:
    """The agent of one server, with what stays the same when settings are read again."""

    def __init__(self, context: RunContext) -> None:
        """Raises SettingsError; PostgresError when PGDATA must be asked and cannot be."""
        if context.repository_name is not None:
            raise UsageError(
                "an agent serves all repositories of its server",
                hint="leave --repository out, or set repositories of the server",
            )
        self._context = context
        self._place = place_of(context.settings, context.server_name, context.environment)
        self._made: dict[str, tuple[object, Component]] = {}
        self._runner = JobRunner(
            self._program,
            state_directory(context.settings, self._place.server),
            context.environment,
            SystemClock(),
        )
        self._supervisor = Supervisor()

    def plan(self) -> AgentPlan:
        """What would run; nothing is made, written or asked."""
        settings, server = self._place.settings, self._place.server
        timetable, now = self._place.timetable, datetime.now(UTC)
        return AgentPlan(
            server=server.name,
            config=settings.path,
            directory=agent_directory(settings, server),
            socket=socket_path(settings, server),
            data_directory=self._place.data_directory,
            components=tuple(
                PlannedComponent(one.name, one.duty) for one in self._blueprints(self._place)
            ),
            jobs=tuple(
                PlannedJob(job, expression, timetable.next_after(job, now))
                for job, expression in timetable.expressions.items()
            ),
        )

    def run(self, load: Callable[[], Settings]) -> AgentResult:
        """Run until SIGTERM or SIGINT; ``load`` reads the settings again for SIGHUP.

        Raises AgentRunningError, AgentPlaceError and SettingsError before anything
        is begun; what fails later fails inside its component.
        """
        settings, server = self._place.settings, self._place.server
        directory = agent_directory(settings, server)
        plan, started_at = self.plan(), datetime.now(UTC)
        state = state_directory(settings, server)
        process = AgentProcess(
            server.name, state, self._supervisor, Notifier(self._context.environment)
        )
        with agent_lock(directory):
            ended_by, stuck = process.run(self._specs, lambda: self._again(load), self._end_jobs)
        return AgentResult(
            plan=plan,
            started_at=started_at,
            ended_at=datetime.now(UTC),
            ended_by=ended_by,
            stuck=tuple(stuck),
        )

    def _end_jobs(self) -> None:
        for ended in self._runner.stop(_JOB_PATIENCE_SECONDS):
            self._report(ended)

    def _specs(self) -> list[Spec]:
        return specs(self._blueprints(self._place), self._made)

    def _again(self, load: Callable[[], Settings]) -> list[Spec]:
        """The components of the settings as they are now; raises SettingsError and its like."""
        context = self._context
        before = agent_directory(self._place.settings, self._place.server)
        place = place_of(
            load(), context.server_name or self._place.server.name, context.environment
        )
        if agent_directory(place.settings, place.server) != before:
            raise SettingsError(
                f"[agent] directory cannot change while the agent runs: it is {before}",
                hint="restart the agent",
            )
        made = dict(self._made)
        found = specs(self._blueprints(place), made)
        # Only what was made without an error counts.
        self._place, self._made = place, made
        return found

    def _blueprints(self, place: Place) -> list[Blueprint]:
        joints = Joints(
            environment=self._context.environment,
            runner=self._runner,
            report=self._report,
            statuses=self._supervisor.statuses,
            record_names=self._record_names,
            capture=self._capture,
            replication=self._replication,
        )
        return blueprints(place, joints)

    def _program(self) -> list[str]:
        settings = self._place.settings
        config = ["--config", os.path.abspath(settings.path)] if settings.path else []
        return [*pgrecall_command(), *config, "--server", self._place.server.name]

    def _record_names(self, place: Place) -> Facts:
        context = RunContext(place.settings, self._context, server_name=place.server.name)
        found = record_names(context)
        return {
            "relations": found.relations,
            "databases": found.databases,
            "problems": "; ".join(finding.message for finding in found.findings) or None,
        }

    def _capture(self, place: Place, changed: tuple[str, ...]) -> None:
        context = RunContext(place.settings, self._context, server_name=place.server.name)
        capture_change(context, changed)

    def _replication(self, place: Place) -> Facts:
        context = RunContext(place.settings, self._context, server_name=place.server.name)
        return replication_facts(context)

    def _report(self, ended: Ended) -> None:
        """A job's process that was killed could not write its own record."""
        write_job(self._context, ended)


def run_agent(context: RunContext, load: Callable[[], Settings]) -> AgentResult:
    """Run the agent of the chosen server in the foreground; see Agent.run."""
    return Agent(context).run(load)


def check_agent(context: RunContext) -> AgentResult:
    """What ``run_agent`` would run; raises what it would raise before it begins."""
    return AgentResult(plan=Agent(context).plan())
