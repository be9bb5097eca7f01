"""One execution of a command that matters, as the journal keeps it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

import msgspec

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

    @property
    def duration_seconds(self) -> float:
        """From start to end by the host's clock; not below 0 when that went back."""
        return max(0.0, (self.ended_at - self.started_at).total_seconds())


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
