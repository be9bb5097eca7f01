"""Every trouble that doctor knows, declared once: its code, its cause, and what mends it.

docs/doctor.md is generated from here. ``issue`` is the number under "Troubleshooting" in the
operations guide, 0 for those that it does not have.
"""

from __future__ import annotations

from typing import NamedTuple


class Trouble(NamedTuple):
    """``code`` is stable. ``cause`` and ``mend`` are whole sentences without a full stop."""

    code: str
    issue: int
    cause: str
    mend: str


_DECLARED = (
    Trouble(
        "dump-out-of-memory", 1,
        "pg_dump needed more memory than there is: it holds a whole row, several times",
        "dump without the rows of that table, and keep these by a physical backup",
    ),
    Trouble(
        "archiving-fails", 2,
        "archive_command ends with an error: PostgreSQL keeps the segment, and tries again",
        "mend what the command says; check proves it afterwards",
    ),
    Trouble(
        "archive-command-wrong", 2,
        "archive_command is not the one that stores WAL here: it goes elsewhere, or nowhere",
        "set the command of this configuration, and reload",
    ),
    Trouble(
        "archiving-off", 2,
        "the server archives no WAL: nothing behind a backup can be reached",
        "turn archive_mode on, and restart",
    ),
    Trouble(
        "archive-behind", 2,
        "finished WAL waits for longer than it should: the archiver fails, or is too slow",
        "see why by a probe; the agent pushes several segments at once",
    ),
    Trouble(
        "wal-gap", 3,
        "WAL between two moments is in no repository: recovery ends before the gap",
        "a new backup makes everything behind it reachable again",
    ),
    Trouble(
        "history-missing", 3,
        "the history file of a timeline is not archived: its beginning is not known",
        "push the file from the pg_wal of the server that was promoted",
    ),
    Trouble(
        "target-out-of-range", 3,
        "a restore asked for a moment that no backup and WAL reach",
        "choose a moment of the recoverable range",
    ),
    Trouble(
        "restore-command-wrong", 3,
        "restore_command cannot deliver WAL, or takes an outage for the end of the archive",
        "set the command of this configuration",
    ),
    Trouble(
        "restore-slow", 4,
        "the last restore that was measured took longer than the policy allows",
        "a newer backup leaves less WAL to replay; a drill measures again",
    ),
    Trouble(
        "load-slow", 4,
        "a dump was loaded by one session, which makes one index after the other",
        "load with several sessions; dump in format directory or custom for that",
    ),
    Trouble(
        "slot-keeps-wal", 5,
        "nobody reads the replication slot, and the server keeps all WAL since it was read",
        "drop the slot, or start its reader",
    ),
    Trouble(
        "slots-unbounded", 5,
        "max_slot_wal_keep_size is unlimited: one slot that nobody reads fills the disk",
        "set a limit",
    ),
    Trouble(
        "slot-lost", 5,
        "the server has removed WAL that the slot's reader needs, or will soon",
        "drop the slot and build its reader anew; allow more WAL",
    ),
    Trouble(
        "backup-damaged", 6,
        "stored bytes are not what was stored",
        "heal it from another repository; where there is none, take a new backup",
    ),
    Trouble(
        "drill-failed", 6,
        "the last restore drill did not end well",
        "see its record; a drill of the newest backup tells whether it still is so",
    ),
    Trouble(
        "rights-missing", 7,
        "the role may not do what pgrecall needs",
        "grant it, as a superuser (docs/rights.md)",
    ),
    Trouble(
        "role-missing", 7,
        "a dump was loaded into a server that lacks roles which own something in it",
        "load the roles first, or load without owners and rights",
    ),
    Trouble(
        "large-objects-left-out", 8,
        "a dump of chosen tables or schemas holds no large objects, unless it is told to",
        "dump the whole database, or its large objects besides",
    ),
    Trouble(
        "wal-level-minimal", 0,
        "wal_level is minimal: the WAL is not enough to recover from",
        "set it to replica, and restart",
    ),
    Trouble(
        "full-page-writes-off", 0,
        "full_page_writes is off: a page torn by a crash or a copy cannot be mended",
        "turn it on, and reload",
    ),
    Trouble(
        "fsync-off", 0,
        "fsync is off: a crash of the host destroys the database",
        "turn it on, and reload",
    ),
    Trouble(
        "checksums-off", 0,
        "pages carry no checksums: damage of the server's files is not noticed",
        "stop the server, enable them, and start it",
    ),
    Trouble(
        "backup-none", 0, "no backup is complete and whole: nothing could be restored",
        "take one",
    ),
    Trouble(
        "backup-old", 0, "the newest backup is older than it should be", "take one; see the runs",
    ),
    Trouble(
        "never-drilled", 0, "nobody knows whether a restore works: none was ever tried",
        "drill",
    ),
    Trouble(
        "drill-old", 0, "the last drill is older than it should be", "drill, or plan it",
    ),
    Trouble(
        "rto-not-measured", 0, "no restore with --start was measured of late", "drill",
    ),
    Trouble(
        "rpo-missed", 0, "more work would be lost than the policy allows",
        "finish the segment now; archive_timeout or streaming bounds what is lost",
    ),
    Trouble(
        "standby-hole", 0,
        "standbys do not archive: WAL that a dead primary has not archived is lost at failover",
        "set archive_mode = always, with the same archive_command, on the standbys",
    ),
    Trouble(
        "clock-skew", 0,
        "two clocks differ: what time a backup or a commit has cannot be trusted",
        "let both hosts follow the same time service",
    ),
    Trouble(
        "disk-filling", 0, "a file system has little room left: PostgreSQL stops when it is full",
        "see what fills it; purge deletes what has expired",
    ),
    Trouble(
        "server-unreachable", 0, "no session can be had: the server is down, or refuses",
        "start it, or correct host, port and role in the settings",
    ),
    Trouble(
        "data-directory-unreadable", 0, "PGDATA cannot be read, or is not the server's",
        "run pgrecall as the operating system user that owns it",
    ),
    Trouble(
        "repository-unreachable", 0, "the repository cannot be used: nothing is known of it",
        "mend what the message says; check proves it afterwards",
    ),
    Trouble(
        "archive-of-another", 0,
        "the repository belongs to another server, or a copy runs in place of its owner",
        "see which server this is; server upgrade after pg_upgrade or initdb",
    ),
    Trouble(
        "agent-down", 0, "the agent is not at work: schedule, pushing and receiving stand still",
        "start it",
    ),
    Trouble(
        "schedule-missed", 0, "planned runs were left out: the agent was down, or they take long",
        "see the runs",
    ),
    Trouble(
        "run-failed", 0, "the last run of a command did not end well", "see its record",
    ),
    Trouble(
        "not-looked-at", 0, "something could not be looked at: nothing is known of it",
        "mend what the message says, and ask again",
    ),
    Trouble(
        "other", 0, "a check has found something that has no diagnosis of its own",
        "do what the advice says",
    ),
)  # fmt: skip

TROUBLES = {one.code: one for one in _DECLARED}

#: The trouble behind a finding of check, status, wal status and the like.
BEHIND_FINDING = {
    "agent-not-running": "agent-down",
    "archive-command": "archive-command-wrong",
    "archive-lag-bytes": "archive-behind",
    "archive-lag-seconds": "archive-behind",
    "archive-lag-segments": "archive-behind",
    "archive-library": "archive-command-wrong",
    "archive-mode": "archiving-off",
    "archiver-failed": "archiving-fails",
    "archiver-failing": "archiving-fails",
    "archiving-fails": "archiving-fails",
    "backup-marked-damaged": "backup-damaged",
    "backup-none": "backup-none",
    "backup-old": "backup-old",
    "clock": "clock-skew",
    "completion-damaged": "backup-damaged",
    "component-ill": "agent-down",
    "corrupt-object": "repository-unreachable",
    "data-directory": "data-directory-unreadable",
    "data-directory-unreadable": "data-directory-unreadable",
    "drill-failed": "drill-failed",
    "drill-old": "drill-old",
    "fsync-off": "fsync-off",
    "full-page-writes-off": "full-page-writes-off",
    "generation-not-latest": "archive-of-another",
    "history-missing": "history-missing",
    "identity": "archive-of-another",
    "key-missing": "repository-unreachable",
    "key-refused": "repository-unreachable",
    "key-unavailable": "repository-unreachable",
    "manifest-damaged": "backup-damaged",
    "not-owner": "archive-of-another",
    "object-missing": "repository-unreachable",
    "page-checksums-off": "checksums-off",
    "pending-unknown": "rights-missing",
    "postgres": "server-unreachable",
    "postgres-rights": "rights-missing",
    "postgres-unreachable": "server-unreachable",
    "repository": "repository-unreachable",
    "repository-unknown": "repository-unreachable",
    "rights-backup": "rights-missing",
    "rights-replication": "rights-missing",
    "rights-restore-point": "rights-missing",
    "rights-settings": "rights-missing",
    "rights-switch-wal": "rights-missing",
    "rpo-missed": "rpo-missed",
    "rto-missed": "restore-slow",
    "rto-not-measured": "rto-not-measured",
    "run-failed": "run-failed",
    "runs-missed": "schedule-missed",
    "slot-inactive": "slot-keeps-wal",
    "slot-lost": "slot-lost",
    "slot-unreserved": "slot-lost",
    "space": "disk-filling",
    "standby-does-not-archive": "standby-hole",
    "store": "repository-unreachable",
    "store-absent": "repository-unreachable",
    "store-full": "disk-filling",
    "store-refused": "repository-unreachable",
    "timeline-without-history": "history-missing",
    "wal-behind-gap": "wal-gap",
    "wal-level": "wal-level-minimal",
}

_PAGE = """\
# Diagnoses of `doctor`

Generated by `make docs` from `src/pgrecall/doctor/troubles.py`; do not edit.

`pgrecall doctor` looks at a server, its repositories and its history, and changes nothing. It
names each trouble with the evidence, the cause, and the commands that mend it, written for this
server: they can be typed as they stand. What could not be looked at is said, and is a diagnosis
itself; the rest is looked at all the same. It ends with 60 when a diagnosis fails, as `check` does.

    pgrecall doctor
    pgrecall doctor --target-dir /restore     # and at a data directory that does not come up
    pgrecall doctor --least-free 20 --json    # for monitoring

Codes are stable. "Guide" is the number of the trouble in the operations guide.

| code | guide | cause | what mends it |
|---|---|---|---|
"""


def troubles_page() -> str:
    """The text of docs/doctor.md."""
    rows = [
        f"| `{one.code}` | {one.issue or ''} | {one.cause} | {one.mend} |\n"
        for one in TROUBLES.values()
    ]
    return _PAGE + "".join(rows)
