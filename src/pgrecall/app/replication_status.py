"""``replication status``: standbys, slots and lag, for people and for monitoring."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from pgrecall.app.archive_wait import server_session
from pgrecall.app.context import RunContext
from pgrecall.check.replication_rules import (
    ReplicationBounds,
    receiving_findings,
    replication_slot_findings,
    standby_findings,
)
from pgrecall.model.findings import Finding, Severity, worst
from pgrecall.postgres.replication_state import (
    ReceivingState,
    StandbyState,
    receiving_state,
    server_side,
    standby_states,
)
from pgrecall.postgres.slots import SlotState, list_slots


class ReplicationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What ``replication status`` prints; ``result`` is the gravest of the findings.

    ``receiving`` of a standby only. ``lsn``: where the server is, on a standby what it received.
    """

    server: str
    result: Severity
    asked_at: datetime
    role: str
    lsn: str
    synchronous_standby_names: str = ""
    receiving: ReceivingState | None = None
    standbys: tuple[StandbyState, ...] = ()
    slots: tuple[SlotState, ...] = ()
    findings: tuple[Finding, ...] = ()


def run_replication_status(
    context: RunContext, overrides: Mapping[str, float | None]
) -> ReplicationStatus:
    """Ask the server. ``overrides``: bounds by the names of [replication], None: as set there.

    Raises PostgresError and its kinds when the server cannot be asked.
    """
    chosen = context.settings.replication
    given = {name: value for name, value in overrides.items() if value is not None}
    bounds = msgspec.convert({**vars(chosen), **given}, ReplicationBounds)
    with server_session(context, "replication status") as connection:
        side = server_side(connection)
        receiving = receiving_state(connection) if side.is_in_recovery else None
        standbys = standby_states(connection)
        slots = list_slots(connection)
    synchronous = "" if side.is_in_recovery else side.synchronous
    findings = standby_findings(standbys, synchronous, bounds)
    if receiving is not None:
        findings += receiving_findings(receiving, bounds)
    findings += replication_slot_findings(slots, bounds)
    return ReplicationStatus(
        server=context.server.name,
        result=worst(findings),
        asked_at=side.asked_at,
        role="standby" if side.is_in_recovery else "primary",
        lsn=side.lsn,
        synchronous_standby_names=synchronous,
        receiving=receiving,
        standbys=tuple(standbys),
        slots=tuple(slots),
        findings=tuple(findings),
    )


def replication_facts(context: RunContext) -> dict[str, int | float | None]:
    """For the agent's metrics: the worst of standbys and slots, None where nothing is known.

    Raises PostgresError and its kinds.
    """
    found = run_replication_status(context, {})
    expected = set(context.settings.replication.standbys)
    streaming = [one for one in found.standbys if one.state == "streaming"]
    lags = [one.replay_lag_bytes for one in streaming if one.replay_lag_bytes is not None]
    seconds = [
        0.0 if one.replay_lag_bytes == 0 else one.replay_lag_seconds or 0.0 for one in streaming
    ]
    retained = [one.retained_bytes for one in found.slots if one.retained_bytes is not None]
    return {
        "streaming": len(streaming),
        "missing": len(expected - {one.name for one in found.standbys}),
        "lag_bytes": max(lags, default=None),
        "lag_seconds": max(seconds, default=None),
        "retained_bytes": max(retained, default=None),
    }
