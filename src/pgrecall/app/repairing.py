"""``repair``: heal what is damaged in one repository from another that holds it whole."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.copying import make_transfer, side_of
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository
from pgrecall.app.requests import RepairRequest
from pgrecall.app.verifying import unknown_finding, verify_opened
from pgrecall.errors import BackupNotFoundError, PgrecallError
from pgrecall.model.findings import Finding, Severity, worst
from pgrecall.model.runs import RunFacts
from pgrecall.settings import RepositorySettings
from pgrecall.system.clock import SystemClock
from pgrecall.verify.plan import ALL, Depth
from pgrecall.verify.repair_plan import ObjectToHeal, RepairPlan, kind_of, make_plan, replaces
from pgrecall.verify.repair_run import RepairRun, unhealed_finding
from pgrecall.verify.repair_sources import Healer
from pgrecall.verify.run import VerifyProof

# A completion record brings back its manifest, that its parts, these the packs: each shows
# what the next is to be held to.
_MOST_ROUNDS = 4


class RepairResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``repair`` prints; after a dry run there is only the plan.

    ``healed``: what is whole again. ``findings``: what is damaged still, and why.
    """

    plan: RepairPlan
    duration_seconds: float = 0.0
    result: Severity = "ok"
    healed: tuple[ObjectToHeal, ...] = ()
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=self.result)


class _Repository:
    """One repository that is looked at, and healed."""

    def __init__(self, opened: OpenedRepository, run: RepairRun, proof: VerifyProof) -> None:
        self.opened = opened
        self.run = run
        self.proof = proof
        self.objects = run.plan(proof)


def run_repair(context: RunContext, request: RepairRequest) -> RepairResult:
    """Verify, show what can be healed, and heal it; damaged backups are marked.

    In the chosen repository, or in each of the server's: so that two copies that are
    damaged at different places heal each other. Raises SettingsError, ConfirmationError,
    and BackupNotFoundError when no repository has the backup that was named.
    """
    clock = SystemClock()
    began = clock.monotonic()
    repair = _Repair(context, request)
    try:
        repair.look()
        plan = repair.plan()
        question = "Shall the damaged objects be replaced?" if replaces(plan) else ""
        if not context.approve(plan, question=question):
            return RepairResult(plan=plan)
        repair.carry_out()
    finally:
        context.progress.done()
    return RepairResult(
        plan=plan,
        duration_seconds=round(clock.monotonic() - began, 3),
        result=worst(repair.findings),
        healed=tuple(repair.healed),
        findings=tuple(repair.findings),
    )


class _Repair:
    """The repair of all chosen repositories."""

    def __init__(self, context: RunContext, request: RepairRequest) -> None:
        self.healed: list[ObjectToHeal] = []
        self.findings: list[Finding] = []
        self._context = context
        self._depth: Depth = request.depth
        self._wanted = request.backup_id or ALL
        self._server = context.server.name
        self._opened: dict[str, OpenedRepository] = {}
        self._repositories: list[_Repository] = []

    def look(self) -> None:
        """Open all of the server's repositories, and verify those that are to be healed."""
        for settings in self._context.settings.repositories_of(self._context.server):
            try:
                self._opened[settings.name] = OpenedRepository(settings, self._context.environment)
            except PgrecallError as error:
                self.findings.append(_named(settings, error))
        chosen = [one for one in self._context.repositories if one.name in self._opened]
        missing: list[BackupNotFoundError] = []
        for settings in chosen:
            opened = self._opened[settings.name]
            try:
                proof = self._verify(opened, self._wanted)
            except BackupNotFoundError as error:
                missing.append(error)
                continue
            if proof.stopped is not None:
                self.findings.append(_named(settings, proof.stopped))
            run = RepairRun(settings.name, opened.store, self._server, self._healers(opened))
            self._repositories.append(_Repository(opened, run, proof))
        if missing and not self._repositories:
            raise missing[0]

    def plan(self) -> RepairPlan:
        """What is damaged in all of them, and what will be done."""
        objects = tuple(one for each in self._repositories for one in each.objects)
        return make_plan(self._server, objects, tuple(self.findings))

    def carry_out(self) -> None:
        """Heal each repository, round by round, until nothing more can be healed."""
        self._context.progress.phase("repair")
        for repository in self._repositories:
            with using(self._context, repository.opened, "backup"):
                self._heal(repository)

    def _heal(self, repository: _Repository) -> None:
        objects: list[ObjectToHeal] = repository.objects
        hopeless: dict[str, Finding] = {}
        for _ in range(_MOST_ROUNDS):
            healed: list[ObjectToHeal] = []
            for one in objects:
                if one.action == "none":
                    hopeless[unhealed_finding(one).subject] = unhealed_finding(one)
            for result in repository.run.run(objects):
                if isinstance(result, Finding):
                    hopeless[result.subject] = result
                else:
                    healed.append(result)
            self.healed += healed
            objects = self._next(repository, healed)
            if not objects:
                break
        self.findings += hopeless.values()

    def _next(self, repository: _Repository, healed: Sequence[ObjectToHeal]) -> list[ObjectToHeal]:
        """Verify the backups that were healed: what shows up now is healed next.

        That writes their marks, too: one that is whole again loses it.
        """
        # Without its completion record, its history or its generation's record the WAL of a
        # backup was not looked at.
        unseen = {
            one.key
            for one in healed
            if kind_of(self._server, one.key, one.code) == "completion"
            or one.code == "history-missing"
            or "/generations/" in one.key
        }
        if unseen:
            wanted = {self._wanted}
        else:
            wanted = {backup_id for one in healed for backup_id in one.backups}
        objects: list[ObjectToHeal] = []
        for backup_id in sorted(wanted):
            proof = self._verify(repository.opened, backup_id, is_partial=not unseen)
            if proof.stopped is not None:
                self.findings.append(_named(repository.opened.settings, proof.stopped))
                continue
            done = {one.key for one in healed}
            objects += [one for one in repository.run.plan(proof) if one.key not in done]
        return objects

    def _verify(
        self, opened: OpenedRepository, wanted: str, *, is_partial: bool = False
    ) -> VerifyProof:
        return verify_opened(
            self._context, opened, wanted=wanted, depth=self._depth, is_partial=is_partial
        )

    def _healers(self, opened: OpenedRepository) -> list[Healer]:
        target = side_of(opened)
        now = SystemClock().now()
        return [
            Healer(make_transfer(self._context, side_of(other), target), self._server, now)
            for other in self._opened.values()
            if other is not opened
        ]


def _named(settings: RepositorySettings, error: PgrecallError) -> Finding:
    finding = unknown_finding(settings, error, "not all of it was looked at")
    return msgspec.structs.replace(finding, subject=f"{settings.name}: {finding.subject}")
