"""What the state of replication means: facts and bounds in, findings out. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pgrecall.check.wal_state import slot_findings
from pgrecall.model.findings import Finding, Severity
from pgrecall.postgres.replication_state import ReceivingState, StandbyState
from pgrecall.postgres.slots import SlotState

_MONITOR = "as a superuser: GRANT pg_monitor TO the role"


class ReplicationBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Beyond these it is a warning or a failure; 0: no bound. ``standbys``: who is to stream."""

    standbys: tuple[str, ...] = ()
    warn_seconds: float = 0
    fail_seconds: float = 0
    warn_bytes: int = 0
    fail_bytes: int = 0
    warn_retained_bytes: int = 0
    fail_retained_bytes: int = 0


def standby_findings(
    standbys: Sequence[StandbyState], synchronous: str, bounds: ReplicationBounds
) -> list[Finding]:
    """What is wrong with those that stream from this server, and who does not."""
    is_hidden = any(not one.state for one in standbys)
    found = [_hidden()] if is_hidden else []
    names = {one.name for one in standbys}
    for name in bounds.standbys:
        if name not in names:
            found.append(_missing(name, is_hidden=is_hidden))
    streaming = [one for one in standbys if one.state and one.state != "backup"]
    for one in streaming:
        if one.state != "streaming":
            found.append(
                Finding(
                    "warn",
                    "standby-not-streaming",
                    f"it does not stream yet: its state is {one.state}",
                    subject=one.name,
                    hint="wait until it has caught up; its log says what it does",
                )
            )
        lag = one.replay_lag_bytes if one.replay_lag_bytes is not None else one.flush_lag_bytes
        is_replaying = one.replay_lag_bytes is not None
        seconds = one.replay_lag_seconds if is_replaying else one.flush_lag_seconds
        found += _lag(one.name, lag, seconds, bounds)
    if (
        synchronous
        and not is_hidden
        and not any(one.sync_state in {"sync", "quorum"} for one in streaming)
    ):
        found.append(
            Finding(
                "fail",
                "no-synchronous-standby",
                f"synchronous_standby_names is {synchronous!r} and none of them streams: commits"
                " wait",
                hint="start the standby, or change synchronous_standby_names and reload",
            )
        )
    return found


def receiving_findings(state: ReceivingState, bounds: ReplicationBounds) -> list[Finding]:
    """What is wrong with a standby itself."""
    found = []
    if state.is_wanted and state.status not in {"streaming", "unknown"}:
        said = f"the receiver is {state.status}" if state.status else "no receiver runs"
        found.append(
            Finding(
                "fail",
                "standby-does-not-receive",
                f"it does not stream from its primary: {said}",
                hint="its log says why; is the primary up, and does its pg_hba.conf admit it?",
            )
        )
    if state.status == "unknown":
        found.append(_hidden())
    if state.is_paused:
        found.append(
            Finding(
                "warn",
                "replay-paused",
                "replay is paused: it falls behind",
                hint="SELECT pg_wal_replay_resume()",
            )
        )
    return found + _lag("replay", state.behind_bytes, state.delay_seconds, bounds)


def replication_slot_findings(
    slots: Sequence[SlotState], bounds: ReplicationBounds
) -> list[Finding]:
    """As slot_findings, and slots that keep more than they may."""
    found = slot_findings(slots)
    for slot in slots:
        passed = _passed(
            slot.retained_bytes, bounds.warn_retained_bytes, bounds.fail_retained_bytes
        )
        if passed is not None:
            severity, bound = passed
            found.append(
                Finding(
                    severity,
                    "slot-retains",
                    f"it keeps {slot.retained_bytes} bytes of WAL, more than {bound:g}",
                    subject=slot.name,
                    hint="let its reader catch up, drop it (pgrecall wal slots --drop), or set"
                    " max_slot_wal_keep_size",
                )
            )
    return found


def _lag(
    subject: str, lag_bytes: int | None, seconds: float | None, bounds: ReplicationBounds
) -> list[Finding]:
    """One finding for each bound that is passed; who has everything is not behind in time."""
    found = []
    if lag_bytes == 0:
        seconds = 0.0
    for what, value, warn, fail in (
        ("bytes", lag_bytes, bounds.warn_bytes, bounds.fail_bytes),
        ("seconds", seconds, bounds.warn_seconds, bounds.fail_seconds),
    ):
        passed = _passed(value, warn, fail)
        if passed is not None:
            severity, bound = passed
            found.append(
                Finding(
                    severity,
                    f"standby-lag-{what}",
                    f"it is {value:g} {what} behind, more than {bound:g}",
                    subject=subject,
                    hint="is it, or the network, too slow, or does a query hold its replay up?",
                )
            )
    return found


def _passed(value: float | None, warn: float, fail: float) -> tuple[Severity, float] | None:
    if value is None:
        return None
    if fail and value > fail:
        return "fail", fail
    return ("warn", warn) if warn and value > warn else None


def _missing(name: str, *, is_hidden: bool) -> Finding:
    if is_hidden:
        return Finding(
            "warn", "standby-unknown", "whether it streams cannot be seen", name, _MONITOR
        )
    return Finding(
        "fail",
        "standby-missing",
        "it is expected, and does not stream",
        subject=name,
        hint="start it; its log says why it cannot connect. It is listed in [replication] standbys",
    )


def _hidden() -> Finding:
    return Finding(
        "warn",
        "replication-rights",
        "the role may not see the state of replication",
        hint=_MONITOR,
    )
