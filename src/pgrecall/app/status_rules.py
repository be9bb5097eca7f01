"""What ``status`` concludes from what was seen. Pure: values in, findings out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from pgrecall.agent.process import AgentSnapshot
from pgrecall.model.drills import DrillRecord
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import Completion
from pgrecall.model.policies import Policy
from pgrecall.model.runs import RunRecord
from pgrecall.settings import TargetSettings

# No transaction that changes a row fits into less WAL: a delete (56 bytes) and its commit (40,
# both with alignment; access/heapam_xlog.h, access/xact.h). A standby snapshot (56) does.
_LEAST_CHANGE_BYTES = 96
# The head of a segment's first page (XLogLongPageHeaderData).
_LONG_HEADER_BYTES = 40
# Clocks of two hosts differ; by more than this, the difference says nothing any more.
_CLOCK_TOLERANCE_SECONDS = 60.0
_SILENT_SECONDS = 60.0
_FAILED = frozenset({"fail", "interrupted"})


class Loss(NamedTuple):
    """What would be lost if the server's host were gone now: at most so many seconds of work.

    ``seconds`` None: nothing could be restored, or it cannot be told. ``basis``
    says why it is not more.
    """

    seconds: float | None
    basis: str


class AgentSight(NamedTuple):
    """The agent of a server on this host: its pid (0: unknown), None when none runs."""

    pid: int | None
    ill: tuple[tuple[str, str], ...] = ()


def loss_now(
    newest_at: datetime | None,
    archived_end: int | None,
    current_lsn: int | None,
    segment_bytes: int,
    now: datetime,
) -> Loss:
    """How much the newest reachable moment is behind the server.

    ``archived_end``: where the WAL that can be replayed ends; ``current_lsn``:
    where the server writes, None when it cannot be asked. ``newest_at``: the last
    commit that can be reached.
    """
    if archived_end is None:
        return Loss(None, "no moment can be reached")
    if current_lsn is not None:
        behind = max(0, current_lsn - archived_end)
        head = _LONG_HEADER_BYTES if archived_end % segment_bytes == 0 else 0
        if behind < _LEAST_CHANGE_BYTES + head:
            return Loss(0.0, "every change of the server is in the repository")
    if newest_at is None:
        return Loss(None, "the WAL that can be reached holds no commit")
    ahead = (newest_at - now).total_seconds()
    if ahead > _CLOCK_TOLERANCE_SECONDS:
        return Loss(
            None, f"the last commit is {ahead:.0f} s ahead of this clock: one was set wrong"
        )
    seconds = max(0.0, -ahead)
    if current_lsn is None:
        return Loss(seconds, "at most: the time since the last commit that can be reached")
    return Loss(seconds, f"at most: {behind:,} bytes of WAL are not in the repository yet")


def targets_of(targets: TargetSettings, policy: Policy) -> TargetSettings:
    """What a server is held to: [targets], and where that names none, the policy's."""
    return targets.replace(
        rpo_seconds=targets.rpo_seconds or policy.rpo_seconds,
        rto_seconds=targets.rto_seconds or policy.rto_seconds,
    )


def target_findings(
    targets: TargetSettings,
    loss: Loss,
    rto_seconds: float | None,
    backup: Completion | None,
    now: datetime,
) -> list[Finding]:
    """Targets that are missed (fail), and those that nobody measured (warn)."""
    found = []
    if targets.rpo_seconds and (loss.seconds is None or loss.seconds > targets.rpo_seconds):
        reached = "is not known" if loss.seconds is None else f"is {loss.seconds:.1f} s"
        found.append(
            _fail(
                "rpo-missed",
                f"the RPO {reached} and should be {targets.rpo_seconds:g} s: {loss.basis}",
                "look at pgrecall wal status; archive_timeout or streaming bounds what is lost",
            )
        )
    if targets.rto_seconds and rto_seconds is None:
        found.append(
            _warn(
                "rto-not-measured",
                f"the RTO should be {targets.rto_seconds:g} s, and nobody measured it of late",
                "pgrecall drill measures it, and a restore with --start",
            )
        )
    elif rto_seconds is not None and 0 < targets.rto_seconds < rto_seconds:
        found.append(
            _fail(
                "rto-missed",
                f"the last RTO measured is {rto_seconds:.1f} s and should be"
                f" {targets.rto_seconds:g} s",
                "back up more often, so that less WAL is replayed, or on faster disks",
            )
        )
    if backup is not None and targets.backup_age_seconds:
        age = (now - backup.stopped_at).total_seconds()
        if age > targets.backup_age_seconds:
            found.append(
                _fail(
                    "backup-old",
                    f"the last good backup is {timedelta(seconds=round(age))} old and should be"
                    f" no older than {timedelta(seconds=round(targets.backup_age_seconds))}",
                    "pgrecall backup; and see why the schedule did not",
                )
            )
    return found


def drill_findings(
    targets: TargetSettings, drilled: DrillRecord | None, now: datetime
) -> list[Finding]:
    """A drill that failed or is too old; ``drilled`` is the newest one, None: there was none."""
    if drilled is not None and drilled.result == "fail":
        return [
            _fail(
                "drill-failed",
                f"the last drill failed: {drilled.message or 'see its findings'}",
                f"pgrecall drills show {drilled.drill_id}",
                drilled.drill_id,
            )
        ]
    if not targets.drill_age_seconds:
        return []
    wanted = timedelta(seconds=round(targets.drill_age_seconds))
    if drilled is None:
        said = f"no restore was ever drilled, and one should be no older than {wanted}"
    elif (now - drilled.ended_at).total_seconds() > targets.drill_age_seconds:
        age = timedelta(seconds=round((now - drilled.ended_at).total_seconds()))
        said = f"the last good drill is {age} old and should be no older than {wanted}"
    else:
        return []
    return [_fail("drill-old", said, "pgrecall drill --at random; [schedule] drill does it")]


def run_findings(runs: Sequence[RunRecord]) -> list[Finding]:
    """Commands whose last run failed, and planned runs that were left out (warn)."""
    last: dict[str, RunRecord] = {}
    missed: dict[str, int] = {}
    for run in runs:
        last[run.command] = run
        missed[run.command] = missed.get(run.command, 0) + run.trigger.missed
    found = [
        _warn(
            "run-failed",
            f"the last {run.command} did not end well: {run.error_code or run.outcome}"
            + (f", {run.message}" if run.message else ""),
            f"run it again: pgrecall {run.command}",
            run.run_id,
        )
        for run in last.values()
        if run.outcome in _FAILED
    ]
    found += [
        _warn(
            "runs-missed",
            f"{count} planned run(s) of {command} were left out",
            "the agent was down, or runs take longer than their interval",
            command,
        )
        for command, count in missed.items()
        if count
    ]
    return found


def agent_findings(agent: AgentSight, *, is_expected: bool) -> list[Finding]:
    """An agent that should run and does not, and components that are not at work (warn)."""
    if agent.pid is None:
        if not is_expected:
            return []
        return [
            _warn(
                "agent-not-running",
                "no agent runs on this host, and the settings give it something to do",
                "start it: pgrecall agent, or its systemd unit",
            )
        ]
    return [
        _warn("component-ill", f"the agent's {name}: {what}", "see the agent's log", name)
        for name, what in agent.ill
    ]


def failed_count(runs: Sequence[RunRecord]) -> int:
    """How many of the runs failed or were interrupted."""
    return sum(run.outcome in _FAILED for run in runs)


def _warn(code: str, message: str, hint: str, subject: str = "") -> Finding:
    return Finding(severity="warn", code=code, message=message, hint=hint, subject=subject)


def _fail(code: str, message: str, hint: str, subject: str = "") -> Finding:
    return Finding(severity="fail", code=code, message=message, hint=hint, subject=subject)


def ill_components(snapshot: AgentSnapshot, now: datetime) -> tuple[tuple[str, str], ...]:
    """Components that are not at work, and the agent itself when it says nothing any more."""
    # What it said "in the future" was said before the clock was set back.
    silent_seconds = abs((now - snapshot.written_at).total_seconds())
    if silent_seconds > _SILENT_SECONDS:
        return (("process", f"it has said nothing for {silent_seconds:.0f} s"),)
    return tuple(
        (one.name, f"{one.state} {one.last_error}".strip())
        for one in snapshot.components
        if one.state != "running"
    )
