"""One execution of a command that matters, as the journal keeps it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from pgrecall.model.findings import Finding, Severity

RUN_FORMAT = 1

Outcome = Literal["ok", "warn", "fail", "interrupted"]


class Trigger(msgspec.Struct, frozen=True, omit_defaults=True):
    """What began a run: a person or program (``user``), or the agent's schedule.

    Of the schedule: the moment it was planned for, whether it began later than
    that, and how many planned moments before it passed without a run.
    """

    by: Literal["user", "schedule"] = "user"
    planned_at: datetime | None = None
    is_late: bool = False
    missed: int = 0


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has ended; written once, never changed.

    ``outcome``: ``warn`` and ``fail`` after findings of that severity or an error
    (``error_code``, ``message``), ``interrupted`` by a signal. ``raw_bytes`` and
    ``stored_bytes``: what was read or written, 0 where that means nothing.
    ``backup_id``: the backup that was made or used, or empty. ``rto_seconds``: from the
    beginning of a restore to a server that answers, None for all other runs. ``kept_in``: the
    directory where a restore or an undo has kept something; ``kept``: what, and where, one text
    each; ``salvaged``: WAL files that a restore has pushed from the PGDATA that it replaced.
    ``capture_id``: the capture that was made, or that holds how things were before, or empty.

    ``user``: of the operating system, with ``pid`` on ``host``; ``role``: as which the command
    connects to the server, empty where it does not. ``plan``: what was shown before the act, or
    what the command was given, bounded. ``findings``: the gravest ones, bounded;
    ``more_findings``: how many are left out. ``repository_id``, ``writer``, ``sequence`` (from 1)
    and ``previous``: its place in the chain of one writer in one repository, and the digest of
    the record before it there (hex; empty for the first, or where that could not be read).
    ``sequence`` 0: written before there were chains.
    """

    format: int = RUN_FORMAT
    run_id: str
    server: str
    command: str
    host: str
    started_at: datetime
    ended_at: datetime
    outcome: Outcome
    exit_status: int
    error_code: str = ""
    message: str = ""
    backup_id: str = ""
    raw_bytes: int = 0
    stored_bytes: int = 0
    rto_seconds: float | None = None
    kept_in: str = ""
    kept: tuple[str, ...] = ()
    salvaged: tuple[str, ...] = ()
    trigger: Trigger = Trigger()
    tool_version: str = ""
    user: str = ""
    pid: int = 0
    role: str = ""
    plan: dict[str, Any] = {}
    findings: tuple[Finding, ...] = ()
    more_findings: int = 0
    capture_id: str = ""
    repository_id: str = ""
    writer: str = ""
    sequence: int = 0
    previous: str = ""

    @property
    def duration_seconds(self) -> float:
        """From start to end by the host's clock; not below 0 when that went back."""
        return max(0.0, (self.ended_at - self.started_at).total_seconds())


class ChainHead(msgspec.Struct, frozen=True, kw_only=True):
    """The last record of a writer's chain: its number, and its digest (hex).

    The digest is empty where the record could not be read.
    """

    writer: str
    sequence: int
    digest: str


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a command's result adds to its record; fields as in RunRecord."""

    outcome: Outcome = "ok"
    backup_id: str = ""
    raw_bytes: int = 0
    stored_bytes: int = 0
    rto_seconds: float | None = None
    kept_in: str = ""
    kept: tuple[str, ...] = ()
    salvaged: tuple[str, ...] = ()
    capture_id: str = ""


@runtime_checkable
class Journalled(Protocol):
    """A result that tells the journal more than how the run ended."""

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        ...


#: The agent hands them to the processes that it starts; without two underscores in a row these
#: are no settings.
RUN_ID_VARIABLE = "PGRECALL_RUN_ID"
TRIGGER_VARIABLE = "PGRECALL_TRIGGER"

_LONGEST_TEXT = 300
_MOST_FIELDS = 60
_MOST_ITEMS = 20
_DEEPEST = 4
_MOST_FINDINGS = 50
_GRAVITY: dict[Severity, int] = {"fail": 0, "warn": 1, "ok": 2}


def bounded_findings(findings: tuple[Finding, ...]) -> tuple[tuple[Finding, ...], int]:
    """What a record keeps of findings, the gravest first, without hints; and how many it leaves."""
    ordered = sorted(findings, key=lambda finding: _GRAVITY[finding.severity])
    kept = tuple(
        Finding(
            severity=one.severity,
            code=one.code,
            message=one.message[:_LONGEST_TEXT],
            subject=one.subject[:_LONGEST_TEXT],
        )
        for one in ordered[:_MOST_FINDINGS]
    )
    return kept, len(ordered) - len(kept)


def bounded_plan(plan: msgspec.Struct) -> dict[str, Any]:
    """What a record keeps of a plan: its fields, with long texts and lists cut."""
    cut = _cut(msgspec.to_builtins(plan), 0)
    return cut if isinstance(cut, dict) else {}


def _cut(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else value[:_LONGEST_TEXT] + "..."
    if not isinstance(value, dict | list | tuple):
        return value
    if depth == _DEEPEST:
        return f"({len(value)} entries)"
    if isinstance(value, dict):
        most = _MOST_ITEMS if depth else _MOST_FIELDS
        told = [(str(key), one) for key, one in value.items() if one not in (None, "", [], {}, ())]
        kept = {key: _cut(one, depth + 1) for key, one in told[:most]}
        return kept | ({"...": f"({len(told) - most} more)"} if len(told) > most else {})
    items = [_cut(one, depth + 1) for one in value[:_MOST_ITEMS]]
    more = len(value) - len(items)
    return [*items, f"({more} more)"] if more else items
