"""From facts to diagnoses. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from pgrecall.doctor.facts import Diagnosis, DoctorFacts, Place, Recovering
from pgrecall.doctor.history import diagnosis, of_history
from pgrecall.doctor.mending import heal, limit_slots, mend
from pgrecall.doctor.troubles import BEHIND_FINDING, TROUBLES
from pgrecall.model.findings import Finding, Severity

_GRAVITY: dict[Severity, int] = {"fail": 0, "warn": 1, "ok": 2}
#: Of these one diagnosis says everything; of the others there is one for each subject.
_ONE_OF_EACH = frozenset({"archiving-fails", "archive-behind", "server-unreachable", "backup-none"})


def diagnose(facts: DoctorFacts) -> list[Diagnosis]:
    """Every trouble once, the gravest first, then in the order of their declaration."""
    found = [
        *_of_findings(facts),
        *_unseen(facts),
        *_slots(facts),
        *_holes(facts),
        *_damage(facts),
        *_recovering(facts),
        *_places(facts),
        *of_history(facts),
    ]
    order = list(TROUBLES)
    merged = _merged(found)
    return sorted(merged, key=lambda one: (_GRAVITY[one.severity], order.index(one.code)))


def _merged(found: Iterable[Diagnosis]) -> list[Diagnosis]:
    """Several looks at one thing: their evidence together, the gravest severity, all commands."""
    known: dict[tuple[str, str], Diagnosis] = {}
    for one in found:
        key = (one.code, "" if one.code in _ONE_OF_EACH else one.subject)
        before = known.get(key)
        if before is None:
            known[key] = one
            continue
        gravest = min(before.severity, one.severity, key=lambda severity: _GRAVITY[severity])
        known[key] = msgspec.structs.replace(
            before,
            severity=gravest,
            evidence=tuple(dict.fromkeys((*before.evidence, *one.evidence))),
            commands=tuple(dict.fromkeys((*before.commands, *one.commands))),
            advice=before.advice or one.advice,
        )
    return list(known.values())


def _of_findings(facts: DoctorFacts) -> Iterator[Diagnosis]:
    explained = _explained_runs(facts)
    for finding in facts.findings:
        code = BEHIND_FINDING.get(finding.code, "other")
        if finding.severity == "ok" or (code == "run-failed" and finding.subject in explained):
            continue
        found = mend(code, finding, facts)
        yield diagnosis(
            code,
            finding.severity,
            [*_evidence(code, finding), *_measured(code, facts)],
            subject=finding.subject,
            commands=found.commands,
            advice=found.advice,
        )


def _explained_runs(facts: DoctorFacts) -> set[str]:
    """Runs whose failure has a diagnosis of its own."""
    return {one.subject for one in of_history(facts)}


def _evidence(code: str, finding: Finding) -> list[str]:
    said = f"{finding.code}: {finding.message}" if code == "other" else finding.message
    return [" ".join(said.split())]


def _measured(code: str, facts: DoctorFacts) -> list[str]:
    """Where the time of the last drill went, when a restore is too slow."""
    took = facts.drilled.seconds if facts.drilled is not None else None
    if code != "restore-slow" or took is None:
        return []
    return [
        f"the last drill took {took.restore:.1f} s to write files and {took.recovery:.1f} s to"
        " replay WAL"
    ]


def _unseen(facts: DoctorFacts) -> Iterator[Diagnosis]:
    is_down = any(BEHIND_FINDING.get(one.code) == "server-unreachable" for one in facts.findings)
    for one in facts.seen:
        # That the server does not answer is a diagnosis already, with all that it explains.
        if one.problem and not (is_down and one.what.startswith("server")):
            yield diagnosis(
                "not-looked-at", "fail", [f"{one.what}: {one.problem}"],
                subject=one.what, advice=one.hint,
            )  # fmt: skip


def _slots(facts: DoctorFacts) -> Iterator[Diagnosis]:
    if facts.slot_limit_bytes != -1 or not facts.slots:
        return
    names = ", ".join(f"{slot.name} keeps {slot.retained_bytes or 0} bytes" for slot in facts.slots)
    yield diagnosis(
        "slots-unbounded", "warn",
        [f"max_slot_wal_keep_size is -1, and there are {len(facts.slots)} slot(s): {names}"],
        commands=[limit_slots(facts)],
        advice="a slot that is over the limit is lost, and its reader built anew: choose it by the"
        " room that pg_wal has",
    )  # fmt: skip


def _holes(facts: DoctorFacts) -> Iterator[Diagnosis]:
    for hole in facts.holes:
        if hole.is_expired:
            continue
        which = hole.first if hole.segments == 1 else f"{hole.first} to {hole.last}"
        advice = (
            "what lies in the gap is lost for recovery; a backup behind it makes the rest reachable"
            if hole.is_bridged
            else "where pg_wal of the server, or another repository, has them still: pgrecall wal"
            " push, pgrecall copy"
        )
        yield diagnosis(
            "wal-gap",
            "warn" if hole.is_bridged else "fail",
            [
                f"timeline {hole.timeline}: {which} ({hole.segments} segment(s)) missing:"
                f" {hole.explanation}"
            ],
            subject=f"timeline {hole.timeline}",
            commands=[] if hole.is_bridged else [facts.words.run("backup")],
            advice=advice,
        )


def _damage(facts: DoctorFacts) -> Iterator[Diagnosis]:
    for look in facts.repositories:
        evidence = []
        if look.verified == "fail" and look.verified_at is not None:
            at = look.verified_at.strftime("%Y-%m-%d %H:%M:%S")
            evidence.append(f"the verification of {at} UTC found damage in repository {look.name}")
        if look.damaged:
            named = ", ".join(look.damaged_ids[:5])
            evidence.append(f"{look.damaged} backup(s) in {look.name} are marked: {named}")
        if evidence:
            first = look.damaged_ids[0] if look.damaged_ids else ""
            found = heal(first, facts)
            yield diagnosis(
                "backup-damaged", "fail", evidence, subject=first,
                commands=found.commands, advice=found.advice,
            )  # fmt: skip


def _recovering(facts: DoctorFacts) -> Iterator[Diagnosis]:
    for one in facts.recovering:
        problem = _problem_of(one)
        if not problem:
            continue
        commands = [facts.words.append_setting(one.path, "restore_command", one.wanted[0])]
        if one.is_running:
            commands += facts.words.reload_of(one.path)
        yield diagnosis(
            "restore-command-wrong", "fail",
            [f"{one.path} has {one.signal}, and {problem}"],
            subject=one.path, commands=commands,
        )  # fmt: skip


def _problem_of(one: Recovering) -> str:
    command = one.restore_command
    if command in one.wanted:
        return ""
    if not command:
        if one.signal == "standby.signal":
            return ""  # it may stream alone
        return "no restore_command: PostgreSQL does not start"
    if one.missing_program:
        return f"restore_command runs {one.missing_program}, which is not there: {command}"
    if "pgrecall" not in command:
        return f"restore_command is not pgrecall's, and any failure ends recovery: {command}"
    return f"restore_command is of another server, configuration or version: {command}"


def _places(facts: DoctorFacts) -> Iterator[Diagnosis]:
    by_device: dict[tuple[int, int], list[Place]] = {}
    for place in facts.places:
        by_device.setdefault((place.free_bytes, place.total_bytes), []).append(place)
    for same in by_device.values():
        first = same[0]
        share = first.free_bytes / max(1, first.total_bytes)
        if share >= facts.least_free:
            continue
        what = " and ".join(place.what for place in same)
        yield diagnosis(
            "disk-filling", "fail" if share < facts.least_free / 2 else "warn",
            [f"{what}: {first.free_bytes >> 20} MiB free ({share:.0%}) on {first.path}"],
            subject=what,
            commands=[facts.words.run("wal", "status")],
            advice="see what keeps WAL: slots, an archive_command that fails, wal_keep_size",
        )  # fmt: skip
