"""``drills list`` and ``drills show``: the evidence."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import main_repository
from pgrecall.model.drills import DrillRecord
from pgrecall.model.findings import Finding
from pgrecall.repository.drill_log import DrillLog


class DrillLine(msgspec.Struct, frozen=True):
    """One line of the list."""

    drill_id: str
    item_id: str
    target: str
    started_at: datetime
    restore_seconds: float | None
    total_seconds: float | None
    checks: str
    result: str


class DrillList(msgspec.Struct, frozen=True):
    """The drills of a server, oldest first."""

    server: str
    repository: str
    drills: tuple[DrillLine, ...]
    findings: tuple[Finding, ...] = ()


class DrillDetails(msgspec.Struct, frozen=True):
    """One drill."""

    drill: DrillRecord


def list_drills(context: RunContext) -> DrillList:
    """The drills of the chosen server, from its main repository."""
    opened = main_repository(context)
    records, findings = DrillLog(opened.store, context.server.name).all()
    return DrillList(
        server=context.server.name,
        repository=opened.settings.name,
        drills=tuple(_line(record) for record in records),
        findings=tuple(findings),
    )


def show_drill(context: RunContext, drill_id: str) -> DrillDetails:
    """One drill; raises UsageError when there is none."""
    return DrillDetails(DrillLog(main_repository(context).store, context.server.name).get(drill_id))


def _line(record: DrillRecord) -> DrillLine:
    took = record.seconds
    passed = sum(check.is_passed for check in record.checks)
    return DrillLine(
        drill_id=record.drill_id,
        item_id=record.item_id,
        target=record.target,
        started_at=record.started_at,
        restore_seconds=round(took.restore + took.recovery, 3) if took is not None else None,
        total_seconds=took.total if took is not None else None,
        checks=f"{passed} of {len(record.checks)}" if record.checks else "",
        result=record.result,
    )
