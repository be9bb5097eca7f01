"""The tree of commands, and what becomes of their errors."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import click
from click.exceptions import NoArgsIsHelpError

from pgrecall.cli.diagnostics import report_error, wants_json
from pgrecall.cli.frame import Example, LazyCommand, LazyGroup
from pgrecall.errors import InterruptedRunError, PgrecallError, ReportedError, UsageError
from pgrecall.system.signals import signals_as_errors

_log = logging.getLogger(__name__)

_BACKUPS = {
    "list": LazyCommand("backups", "list_command", "List the complete backups of a server."),
    "show": LazyCommand("backups", "show_command", "Show one backup."),
}
_DUMPS = {
    "list": LazyCommand("dumps", "list_command", "List the complete dumps of a server."),
    "show": LazyCommand("dumps", "show_command", "Show one dump, or its table of contents."),
}
_CAPTURES = {
    "list": LazyCommand("capture", "list_command", "List the captures of a server."),
    "show": LazyCommand("capture", "show_command", "Show one capture."),
    "diff": LazyCommand("capture", "diff_command", "What differs between two, or from now."),
    "restore": LazyCommand("capture", "restore_command", "Bring parts of one back."),
}
_SET = {
    "create": LazyCommand("set", "create_command", "Make one: everything of one moment."),
    "restore": LazyCommand("set", "restore_command", "Bring all of one back, on an empty host."),
}
_SETS = {
    "list": LazyCommand("sets", "list_command", "List the recovery sets of a server."),
    "show": LazyCommand("sets", "show_command", "Show one recovery set."),
}
_DRILLS = {
    "list": LazyCommand("drills", "list_command", "List the drills of a server."),
    "show": LazyCommand("drills", "show_command", "Show one drill: the evidence."),
}
_WAL = {
    "push": LazyCommand("wal", "push_command", "Archive one WAL file (archive_command)."),
    "fetch": LazyCommand("wal", "fetch_command", "Deliver one archived file (restore_command)."),
    "fetch-ahead": LazyCommand(
        "wal_ahead", "fetch_ahead_command", "Fetch ahead of a recovery (wal fetch starts it)."
    ),
    "receive": LazyCommand("wal_receive", "receive_command", "Receive WAL by streaming."),
    "slots": LazyCommand("wal_receive", "slots_command", "List replication slots, or drop one."),
    "switch": LazyCommand("wal_switch", "switch_command", "Finish a segment, see it durable."),
    "status": LazyCommand("wal_status", "status_command", "Show what is archived and what waits."),
    "client": LazyCommand("wal_client", "client_command", "The client for images without Python."),
    "enable": LazyCommand("wal_enable", "enable_command", "Turn archiving on, or back off."),
    "allow-branch": LazyCommand(
        "wal_branch", "allow_branch_command", "Let a timeline that was left go on."
    ),
    "index": LazyCommand("find", "wal_index_command", "Index segments that older versions stored."),
}
_RECOVERY = {
    "status": LazyCommand("recovery", "status_command", "Show how far it is."),
    "resume": LazyCommand("recovery", "resume_command", "Go on after a pause."),
    "promote": LazyCommand("recovery", "promote_command", "End recovery where it is."),
}
_KEY = {
    "check": LazyCommand("key", "check_command", "Show the keys, and open them."),
    "rotate": LazyCommand("key", "rotate_command", "A new data key, from now on."),
    "rewrap": LazyCommand("key", "rewrap_command", "A new secret, without rewriting data."),
    "export": LazyCommand("key", "export_command", "The keys themselves, for the safe."),
}
_HOLD = {
    "add": LazyCommand("hold", "add_command", "Never let a backup expire."),
    "release": LazyCommand("hold", "release_command", "End a hold."),
}
_RUNS = {
    "list": LazyCommand("runs", "list_command", "List the runs of a server."),
    "show": LazyCommand("runs", "show_command", "Show one run."),
    "verify": LazyCommand("runs", "verify_command", "Prove that no record is missing."),
}
_REPLICATION = {
    "status": LazyCommand("replication", "status_command", "Standbys, their lag, and slots."),
}
_STANDBY = {
    "build": LazyCommand("standby", "build_command", "Build or rebuild one, and see it stream."),
}
_SERVER = {
    "upgrade": LazyCommand("server", "upgrade_command", "Open a new generation."),
}

COMMANDS: dict[str, LazyCommand | LazyGroup] = {
    "init": LazyCommand("init", "command", "Write pgrecall.toml and make the repository."),
    "status": LazyCommand("status", "command", "What could be restored now; runs, agent, targets."),
    "check": LazyCommand("check", "command", "Prove that server, archive and repository work."),
    "doctor": LazyCommand("doctor", "command", "Name what is wrong, why, and what mends it."),
    "backup": LazyCommand("backup", "command", "Back a server up."),
    "dump": LazyCommand("dump", "command", "Dump databases with PostgreSQL's own tools."),
    "dumps": LazyGroup("dumps", table=_DUMPS, help="List dumps, or show one."),
    "capture": LazyCommand("capture", "command", "Keep configuration and metadata of a server."),
    "captures": LazyGroup(
        "captures", table=_CAPTURES, help="List, show, compare captures; bring one back."
    ),
    "set": LazyGroup("set", table=_SET, help="Everything of one moment, restored by one command."),
    "sets": LazyGroup("sets", table=_SETS, help="List recovery sets, or show one."),
    "export": LazyCommand("export", "command", "Anything as plain files for PostgreSQL's tools."),
    "import": LazyCommand("import_wal", "command", "Take in WAL that others have archived."),
    "drill": LazyCommand("drill", "command", "Restore into a throwaway server, and prove it good."),
    "drills": LazyGroup("drills", table=_DRILLS, help="List drills, or show one."),
    "load": LazyCommand("load", "command", "Load a dump, or a file of pg_dump's."),
    "verify": LazyCommand("verify", "command", "Prove that what is stored is whole."),
    "copy": LazyCommand("copy", "command", "Copy backups and WAL to another repository."),
    "repair": LazyCommand("repair", "command", "Heal what is damaged from another repository."),
    "backups": LazyGroup("backups", table=_BACKUPS, help="List backups, or show one."),
    "repositories": LazyCommand(
        "repositories", "command", "Show where copies are: the 3-2-1 rule as facts."
    ),
    "runs": LazyGroup("runs", table=_RUNS, help="Who ran what: list, show, and prove the records."),
    "report": LazyCommand("report", "command", "One dated file for the auditor."),
    "wal": LazyGroup("wal", table=_WAL, help="Archive WAL and fetch it back."),
    "restore": LazyCommand("restore", "command", "Bring a server back to any moment."),
    "rescue": LazyCommand("rescue", "command", "Bring tables back, beside the living ones."),
    "undo": LazyCommand("undo", "command", "Take a restore, a load or captures restore back."),
    "recoverable": LazyCommand(
        "recoverable", "command", "Show every moment that can be reached, and the gaps."
    ),
    "find": LazyCommand("find", "command", "Find the moment before a DROP, and how to restore it."),
    "expire": LazyCommand("expire", "command", "Let expire what the policy does not keep; undo."),
    "purge": LazyCommand("expire", "purge_command", "Delete the bytes of what has expired."),
    "estimate": LazyCommand("estimate", "command", "What retention policies will take."),
    "hold": LazyGroup("hold", table=_HOLD, help="Keep a backup whatever the policy says."),
    "holds": LazyCommand("hold", "list_command", "List what is on hold."),
    "restore-point": LazyCommand(
        "wal_switch", "restore_point_command", "Name this moment, and see it archived."
    ),
    "recovery": LazyGroup("recovery", table=_RECOVERY, help="Follow, resume, promote a recovery."),
    "replication": LazyGroup(
        "replication", table=_REPLICATION, help="How far standbys are behind, what slots keep."
    ),
    "standby": LazyGroup("standby", table=_STANDBY, help="Build a standby from the repository."),
    "key": LazyGroup("key", table=_KEY, help="Keys of an encrypted repository."),
    "server": LazyGroup("server", table=_SERVER, help="Follow a server through pg_upgrade."),
    "agent": LazyCommand("agent", "command", "Run beside a server: archive, schedule, metrics."),
    "guide": LazyCommand(
        "guide", "command", "Targets of make/ops/postgresql.mk; see docs/make.md."
    ),
    "demo": LazyCommand("demo", "command", "Watch a server lose a table and get it back."),
    "version": LazyCommand("version", "command", "Show the versions of pgrecall and its parts."),
    "completion": LazyCommand("completion", "command", "Print a shell's completion script."),
}

root = LazyGroup(
    "pgrecall",
    table=COMMANDS,
    help="Bring a PostgreSQL server back to any moment, and prove that you can.",
    examples=(
        Example("pgrecall init --path /backup/main", "write pgrecall.toml and make a repository"),
        Example("pgrecall check", "prove that everything works, before it is needed"),
        Example("pgrecall backup", "make a full backup"),
        Example(
            "pgrecall restore --to-time '2026-11-22 20:16:37+00' --target-dir /restore",
            "bring the server back to a moment, into another directory",
        ),
    ),
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)


def run(words: Sequence[str]) -> int:
    """Carry out a command line; returns the exit status. Errors are written here."""
    as_json = wants_json(words)
    try:
        with signals_as_errors():
            status = root.main(
                args=list(words),
                prog_name="pgrecall",
                complete_var="_PGRECALL_COMPLETE",
                standalone_mode=False,
            )
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_is_gone()
    except (Exception, InterruptedRunError) as error:  # noqa: BLE001 (the edge: each becomes a message and a status)
        return _report(error, as_json=as_json)
    return status if isinstance(status, int) else 0


def _report(error: BaseException, *, as_json: bool) -> int:
    try:
        if isinstance(error, NoArgsIsHelpError) and not as_json:
            error.show()
            return error.exit_code
        return report_error(_as_own_error(error), as_json=as_json)
    except BrokenPipeError:
        return _reader_is_gone()


def _as_own_error(error: BaseException) -> ReportedError:
    if isinstance(error, ReportedError):
        _log.debug("the run failed", exc_info=error)
        return error
    if isinstance(error, NoArgsIsHelpError):
        return UsageError("a command is missing", hint="pgrecall --help lists them")
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx is not None else "pgrecall"
        return UsageError(error.format_message(), hint=f"see {command} --help")
    if isinstance(error, click.ClickException):
        return UsageError(error.format_message())
    if isinstance(error, click.Abort):
        return InterruptedRunError("interrupted", hint="run the same command again")
    _log.debug("a bug", exc_info=error)
    return PgrecallError(
        f"this is a bug in pgrecall: {type(error).__name__}: {error}",
        hint="run the same command with --log-level debug and report what it writes",
    )


def _reader_is_gone() -> int:
    """Standard output was closed (``| head``): nothing more can be said there, nor needs to be."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
