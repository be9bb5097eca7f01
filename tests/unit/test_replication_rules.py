"""What the state of replication means."""

from __future__ import annotations

from typing import Any

import pytest

from pgrecall.check.replication_rules import (
    ReplicationBounds,
    receiving_findings,
    replication_slot_findings,
    standby_findings,
)
from pgrecall.postgres.replication_state import ReceivingState, StandbyState
from pgrecall.postgres.slots import SlotState

BOUNDS = ReplicationBounds(
    standbys=("one",), warn_seconds=60, fail_seconds=600, warn_bytes=1000, fail_bytes=9000,
    warn_retained_bytes=1000, fail_retained_bytes=9000,
)  # fmt: skip


def standby(**fields: Any) -> StandbyState:
    usual = {"name": "one", "address": "", "slot": "", "state": "streaming", "sync_state": "async"}
    return StandbyState(**{**usual, "replay_lag_bytes": 0, **fields})


def told(found: list[Any]) -> list[tuple[str, str]]:
    return [(one.severity, one.code) for one in found]


@pytest.mark.parametrize(
    ("standbys", "synchronous", "wanted"),
    [
        ([standby()], "", []),
        ([], "", [("fail", "standby-missing")]),
        ([standby(name="two")], "", [("fail", "standby-missing")]),
        ([standby(state="catchup")], "", [("warn", "standby-not-streaming")]),
        ([standby(), standby(name="b", state="backup", replay_lag_bytes=None)], "", []),
        ([standby(replay_lag_bytes=1001)], "", [("warn", "standby-lag-bytes")]),
        ([standby(replay_lag_bytes=9001)], "", [("fail", "standby-lag-bytes")]),
        (
            [standby(replay_lag_bytes=5, replay_lag_seconds=601.0)],
            "",
            [("fail", "standby-lag-seconds")],
        ),
        # What was measured last says nothing of who has everything by now.
        ([standby(replay_lag_bytes=0, replay_lag_seconds=601.0)], "", []),
        # A receiver replays nothing: what it has flushed counts.
        (
            [standby(replay_lag_bytes=None, flush_lag_bytes=1001)],
            "",
            [("warn", "standby-lag-bytes")],
        ),
        ([standby()], "one", [("fail", "no-synchronous-standby")]),
        ([standby(sync_state="quorum")], "ANY 1 (one)", []),
        # What the role may not see is unknown, and not missing.
        (
            [standby(name="", state="", replay_lag_bytes=None)],
            "one",
            [("warn", "replication-rights"), ("warn", "standby-unknown")],
        ),
    ],
)
def test_standbys(
    standbys: list[StandbyState], synchronous: str, wanted: list[tuple[str, str]]
) -> None:
    assert told(standby_findings(standbys, synchronous, BOUNDS)) == wanted


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (ReceivingState(is_wanted=True, status="streaming", behind_bytes=0), []),
        (ReceivingState(is_wanted=False), []),
        (ReceivingState(is_wanted=True), [("fail", "standby-does-not-receive")]),
        (
            ReceivingState(is_wanted=True, status="waiting"),
            [("fail", "standby-does-not-receive")],
        ),
        (ReceivingState(is_wanted=True, status="unknown"), [("warn", "replication-rights")]),
        (
            ReceivingState(
                is_wanted=True, status="streaming", behind_bytes=1, delay_seconds=61.0,
                is_paused=True,
            ),
            [("warn", "replay-paused"), ("warn", "standby-lag-seconds")],
        ),
    ],
)  # fmt: skip
def test_a_standby_itself(state: ReceivingState, wanted: list[tuple[str, str]]) -> None:
    assert told(receiving_findings(state, BOUNDS)) == wanted


def test_slots_that_keep_too_much() -> None:
    slots = [
        SlotState(name="a", kind="physical", is_active=True, retained_bytes=1000),
        SlotState(name="b", kind="physical", is_active=True, retained_bytes=1001),
        SlotState(name="c", kind="logical", is_active=True, retained_bytes=9001),
        SlotState(name="d", kind="physical", is_active=False, wal_status="lost"),
    ]
    assert told(replication_slot_findings(slots, BOUNDS)) == [
        ("fail", "slot-lost"),
        ("warn", "slot-retains"),
        ("fail", "slot-retains"),
    ]
