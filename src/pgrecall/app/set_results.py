"""What ``set restore`` shows before and after, physical or logical."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.app.starting import Started
from pgrecall.model.findings import Finding, worst
from pgrecall.model.runs import RunFacts
from pgrecall.restore.plan import RestorePlan
from pgrecall.sets.compare import SetCheck
from pgrecall.sets.plan import Mode, PlannedDatabase


class SetRestorePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``set restore`` does, in order. ``target``: the directory, or the server, in words.

    ``goes_on``: what an interrupted restore of this set has left there, and what becomes of it.
    """

    server: str
    set_id: str
    mode: Mode
    made_at: datetime
    target: str
    steps: tuple[str, ...]
    goes_on: str = ""
    databases: tuple[PlannedDatabase, ...] = ()
    present_roles: tuple[str, ...] = ()
    tool: str = ""
    restore: RestorePlan | None = None


class RestoredSlot(msgspec.Struct, frozen=True):
    """A replication slot of the set; ``message``: why it was not made, or what it lacks."""

    name: str
    kind: str
    is_made: bool
    message: str


class SetRestoreResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``set restore`` prints. After a dry run there is only the plan.

    ``checks`` hold what came back to the capture of the set, and to its dump.
    """

    plan: SetRestorePlan
    run_id: str = ""
    host: str = ""
    port: int = 0
    restore_seconds: float = 0.0
    started: Started | None = None
    checks: tuple[SetCheck, ...] = ()
    slots: tuple[RestoredSlot, ...] = ()
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it; a restore measures the RTO."""
        is_done = bool(self.run_id)
        return RunFacts(
            outcome=worst(list(self.findings)),
            backup_id=self.plan.set_id,
            rto_seconds=self.restore_seconds if is_done and self.plan.mode == "physical" else None,
        )
