"""Recovery as a server shows it: its state by SQL, and where it stopped by its log.

Source of the messages: PostgreSQL's xlogrecovery.c and xlog.c (xlog.c alone in 13 and 14). They are
searched for in English; instances are started with lc_messages=C for that reason.
"""

from __future__ import annotations

import re
from datetime import datetime

import msgspec

from pgrecall.errors import RecoveryError
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.connection import Connection

_PROMOTE_WAIT_SECONDS = 60

_STOP = re.compile(r"LOG:  (recovery stopping .*)$", re.MULTILINE)
_REDO_DONE = re.compile(r"LOG:  redo done at ([0-9A-F]+/[0-9A-F]+)", re.MULTILINE)
_LAST_COMPLETED = re.compile(
    r"LOG:  last completed transaction was at log time (.*)$", re.MULTILINE
)
_NEW_TIMELINE = re.compile(r"LOG:  selected new timeline ID: ([0-9]+)", re.MULTILINE)
_CONSISTENT = re.compile(
    r"LOG:  consistent recovery state reached at ([0-9A-F]+/[0-9A-F]+)", re.MULTILINE
)
_PAUSED = re.compile(r"LOG:  (?:pausing at the end of recovery|recovery has paused)", re.MULTILINE)
_SHUT_DOWN = re.compile(r"LOG:  shutdown at recovery target", re.MULTILINE)
# What restore_command, which is pgrecall, wrote to the same log explains a failure best.
_TROUBLE = re.compile(
    r"(?:FATAL|PANIC|ERROR):  |LOG:  (?:startup process|could not|invalid)|^pgrecall: "
)
_DETAIL = re.compile(r"(?:DETAIL|HINT|CONTEXT): ")


class RecoveryState(msgspec.Struct, frozen=True):
    """Recovery of a server that accepts connections.

    ``replayed_to`` is None when nothing was replayed, ``last_commit_at`` (aware) when no commit
    was. A server that is not in recovery has been promoted, or never was in recovery.
    """

    is_in_recovery: bool
    is_paused: bool
    replayed_to: Lsn | None
    last_commit_at: datetime | None
    timeline: int


class RecoveryReport(msgspec.Struct, frozen=True):
    """What a server's log says of a recovery; empty and None where it does not say.

    ``stopped`` is PostgreSQL's own sentence ("recovery stopping before commit of transaction 741,
    time ..."); empty when the end of the WAL was reached. ``last_completed`` is a time as printed.
    """

    stopped: str
    consistent_at: Lsn | None
    redo_done_at: Lsn | None
    last_completed: str
    new_timeline: int | None
    is_paused: bool
    is_shut_down_at_target: bool
    trouble: tuple[str, ...]


def recovery_state(connection: Connection) -> RecoveryState:
    """Ask a running server how far its recovery is."""
    in_recovery, replayed, commit, timeline = connection.row(
        "SELECT pg_catalog.pg_is_in_recovery(),"
        " pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text,"
        " pg_catalog.pg_last_xact_replay_timestamp(), timeline_id"
        " FROM pg_catalog.pg_control_checkpoint()"
    )
    is_paused = in_recovery and _is_paused(connection)
    if not in_recovery:
        name = connection.value(
            "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())"
        )
        timeline = int(name[:8], 16)
    return RecoveryState(
        is_in_recovery=in_recovery,
        is_paused=is_paused,
        replayed_to=Lsn.parse(replayed) if replayed else None,
        last_commit_at=commit,
        timeline=timeline,
    )


def resume(connection: Connection) -> None:
    """Go on after a pause; at a recovery target that ends recovery. Raises RecoveryError."""
    state = recovery_state(connection)
    if not state.is_in_recovery or not state.is_paused:
        raise RecoveryError(
            f"recovery of {connection.where} is not paused",
            hint="pgrecall recovery status shows what it does",
        )
    connection.rows("SELECT pg_catalog.pg_wal_replay_resume()")


def promote(connection: Connection, wait_seconds: int = _PROMOTE_WAIT_SECONDS) -> None:
    """End recovery and open the server for writing; returns when that is so.

    Raises RecoveryError when the server is not in recovery or not open within ``wait_seconds``.
    """
    if not recovery_state(connection).is_in_recovery:
        raise RecoveryError(f"{connection.where} is not in recovery: there is nothing to promote")
    if not connection.value("SELECT pg_catalog.pg_promote(true, %s)", (wait_seconds,)):
        raise RecoveryError(
            f"{connection.where} was not promoted within {wait_seconds} seconds",
            hint="look into the server's log; a restore_command that hangs delays promotion",
        )


def parse_recovery_log(text: str) -> RecoveryReport:
    """Read what the log of one start says of recovery."""
    stopped = _last(_STOP, text)
    redo, consistent = _last(_REDO_DONE, text), _last(_CONSISTENT, text)
    timeline = _last(_NEW_TIMELINE, text)
    return RecoveryReport(
        stopped=stopped,
        consistent_at=Lsn.parse(consistent) if consistent else None,
        redo_done_at=Lsn.parse(redo) if redo else None,
        last_completed=_last(_LAST_COMPLETED, text),
        new_timeline=int(timeline) if timeline else None,
        is_paused=_PAUSED.search(text) is not None,
        is_shut_down_at_target=_SHUT_DOWN.search(text) is not None,
        trouble=_trouble(text),
    )


def _is_paused(connection: Connection) -> bool:
    if connection.major >= 14:
        state = connection.value(
            "SELECT CASE WHEN pg_catalog.pg_is_in_recovery()"
            " THEN pg_catalog.pg_get_wal_replay_pause_state() END"
        )
        return bool(state == "paused")
    return bool(
        connection.value(
            "SELECT CASE WHEN pg_catalog.pg_is_in_recovery()"
            " THEN pg_catalog.pg_is_wal_replay_paused() ELSE false END"
        )
    )


def _last(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.findall(text)
    return found[-1].strip() if found else ""


def _trouble(text: str) -> tuple[str, ...]:
    """Lines that explain a failure, each with its details, hints and context."""
    lines: list[str] = []
    is_explained = False
    for line in text.splitlines():
        if _TROUBLE.search(line):
            is_explained = True
        elif not (is_explained and _DETAIL.search(line)):
            is_explained = False
        if is_explained:
            lines.append(line)
    return tuple(lines)
