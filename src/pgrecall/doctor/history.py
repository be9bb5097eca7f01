"""What the records of runs, drills and dumps tell of trouble. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pgrecall.doctor.facts import Diagnosis, DoctorFacts, DumpLook
from pgrecall.doctor.troubles import TROUBLES
from pgrecall.model.findings import Severity
from pgrecall.model.runs import RunRecord
from pgrecall.postgres.statements import grant_role

_OUT_OF_MEMORY = re.compile(
    r"out of memory|cannot allocate memory|invalid memory alloc request|ended by SIGKILL", re.I
)
_TABLE = re.compile(r'contents of table "((?:[^"]|"")+)"')
_ROLE_MISSING = re.compile(r'roles that the server .* lacks|role "[^"]*" does not exist')
_LONG_LOAD_SECONDS = 3600.0
_JOBS = "4"


def of_history(facts: DoctorFacts) -> Iterator[Diagnosis]:
    """Everything that what has happened tells."""
    yield from _out_of_memory(facts)
    yield from _dump_refused(facts)
    yield from _roles_missing(facts)
    yield from _out_of_range(facts)
    yield from _slow_load(facts)
    yield from _never_drilled(facts)
    yield from _large_objects(facts)


def diagnosis(
    code: str,
    severity: Severity,
    evidence: Sequence[str],
    *,
    subject: str = "",
    commands: Sequence[str] = (),
    advice: str = "",
) -> Diagnosis:
    """A diagnosis with what is declared of its trouble."""
    trouble = TROUBLES[code]
    return Diagnosis(
        severity=severity,
        code=code,
        issue=trouble.issue,
        subject=subject,
        evidence=tuple(evidence),
        cause=trouble.cause,
        commands=tuple(commands),
        advice=advice,
    )


def told(run: RunRecord) -> str:
    """A run in one line, as evidence."""
    at = run.ended_at.strftime("%Y-%m-%d %H:%M:%S")
    words = " ".join(run.message.split())
    return f"{run.command} {run.run_id} ended {at} UTC, {run.error_code or run.outcome}: {words}"


def _last(runs: Sequence[RunRecord], command: str) -> RunRecord | None:
    return next((run for run in reversed(runs) if run.command == command), None)


def _open_failures(facts: DoctorFacts, command: str) -> Iterator[RunRecord]:
    """Failed runs of a command that no good one of the same things has followed."""
    good: list[frozenset[str]] = []
    seen: set[frozenset[str]] = set()
    for run in reversed(facts.runs):
        if run.command != command:
            continue
        things = _things(run)
        if run.outcome in ("ok", "warn"):
            good.append(things)
        elif things not in seen and not any(not one or things <= one for one in good):
            seen.add(things)
            yield run


def _things(run: RunRecord) -> frozenset[str]:
    """The databases that a run was about, as far as its record tells."""
    plan: dict[str, Any] = run.plan
    found = [one.get("name") for one in plan.get("databases", ()) if isinstance(one, dict)]
    found += [plan.get("database") or plan.get("into")]
    return frozenset(str(one) for one in found if one)


def _out_of_memory(facts: DoctorFacts) -> Iterator[Diagnosis]:
    for run in _open_failures(facts, "dump"):
        if not _OUT_OF_MEMORY.search(run.message):
            continue
        table = _TABLE.search(run.message)
        names = sorted(_things(run))
        commands = []
        if table is not None:
            pattern = f'*."{table.group(1)}"'
            commands.append(facts.words.run("dump", *names, "--exclude-table-data", pattern))
        commands.append(facts.words.run("backup"))
        yield diagnosis(
            "dump-out-of-memory", "fail", [told(run)], subject=run.run_id, commands=commands,
            advice="or give pg_dump and the server more memory (in a pod: resources.limits.memory)",
        )  # fmt: skip


def _dump_refused(facts: DoctorFacts) -> Iterator[Diagnosis]:
    for run in _open_failures(facts, "dump"):
        if "permission denied" not in run.message:
            continue
        grant = grant_role("pg_read_all_data", run.role or facts.words.role)
        yield diagnosis(
            "rights-missing", "fail", [told(run)], subject=run.run_id,
            commands=[facts.words.sql(grant), facts.words.run("dump", *sorted(_things(run)))],
            advice="before PostgreSQL 14 there is no such role: dump as a superuser",
        )  # fmt: skip


def _roles_missing(facts: DoctorFacts) -> Iterator[Diagnosis]:
    for run in _open_failures(facts, "load"):
        if not _ROLE_MISSING.search(run.message):
            continue
        source = str(run.plan.get("source", "")).partition(" ")[0]
        into = str(run.plan.get("into", ""))
        commands = []
        if source and into:
            commands = [
                facts.words.run("load", source, "--globals"),
                facts.words.run("load", source, "--into", into, "--create"),
            ]
        yield diagnosis(
            "role-missing", "fail", [told(run)], subject=run.run_id, commands=commands,
            advice="or load without them: --no-owner --no-privileges",
        )  # fmt: skip


def _out_of_range(facts: DoctorFacts) -> Iterator[Diagnosis]:
    run = _last(facts.runs, "restore")
    if run is None or run.error_code != "target-unreachable":
        return
    evidence = [told(run)]
    commands = [facts.words.run("recoverable")]
    if facts.newest_at is not None:
        newest = facts.newest_at.isoformat(sep=" ")
        evidence.append(f"the newest moment that can be reached is {newest}")
        target = str(run.plan.get("target_dir") or "")
        place = ["--target-dir", target] if target else []
        commands.append(facts.words.run("restore", "--to-time", newest, *place, "--dry-run"))
    yield diagnosis(
        "target-out-of-range", "fail", evidence, subject=run.run_id, commands=commands,
        advice="a time needs its zone: 2026-11-22 20:16:37+00",
    )  # fmt: skip


def _slow_load(facts: DoctorFacts) -> Iterator[Diagnosis]:
    run = _last(facts.runs, "load")
    bound = facts.rto_seconds or _LONG_LOAD_SECONDS
    if run is None or run.duration_seconds <= bound or run.plan.get("jobs") != 1:
        return
    database = str(run.plan.get("database", ""))
    source = str(run.plan.get("source", "")).partition(" ")[0]
    is_plain = run.plan.get("source_format") == "plain"
    if is_plain:
        dump = ["dump", database, "--format", "directory", "--jobs", _JOBS]
        commands = [facts.words.run(*dump)]
        advice = "a script is loaded by one session; the next dump can be loaded by several"
    else:
        load = ["load", source, "--into", database, "--swap", "--jobs", _JOBS]
        commands = [facts.words.run(*load)]
        advice = "while it runs, more sessions than cores or disks help little"
    yield diagnosis(
        "load-slow", "warn",
        [f"load {run.run_id} took {run.duration_seconds:.1f} s with one session, and should take"
         f" no more than {bound:g} s"],
        subject=run.run_id, commands=commands, advice=advice,
    )  # fmt: skip


def _never_drilled(facts: DoctorFacts) -> Iterator[Diagnosis]:
    if facts.is_drill_known and facts.drilled is None and facts.backups:
        yield diagnosis(
            "never-drilled", "warn",
            [f"{facts.backups} backup(s), and no record of a drill"],
            commands=[facts.words.run("drill")],
            advice="[schedule] drill does it again and again",
        )  # fmt: skip


def _large_objects(facts: DoctorFacts) -> Iterator[Diagnosis]:
    newest: dict[str, DumpLook] = {}
    kept: set[str] = set()
    for one in facts.dumps:
        newest[one.database] = one
        if one.has_them:
            kept.add(one.database)
    for database, one in newest.items():
        if one.has_them or not one.large_objects:
            continue
        yield diagnosis(
            "large-objects-left-out", "warn" if database in kept else "fail",
            [f"{one.dump_id} of {database} has none of {one.large_objects} large objects:"
             f" {one.left_out_by}"],
            subject=database,
            commands=[facts.words.run("dump", database)],
            advice="or besides it: dump --only-large-objects",
        )  # fmt: skip
