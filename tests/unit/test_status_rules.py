"""What status concludes: the loss, the targets, the runs, the agent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgrecall.agent.process import AgentSnapshot
from pgrecall.app.status_rules import (
    AgentSight,
    Loss,
    agent_findings,
    drill_findings,
    ill_components,
    loss_now,
    run_findings,
    target_findings,
    targets_of,
)
from pgrecall.model.drills import DrillRecord
from pgrecall.model.findings import Severity
from pgrecall.model.policies import PROFILES, Policy
from pgrecall.model.runs import RunRecord, Trigger
from pgrecall.settings import TargetSettings
from tests.unit.test_catalog import completion

NOW = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)
HOUR_AGO = NOW - timedelta(hours=1)
MIB = 1 << 20


def run(command: str, outcome: str = "ok", missed: int = 0) -> RunRecord:
    return RunRecord(
        run_id="r-20261122T201637Z-7k3q",
        server="main",
        command=command,
        host="h",
        started_at=HOUR_AGO,
        ended_at=NOW,
        outcome=outcome,  # type: ignore[arg-type]
        exit_status=0 if outcome == "ok" else 4,
        error_code="" if outcome == "ok" else "store",
        trigger=Trigger(by="schedule", missed=missed),
    )


@pytest.mark.parametrize(
    ("archived_end", "behind", "seconds"),
    [
        (16 * MIB, 0, 0.0),
        (16 * MIB, 96, 0.0),  # the head of a segment and a standby snapshot
        (16 * MIB, 136, 3600.0),  # a delete and its commit fit
        (16 * MIB + 500, 56, 0.0),
        (16 * MIB + 500, 96, 3600.0),
    ],
)
def test_loss_is_nothing_only_where_no_change_fits(
    archived_end: int, behind: int, seconds: float
) -> None:
    assert loss_now(HOUR_AGO, archived_end, archived_end + behind, 16 * MIB, NOW).seconds == seconds


def test_loss_of_a_server_that_does_not_answer_is_the_time_since_the_last_commit() -> None:
    loss = loss_now(HOUR_AGO, 16 * MIB, None, 16 * MIB, NOW)
    assert loss.seconds == 3600
    assert loss.basis.startswith("at most")


@pytest.mark.parametrize(("ahead_seconds", "seconds"), [(59, 0.0), (3600, None)])
def test_a_commit_in_the_future_is_no_proof_of_a_small_loss(
    ahead_seconds: int, seconds: float | None
) -> None:
    """The clock of this host was set back: nobody knows how old that commit is."""
    newest = NOW + timedelta(seconds=ahead_seconds)
    loss = loss_now(newest, 16 * MIB, 40 * MIB, 16 * MIB, NOW)
    assert loss.seconds == seconds
    assert seconds is not None or "3600 s ahead of this clock" in loss.basis


def test_loss_is_unknown_and_never_0_without_a_moment() -> None:
    assert loss_now(None, None, 5, 16 * MIB, NOW).seconds is None
    assert loss_now(None, 16 * MIB, 40 * MIB, 16 * MIB, NOW).seconds is None


def codes(targets: TargetSettings, loss: Loss, rto: float | None, age_hours: float) -> set[str]:
    backup = completion("b-20261122T201637Z-7k3q", stopped_at=NOW - timedelta(hours=age_hours))
    found = target_findings(targets, loss, rto, backup, NOW)
    assert all(finding.hint for finding in found)
    return {finding.code for finding in found}


def test_targets() -> None:
    targets = TargetSettings(rpo_seconds=60.0, rto_seconds=600.0, backup_age_seconds=86_400.0)
    assert codes(targets, Loss(60, ""), 600, 24) == set()
    assert codes(targets, Loss(61, ""), 601, 25) == {"rpo-missed", "rto-missed", "backup-old"}
    assert codes(targets, Loss(None, ""), None, 1) == {"rpo-missed", "rto-not-measured"}
    assert codes(TargetSettings(), Loss(None, ""), 1e9, 1e4) == set()


def test_a_policys_targets_count_where_none_are_set() -> None:
    policy = PROFILES["critical"]
    found = targets_of(TargetSettings(rto_seconds=7.0, backup_age_seconds=9.0), policy)
    assert (found.rpo_seconds, found.rto_seconds, found.backup_age_seconds) == (60.0, 7.0, 9.0)
    assert targets_of(TargetSettings(), Policy()) == TargetSettings()


def test_the_last_run_of_each_command_counts() -> None:
    good = run_findings([run("backup", "fail"), run("backup"), run("check")])
    assert good == []
    bad = run_findings([run("backup"), run("backup", "interrupted", missed=2), run("check")])
    assert [finding.code for finding in bad] == ["run-failed", "runs-missed"]
    assert {finding.severity for finding in bad} == {"warn"}


def test_an_agent_is_missed_only_where_it_has_something_to_do() -> None:
    assert agent_findings(AgentSight(None), is_expected=False) == []
    (missing,) = agent_findings(AgentSight(None), is_expected=True)
    assert missing.code == "agent-not-running"
    (ill,) = agent_findings(AgentSight(7, (("pusher", "waiting"),)), is_expected=True)
    assert (ill.code, ill.subject) == ("component-ill", "pusher")


@pytest.mark.parametrize(
    ("seconds", "is_silent"), [(5, False), (-5, False), (90, True), (-90, True)]
)
def test_an_agent_that_says_nothing_is_seen_whichever_way_the_clock_jumped(
    seconds: int, is_silent: bool
) -> None:
    said = AgentSnapshot(
        pid=1,
        server="main",
        tool_version="0",
        started_at=HOUR_AGO,
        written_at=NOW - timedelta(seconds=seconds),
        components=(),
    )
    assert ill_components(said, NOW) == (
        (("process", "it has said nothing for 90 s"),) if is_silent else ()
    )


def drilled(age: timedelta, result: Severity = "ok") -> DrillRecord:
    return DrillRecord(
        drill_id="t-20261122T201637Z-7k3q", run_id="r", server="main", host="h", item_id="b",
        target="latest", started_at=NOW - age, ended_at=NOW - age, result=result,
    )  # fmt: skip


def test_a_drill_that_failed_or_is_too_old_is_told() -> None:
    wants = TargetSettings(drill_age_seconds=86_400.0)
    day = timedelta(days=1)
    assert drill_findings(TargetSettings(), None, NOW) == []
    assert drill_findings(wants, drilled(day / 2), NOW) == []
    found = {
        "never": drill_findings(wants, None, NOW),
        "old": drill_findings(wants, drilled(2 * day), NOW),
        "failed": drill_findings(TargetSettings(), drilled(day / 2, "fail"), NOW),
    }
    assert {name: [one.code for one in some] for name, some in found.items()} == {
        "never": ["drill-old"], "old": ["drill-old"], "failed": ["drill-failed"],
    }  # fmt: skip
