"""What mends a trouble that a finding tells of: the exact commands. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pgrecall.doctor.facts import DoctorFacts
from pgrecall.model.findings import Finding
from pgrecall.model.ids import kind_of
from pgrecall.model.wal_files import history_name
from pgrecall.postgres.statements import grant_role

_SLOT_LIMIT = "10GB"


class Mend(NamedTuple):
    """``commands`` for a shell, in order; ``advice``: what no command can do."""

    commands: tuple[str, ...] = ()
    advice: str = ""


def mend(code: str, finding: Finding, facts: DoctorFacts) -> Mend:
    """The mending of trouble ``code`` behind ``finding``."""
    found = Mend()
    if code in _RUN:
        found = Mend((facts.words.run(*_RUN[code]),))
    elif code in _SET:
        found = Mend((facts.words.setting(*_SET[code]),))
    elif code in _BY_FACTS:
        found = _BY_FACTS[code](facts)
    elif code in _BY_FINDING:
        found = _BY_FINDING[code](finding, facts)
    return found if found.advice else found._replace(advice=finding.hint)


def drop_slot(name: str, facts: DoctorFacts) -> str:
    """A slot is dropped by pgrecall, which asks first."""
    return facts.words.run("wal", "slots", "--drop", name)


def limit_slots(facts: DoctorFacts) -> str:
    """A limit for all slots, which a reload sets."""
    return facts.words.setting("max_slot_wal_keep_size", _SLOT_LIMIT)


def heal(backup_id: str, facts: DoctorFacts) -> Mend:
    """Bring the bytes from another repository, or take a new backup where there is none."""
    words = facts.words
    if len(facts.repositories) > 1:
        what = [backup_id] if backup_id else []
        return Mend((words.run("repair", *what), words.run("verify")))
    return Mend(
        (words.run("backup"), words.run("verify")),
        "there is no other repository to heal from: keep copies (copies_backups of a second one)",
    )


def _archive_command(finding: Finding, facts: DoctorFacts) -> Mend:
    words = facts.words
    if finding.code == "archive-library":
        return Mend((words.setting("archive_library", ""),))
    return Mend((words.setting("archive_command", words.archive_command),))


def _archiving_off(facts: DoctorFacts) -> Mend:
    commands = facts.words.setting_with_restart("archive_mode", "on")
    return Mend(commands, "" if len(commands) > 1 else "then restart PostgreSQL on its host")


def _wal_level(facts: DoctorFacts) -> Mend:
    commands = facts.words.setting_with_restart("wal_level", "replica")
    return Mend(commands, "" if len(commands) > 1 else "then restart PostgreSQL on its host")


def _rights(finding: Finding, facts: DoctorFacts) -> Mend:
    if finding.hint.startswith(("GRANT ", "ALTER ROLE ")):
        statement, _, rest = finding.hint.partition(";")
        return Mend((facts.words.sql(statement + ";"),), rest.strip().removeprefix("and "))
    if finding.code == "pending-unknown":
        return Mend((facts.words.sql(grant_role("pg_monitor", facts.words.role)),))
    return Mend()


def _slot(finding: Finding, facts: DoctorFacts) -> Mend:
    commands = [drop_slot(finding.subject, facts)]
    if facts.slot_limit_bytes == -1:
        commands.append(limit_slots(facts))
    return Mend(tuple(commands), "where its reader is to come back, start that instead")


def _checksums(facts: DoctorFacts) -> Mend:
    words = facts.words
    if not words.pg_checksums or not words.data_directory:
        return Mend()
    enable = words.as_owner(words.pg_checksums, "--enable", "-D", words.data_directory)
    return Mend(
        (*words.control("stop"), enable, *words.control("start")),
        "the server is down meanwhile, for as long as it takes to read all of it",
    )


def _server(facts: DoctorFacts) -> Mend:
    if any(one.what == "server process" and one.problem for one in facts.seen):
        return Mend(facts.words.control("start"), "or as this host starts it (systemctl)")
    return Mend()


def _owner(facts: DoctorFacts) -> Mend:
    words = facts.words
    if not words.owner:
        return Mend()
    return Mend((words.as_owner(*words.pgrecall, "doctor"),))


def _repository(finding: Finding, facts: DoctorFacts) -> Mend:
    again = ["check", "--no-switch"]
    if finding.subject in {one.name for one in facts.repositories}:
        again += ["--repository", finding.subject]
    return Mend((facts.words.run(*again),))


def _run(finding: Finding, facts: DoctorFacts) -> Mend:
    return Mend((facts.words.run("runs", "show", finding.subject),))


def _damaged(finding: Finding, facts: DoctorFacts) -> Mend:
    return heal(finding.subject if kind_of(finding.subject) else "", facts)


def _history(finding: Finding, facts: DoctorFacts) -> Mend:
    words = facts.words
    timeline = finding.subject.removeprefix("timeline ")
    if not words.data_directory or not timeline.isdecimal():
        return Mend()
    file = f"{words.data_directory}/pg_wal/{history_name(int(timeline))}"
    return Mend((words.run("wal", "push", file),), "where this server has the file")


def _drill(finding: Finding, facts: DoctorFacts) -> Mend:
    show = (facts.words.run("drills", "show", finding.subject),) if finding.subject else ()
    return Mend((*show, facts.words.run("drill")))


def _disk(facts: DoctorFacts) -> Mend:
    return Mend((facts.words.run("expire", "--dry-run"), facts.words.run("purge", "--dry-run")))


#: A command of pgrecall's is all there is to type.
_RUN: dict[str, tuple[str, ...]] = {
    "agent-down": ("agent",),
    "archive-behind": ("wal", "status", "--test"),
    "archive-of-another": ("server", "upgrade", "--dry-run"),
    "archiving-fails": ("check",),
    "backup-none": ("backup",),
    "backup-old": ("backup",),
    "drill-old": ("drill", "--at", "random"),
    "restore-slow": ("backup",),
    "rpo-missed": ("wal", "switch"),
    "rto-not-measured": ("drill",),
    "schedule-missed": ("runs", "list"),
    "wal-gap": ("backup",),
}
#: A setting, and a reload.
_SET = {"fsync-off": ("fsync", "on"), "full-page-writes-off": ("full_page_writes", "on")}
_BY_FACTS: dict[str, Callable[[DoctorFacts], Mend]] = {
    "archiving-off": _archiving_off,
    "checksums-off": _checksums,
    "data-directory-unreadable": _owner,
    "disk-filling": _disk,
    "server-unreachable": _server,
    "wal-level-minimal": _wal_level,
}
_BY_FINDING: dict[str, Callable[[Finding, DoctorFacts], Mend]] = {
    "archive-command-wrong": _archive_command,
    "backup-damaged": _damaged,
    "drill-failed": _drill,
    "history-missing": _history,
    "repository-unreachable": _repository,
    "rights-missing": _rights,
    "run-failed": _run,
    "slot-keeps-wal": _slot,
    "slot-lost": _slot,
}
