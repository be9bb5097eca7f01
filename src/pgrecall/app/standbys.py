"""``standby build``: a standby from the repository, which then streams from its primary."""

from __future__ import annotations

import hashlib
import os

import msgspec

from pgrecall.app.context import RunContext, approving
from pgrecall.app.opened import main_repository
from pgrecall.app.requests import Following, RestoreRequest, StandbyBuildRequest
from pgrecall.app.restoring import RestoreResult, run_restore
from pgrecall.app.starting import Started
from pgrecall.errors import BackupNotFoundError, RecoveryError
from pgrecall.model.findings import Finding, worst
from pgrecall.model.runs import RunFacts
from pgrecall.model.wal_files import history_name
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.instance import running_postmaster
from pgrecall.postgres.slots import check_slot_name, make_slot
from pgrecall.postgres.upstream import (
    UpstreamFacts,
    ask_upstream,
    connect_upstream,
    parse_upstream,
)
from pgrecall.repository.identity import latest_generation
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.plan import RestorePlan
from pgrecall.standby.plan import FollowPlan, plan_follow, require_branch
from pgrecall.standby.run import Streaming, wait_streaming
from pgrecall.system.faults import reached


class StandbyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Where the data comes from (``restore``), and whom the standby then follows."""

    follow: FollowPlan
    restore: RestorePlan

    @property
    def backup_id(self) -> str:
        """The backup that the data comes from."""
        return self.restore.backup_id


class StandbyBuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``standby build`` prints. After a dry run there is only the plan.

    ``streaming`` is what both ends said of it; None when it was not to be started.
    """

    plan: StandbyPlan | None
    run_id: str = ""
    target_dir: str = ""
    made_slot: str = ""
    restore_seconds: float = 0.0
    started: Started | None = None
    streaming: Streaming | None = None
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(
            outcome=worst(list(self.findings)),
            backup_id=self.plan.backup_id if self.plan else "",
        )


def build_standby(context: RunContext, request: StandbyBuildRequest) -> StandbyBuildResult:
    """Restore into ``target_dir`` as a standby, start it, and wait until it streams.

    The primary is asked before anything is written; it changes only by the slot. After
    a kill while files are written the same call goes on; once started, the standby goes on by
    itself. Raises StandbyError, SlotError, the errors of a
    restore, PostgresUnreachableError, PostgresRightsError, UsageError.
    """
    return _Build(context, request).run()


class _Build:
    def __init__(self, context: RunContext, request: StandbyBuildRequest) -> None:
        self._context = context
        self._request = request
        self._parameters = parse_upstream(request.primary, context.environment)
        if request.slot:
            check_slot_name(request.slot)
        self._name = self._parameters.get("application_name") or _name_of(request)
        self._facts: UpstreamFacts = ask_upstream(
            self._parameters, slot=request.slot, application_name=self._name
        )
        self._follow = self._plan()
        self._plan_shown: StandbyPlan | None = None
        self._made_slot = ""

    def run(self) -> StandbyBuildResult:
        request = self._request
        context = approving(self._context, self._approve)
        restored = run_restore(
            context,
            RestoreRequest(
                target_dir=request.target_dir,
                backup_id=request.backup_id,
                tablespace_map=request.tablespace_map,
                standby=True,
                start=request.start,
                port=request.port,
                delta=request.delta,
                keep_old=request.keep_old,
                switch_wal=False,
                following=Following(
                    conninfo=self._facts.conninfo,
                    slot=request.slot,
                    listen_addresses=request.listen_addresses,
                ),
                dry_run=request.dry_run,
            ),
        )
        if not restored.run_id:
            return StandbyBuildResult(plan=self._plan_shown)
        streaming = None
        if restored.started is not None:
            self._context.progress.phase("stream")
            streaming = self._wait(restored, restored.started)
        return StandbyBuildResult(
            plan=self._plan_shown,
            run_id=self._context.run_id,
            target_dir=restored.restored_to,
            made_slot=self._made_slot,
            restore_seconds=restored.restore_seconds,
            started=restored.started,
            streaming=streaming,
            findings=restored.findings,
            next_steps=restored.next_steps,
        )

    def _plan(self) -> FollowPlan:
        name = self._context.server.name
        store = main_repository(self._context).store
        generation = latest_generation(store, name)
        if generation is None:
            raise BackupNotFoundError(
                f"the repository knows no server {name!r}", hint="take a backup: pgrecall backup"
            )
        self._archive = WalArchive(store, name, generation)
        return plan_follow(
            self._facts,
            slot=self._request.slot,
            system_identifier=generation.system_identifier,
            major=generation.major_version,
        )

    def _approve(self, plan: msgspec.Struct, *, question: str = "") -> bool:
        """Show the restore's plan with ours, and make the slot before the first byte is written."""
        restore = msgspec.convert(plan, RestorePlan, from_attributes=True)
        require_branch(self._facts, self._newest_timeline(restore.timeline))
        self._plan_shown = StandbyPlan(follow=self._follow, restore=restore)
        if not self._context.approve(self._plan_shown, question=question):
            return False
        if self._follow.makes_slot:
            with connect_upstream(self._parameters, "making the slot") as connection:
                make_slot(connection, self._follow.slot)
            self._made_slot = self._follow.slot
        reached("standby.slot")
        return True

    def _newest_timeline(self, timeline: int) -> int:
        """Where recovery_target_timeline = latest leads (findNewestTimeLine in timeline.c)."""
        while self._archive.has(history_name(timeline + 1)):
            timeline += 1
        return timeline

    def _wait(self, restored: RestoreResult, started: Started) -> Streaming:
        server = self._context.server.replace(
            data_directory=restored.restored_to,
            host=started.socket_directory,
            port=started.port,
        )

        def standby(purpose: str) -> Connection:
            if running_postmaster(restored.restored_to) is None:
                raise RecoveryError(
                    f"the standby of {restored.restored_to} has ended",
                    hint=f"its log is {started.log_path}",
                )
            return connect(
                server,
                application_name="pgrecall standby build",
                purpose=purpose,
                environment=self._context.environment,
            )

        return wait_streaming(
            standby,
            self._parameters,
            application_name=self._name,
            wait_seconds=self._request.wait_seconds,
        )


def _name_of(request: StandbyBuildRequest) -> str:
    """The name that the primary lists it by: its slot, or one that depends on PGDATA only."""
    if request.slot:
        return request.slot
    place = f"{os.uname().nodename}:{os.path.realpath(request.target_dir)}"
    digest = hashlib.blake2b(os.fsencode(place), digest_size=4)
    return f"standby_{digest.hexdigest()}"
