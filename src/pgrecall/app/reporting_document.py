"""The auditor's report as a document in Markdown; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from pgrecall.app.reporting import AuditReport, ReportedRun
from pgrecall.model.findings import Finding
from pgrecall.model.policies import KEEP_RULES, Policy

_NONE = "none"


def report_document(report: AuditReport) -> str:
    """The whole document."""
    lines = [
        f"# Backup and recovery of {_cell(report.server)}",
        "",
        f"From {_time(report.since_at)} to {_time(report.until_at)}; made {_time(report.made_at)}.",
        "",
        f"Result: **{report.result}**."
        + ("" if report.is_complete else " **Not all records could be read: see Findings.**"),
        "",
        *_targets(report),
        *_policies(report),
        *_repositories(report),
        *_runs("Backups, dumps and captures", report.made),
        *_drills(report),
        *_runs("Who restored, exported or used keys", report.uses),
        *_holds(report),
        *_runs("Runs that failed or were interrupted", report.failed),
        *_trail(report),
        *_findings(report),
    ]
    return "\n".join(lines) + "\n"


def _targets(report: AuditReport) -> list[str]:
    status = report.status
    rows = [
        (
            "RPO: work lost at most, now",
            _span(status.rpo_seconds),
            _target(status.rpo_target_seconds),
            _judged(status.rpo_seconds, status.rpo_target_seconds),
        ),
        (
            "RTO: slowest restore or drill of the period",
            _span(report.rto_seconds),
            _target(status.rto_target_seconds),
            _judged(report.rto_seconds, status.rto_target_seconds),
        ),
        (
            f"age of the newest good backup {status.last_backup_id}".rstrip(),
            _span(status.last_backup_age_seconds),
            _target(status.backup_age_target_seconds),
            _judged(status.last_backup_age_seconds, status.backup_age_target_seconds),
        ),
    ]
    newest = _time(status.newest_at) if status.newest_at is not None else "not known"
    return [
        "## Targets",
        "",
        *_table(("what", "reached", "target", "result"), rows),
        "",
        f"The newest moment that can be reached: {newest}"
        + (f" (LSN {status.newest_lsn})." if status.newest_lsn else "."),
        "",
    ]


def _policies(report: AuditReport) -> list[str]:
    rows = [
        (one.repository, one.policy.name or _NONE, one.policy.profile, _rules(one.policy))
        for one in report.policies
    ]
    return ["## Policies", "", *_table(("repository", "policy", "profile", "keeps"), rows), ""]


def _rules(policy: Policy) -> str:
    if policy.keeps_everything:
        return "everything"
    kept = [
        f"{name.removeprefix('keep_')} {getattr(policy, name)}"
        for name in KEEP_RULES
        if getattr(policy, name)
    ]
    window = policy.pitr_window_hours
    return ", ".join([*kept, f"every moment of {window} hours" if window else "every moment"])


def _repositories(report: AuditReport) -> list[str]:
    found = report.repositories
    rows = [
        (
            one.name,
            one.role,
            one.medium + (", off-site" if one.is_offsite else ""),
            _yes(one.is_encrypted),
            _yes(one.is_immutable),
            f"{one.backups}" + (f", {one.damaged} damaged" if one.damaged else ""),
            _last(one.last_verified_at, one.last_verified_result),
            _last(one.last_drilled_at, None),
        )
        for one in found.repositories
    ]
    heads = ("repository", "role", "medium", "encrypted", "immutable", "backups", "verified")
    lines = ["## Repositories", "", *_table((*heads, "drilled"), rows), ""]
    lines += [f"3-2-1 rule {'met' if found.rule.is_met else 'not met'}: {found.rule.said}.", ""]
    return lines


def _runs(title: str, runs: Sequence[ReportedRun]) -> list[str]:
    rows = [
        (
            _time(one.run.ended_at),
            one.run.command,
            one.run.backup_id or _subject(one),
            one.run.outcome + (f" ({one.run.error_code})" if one.run.error_code else ""),
            f"{one.run.user}@{one.run.host}".strip("@"),
            one.run.run_id,
            one.repository,
        )
        for one in runs
    ]
    heads = ("ended", "command", "what", "outcome", "who", "run", "repository")
    return [f"## {title}", "", *_table(heads, rows), ""]


def _subject(one: ReportedRun) -> str:
    plan = one.run.plan
    return next((str(plan[name]) for name in ("source", "item", "path", "run") if name in plan), "")


def _drills(report: AuditReport) -> list[str]:
    rows = [
        (
            _time(one.started_at),
            one.item_id,
            one.target,
            _span(one.seconds.restore + one.seconds.recovery if one.seconds else None),
            f"{sum(check.is_passed for check in one.checks)} of {len(one.checks)}",
            one.result + (f" ({one.error_code})" if one.error_code else ""),
            one.drill_id,
        )
        for one in report.drills
    ]
    heads = ("began", "item", "target", "until it answered", "checks passed", "result", "drill")
    return ["## Drills", "", *_table(heads, rows), ""]


def _holds(report: AuditReport) -> list[str]:
    holds = [
        (
            one.hold.item_id,
            one.hold.reason,
            _time(one.hold.held_at),
            _time(one.hold.until) if one.hold.until is not None else "released",
            one.repository,
        )
        for one in report.holds
    ]
    decisions = [
        (
            _time(one.recorded_at),
            one.kind,
            one.item_id,
            one.reason,
            one.host,
            one.run_id,
            one.repository,
        )
        for one in report.decisions
    ]
    return [
        "## Holds",
        "",
        *_table(("item", "reason", "since", "until it is", "repository"), holds),
        "",
        "## What was held, released, expired, brought back and purged",
        "",
        *_table(("when", "what", "item", "reason", "host", "run", "repository"), decisions),
        "",
    ]


def _trail(report: AuditReport) -> list[str]:
    trail = report.trail
    unchained = f", {trail.unchained} from before there were chains" if trail.unchained else ""
    return [
        "## The audit trail",
        "",
        f"{trail.records} records in {len(trail.chains)} chains{unchained}: {trail.result}"
        + ("." if trail.findings else ", none is missing or changed."),
        "",
    ]


def _findings(report: AuditReport) -> list[str]:
    found: list[Finding] = [
        *report.findings,
        *report.status.findings,
        *report.repositories.findings,
        *report.trail.findings,
    ]
    rows = [(one.severity, one.code, one.subject, one.message, one.hint) for one in found]
    return ["## Findings", "", *_table(("severity", "code", "about", "what", "mend"), rows)]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    if not lines:
        return [f"({_NONE})"]
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *lines]


def _cell(text: str) -> str:
    """What names and messages hold cannot break the table, or pass for markup."""
    safe = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(safe.split())


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _target(seconds: float) -> str:
    return _span(seconds) if seconds else _NONE


def _judged(reached: float | None, target: float) -> str:
    if not target:
        return ""
    if reached is None:
        return "not shown"
    return "met" if reached <= target else "**missed**"


def _yes(value: bool | None) -> str:
    return "not known" if value is None else ("yes" if value else "no")


def _last(moment: datetime | None, result: str | None) -> str:
    if moment is None:
        return "never"
    return _time(moment) + (f" ({result})" if result else "")
