"""``undo`` of a load that has swapped databases: the old one comes back."""

from __future__ import annotations

import json

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.loading import swap_record
from pgrecall.app.opened import main_repository
from pgrecall.further_errors import LoadError
from pgrecall.model.findings import Finding
from pgrecall.model.ids import RUN, kind_of
from pgrecall.model.runs import RunFacts, RunRecord
from pgrecall.postgres.connection import connect
from pgrecall.postgres.load_target import maintenance_database, swap_databases, target_facts
from pgrecall.repository.journal import Journal


class LoadUndoPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``undo`` does with a swap: ``kept_name`` becomes ``database`` again."""

    run_id: str
    server: str
    database: str
    kept_name: str
    loaded_goes_to: str


class LoadUndoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``undo`` of a load prints."""

    plan: LoadUndoPlan
    is_undone: bool = False
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it: an undo can be undone."""
        kept = swap_record(self.plan.database, self.plan.loaded_goes_to)
        return RunFacts(kept=(kept,) if self.is_undone else ())


def swapping_run(context: RunContext, run_id: str) -> RunRecord | None:
    """The record of a load (or of an undo of one) that swapped; None for any other run."""
    if kind_of(run_id) != RUN:
        return None
    record = Journal(main_repository(context).store, context.server.name).get(run_id)
    return record if record is not None and _swap_of(record) is not None else None


def undo_load(context: RunContext, record: RunRecord) -> LoadUndoResult:
    """Swap the two databases again. Raises LoadError when one of them is gone, PostgresError."""
    swap = _swap_of(record)
    assert swap is not None
    database, kept = swap
    tail = context.run_id.rpartition("-")[2]
    plan = LoadUndoPlan(
        run_id=record.run_id,
        server=context.server.name,
        database=database,
        kept_name=kept,
        loaded_goes_to=f"{database.encode()[:40].decode(errors='ignore')}_undone_{tail}",
    )
    usual = context.server.database
    with connect(
        context.server.replace(database=maintenance_database(usual, database)),
        application_name="pgrecall undo",
        purpose="undo",
        environment=context.environment,
    ) as connection:
        present = target_facts(connection).databases
        missing = [name for name in (kept, database) if name not in present]
        if missing:
            raise LoadError(
                f"the database {missing[0]!r} is not there any more: nothing can be swapped",
                hint=f"it was dropped or renamed since run {record.run_id}",
            )
        question = f"Shall {kept} be {database} again? Sessions in both are ended."
        if not context.approve(plan, question=question):
            return LoadUndoResult(plan=plan)
        swap_databases(connection, database, kept, plan.loaded_goes_to)
    return LoadUndoResult(
        plan=plan,
        is_undone=True,
        next_steps=(
            f"what was loaded is kept: drop the database {plan.loaded_goes_to} when it is no"
            " longer needed",
        ),
    )


def _swap_of(record: RunRecord) -> tuple[str, str] | None:
    """Database and kept name; None when the run has swapped nothing."""
    for text in record.kept:
        try:
            told = json.loads(text)
        except ValueError:
            continue
        if isinstance(told, dict) and {"database", "kept"} <= told.keys():
            return str(told["database"]), str(told["kept"])
    return None
