"""What the facts of a server mean for its backups: facts in, findings out. Pure."""

from __future__ import annotations

import os

import msgspec

from pgrecall.check.command_line import read_archive_command
from pgrecall.model.findings import Finding, Severity
from pgrecall.postgres.actions import ArchiverFacts
from pgrecall.postgres.facts import ServerFacts, ServerRights
from pgrecall.postgres.statements import alter_system, grant_execute, grant_role

_RESTART = "then restart PostgreSQL"
_RELOAD = "then SELECT pg_reload_conf();"


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What is configured here: the server's name, the file, the command that archives by it.

    ``switches``: whether this check forces a WAL switch. ``streams``: backups are streamed, and
    the server may be on another host.
    """

    server: str
    config: str
    archive_command: str
    data_directory: str = ""
    switches: bool = True
    streams: bool = False


class CheckFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked from the server.

    ``standbys`` counts the sessions that stream from it, pgrecall's own receiver
    (``is_received``) left out.
    """

    server: ServerFacts
    rights: ServerRights
    archiver: ArchiverFacts
    can_stop_backup: bool
    full_page_writes: bool
    fsync: bool
    standbys: int
    is_received: bool = False


def judge(facts: CheckFacts, expected: Expected) -> list[Finding]:
    """Everything that the server's own words tell, the good things too."""
    return [
        *_role_in_replication(facts, expected),
        *_rights(facts, expected),
        *_archiving(facts, expected),
        *_archiver(facts),
        *_safety(facts),
    ]


def can_prove_archiving(facts: CheckFacts) -> bool:
    """Whether it makes sense to force a switch and wait for the segment."""
    server = facts.server
    archives = (
        server.archive_mode != "off"
        and bool(server.archive_command.strip())
        and not server.archive_library
    )
    return (
        not server.is_in_recovery
        and facts.rights.can_switch_wal
        and server.wal_level != "minimal"
        and (archives or facts.is_received)
    )


def _finding(severity: Severity, code: str, message: str, hint: str = "") -> Finding:
    return Finding(severity=severity, code=code, message=message, hint=hint)


def _role_in_replication(facts: CheckFacts, expected: Expected) -> list[Finding]:
    if facts.server.is_in_recovery and expected.streams:
        return [_finding("ok", "server-is-standby", "the server is a standby, and streams backups")]
    if facts.server.is_in_recovery:
        return [
            _finding(
                "fail",
                "server-is-standby",
                f"the server {expected.server!r} is in recovery (a standby)",
                "set host and port to those of the primary: backups are made there",
            )
        ]
    if facts.standbys and facts.server.archive_mode != "always":
        return [
            _finding(
                "warn",
                "standby-does-not-archive",
                f"{facts.standbys} standby(s) stream from this server, and archive_mode is "
                f"{facts.server.archive_mode!r}: WAL that a dead primary has not archived is lost "
                "at failover",
                "set archive_mode = always, with the same archive_command, on the standbys",
            )
        ]
    return []


def _rights(facts: CheckFacts, expected: Expected) -> list[Finding]:
    rights, major = facts.rights, facts.server.major
    if rights.is_superuser:
        return [_finding("ok", "rights", f"the role {rights.role!r} is a superuser")]
    found = []
    if expected.streams and not rights.can_replicate:
        found.append(
            _finding(
                "fail",
                "rights-replication",
                f"the role {rights.role!r} may not stream backups",
                f'ALTER ROLE "{rights.role}" REPLICATION; and a line for the database replication'
                " in pg_hba.conf",
            )
        )
    if not expected.streams and not (rights.can_backup and facts.can_stop_backup):
        found.append(
            _finding(
                "fail",
                "rights-backup",
                f"the role {rights.role!r} may not start and stop backups",
                grant_execute(backup_functions(major), rights.role),
            )
        )
    if not rights.can_switch_wal:
        found.append(
            _finding(
                "fail" if expected.switches else "warn",
                "rights-switch-wal",
                f"the role {rights.role!r} may not switch WAL: archiving cannot be proven",
                grant_execute(("pg_switch_wal()",), rights.role),
            )
        )
    if not rights.can_create_restore_point:
        found.append(
            _finding(
                "warn",
                "rights-restore-point",
                f"the role {rights.role!r} may not create restore points",
                grant_execute(("pg_create_restore_point(text)",), rights.role),
            )
        )
    if not rights.can_read_all_settings:
        found.append(
            _finding(
                "warn",
                "rights-settings",
                f"the role {rights.role!r} may not read all settings: where the data directory and "
                "the configuration files are is not known, those outside PGDATA are not backed up",
                grant_role("pg_read_all_settings", rights.role),
            )
        )
    if not found:
        found.append(_finding("ok", "rights", f"the role {rights.role!r} may do what is needed"))
    return found


def backup_functions(major: int) -> tuple[str, str]:
    """The functions that begin and end a backup, with their argument types."""
    if major >= 15:
        return ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)")
    return ("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)")


def _archiving(facts: CheckFacts, expected: Expected) -> list[Finding]:
    server = facts.server
    found = []
    if server.wal_level == "minimal":
        found.append(
            _finding(
                "fail",
                "wal-level",
                "wal_level is minimal: the WAL is not enough to recover from",
                f"{alter_system('wal_level', 'replica')} {_RESTART}",
            )
        )
    else:
        found.append(_finding("ok", "wal-level", f"wal_level is {server.wal_level}"))
    if server.is_in_recovery and expected.streams:
        said = "the primary of this standby archives: 'pgrecall check' there proves it"
        return [*found, _finding("ok", "archive-mode", said)]
    if server.archive_mode == "off" and facts.is_received:
        said = "archive_mode is off; WAL arrives by streaming"
        return [*found, _finding("ok", "archive-mode", said)]
    if server.archive_mode == "off":
        is_pending = "archive_mode" in server.pending_restart
        hint = (
            "it is configured already: restart PostgreSQL"
            if is_pending
            else f"{alter_system('archive_mode', 'on')} {_RESTART}"
        )
        found.append(
            _finding("fail", "archive-mode", "archive_mode is off: no WAL is archived", hint)
        )
        return found
    found.append(_finding("ok", "archive-mode", f"archive_mode is {server.archive_mode}"))
    if server.archive_library:
        both = server.major >= 16 and bool(server.archive_command.strip())
        why = "together with archive_command: an error" if both else "archive_command is not used"
        found.append(
            _finding(
                "fail",
                "archive-library",
                f"archive_library is {server.archive_library!r}, {why}",
                f"{alter_system('archive_library', '')} {_RELOAD}",
            )
        )
    found.append(_archive_command(server.archive_command, expected))
    return found


def _archive_command(configured: str, expected: Expected) -> Finding:
    cure = f"{alter_system('archive_command', expected.archive_command)} {_RELOAD}"
    code = "archive-command"
    if configured == expected.archive_command:
        return _finding("ok", code, "archive_command pushes into this configuration's repositories")
    command = read_archive_command(configured)
    if command.kind == "none":
        return _finding("fail", code, "archive_command is empty: WAL piles up in pg_wal", cure)
    if command.kind == "nothing":
        return _finding(
            "fail", code, f"archive_command ({configured}) throws WAL away and calls it archived",
            cure,
        )  # fmt: skip
    if command.kind == "other-tool":
        return _finding(
            "fail", code, f"archive_command runs {command.program!r}, not pgrecall: {configured}",
            cure,
        )  # fmt: skip
    if command.kind == "unknown":
        return _finding(
            "warn", code, f"what archive_command does cannot be told from its text: {configured}",
            cure,
        )  # fmt: skip
    if command.tail:
        return _finding(
            "fail", code,
            f"archive_command goes on after wal push ({command.tail}): a failure could look like "
            "success",
            cure,
        )  # fmt: skip
    if command.server and command.server != expected.server:
        return _finding(
            "fail", code,
            f"archive_command archives as server {command.server!r}, this is {expected.server!r}",
            cure,
        )  # fmt: skip
    is_other = os.path.normpath(command.config) != os.path.normpath(expected.config)
    # On another host the file may be another one.
    if command.config and is_other and not expected.streams:
        return _finding(
            "fail", code,
            f"archive_command uses the configuration {command.config}, this is {expected.config}",
            cure,
        )  # fmt: skip
    return _finding("ok", code, "archive_command runs pgrecall wal push")


def _archiver(facts: CheckFacts) -> list[Finding]:
    archiver = facts.archiver
    if facts.server.archive_mode == "off" or not is_failing(archiver):
        return []
    last = archiver.last_archived_file or "nothing"
    return [
        _finding(
            "warn",
            "archiver-failed",
            f"the archiver failed {archiver.failed_count} times, last for "
            f"{archiver.last_failed_file}; archived last: {last}",
            "the server's log has what archive_command wrote; PostgreSQL tries again by itself",
        )
    ]


def is_failing(archiver: ArchiverFacts) -> bool:
    """Whether the archiver's last attempt failed."""
    failed_at, archived_at = archiver.last_failed_at, archiver.last_archived_at
    return failed_at is not None and (archived_at is None or failed_at > archived_at)


def _safety(facts: CheckFacts) -> list[Finding]:
    found = []
    if not facts.full_page_writes:
        found.append(
            _finding(
                "fail",
                "full-page-writes-off",
                "full_page_writes is off: a page torn by a crash or a copy cannot be mended",
                f"{alter_system('full_page_writes', 'on')} {_RELOAD}",
            )
        )
    if not facts.fsync:
        found.append(
            _finding(
                "warn",
                "fsync-off",
                "fsync is off: a crash of the host destroys the database",
                f"{alter_system('fsync', 'on')} {_RELOAD}",
            )
        )
    if facts.server.has_checksums:
        found.append(_finding("ok", "page-checksums", "pages carry checksums"))
    else:
        found.append(
            _finding(
                "warn",
                "page-checksums-off",
                "pages carry no checksums: damaged ones cannot be noticed",
                "stop the server and run pg_checksums --enable",
            )
        )
    return found
