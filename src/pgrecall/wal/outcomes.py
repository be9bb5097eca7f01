"""What ``wal push`` answers. Light."""

from __future__ import annotations

CREATED = "created"
ALREADY_STORED = "already-stored"
DROPPED = "dropped"
"""Stored nowhere: the emergency of agent.drop_wal_above_bytes. The gap is recorded."""


class PushOutcome:
    """What became of the file in one repository: ``status`` is CREATED or ALREADY_STORED."""

    __slots__ = ("repository", "status", "stored_bytes")

    def __init__(self, repository: str, status: str, stored_bytes: int = 0) -> None:
        self.repository = repository
        self.status = status
        self.stored_bytes = stored_bytes


class PushResult:
    """The file is durable in every required repository, or ``is_dropped``.

    ``warnings``: what best-effort repositories missed, one text each.
    ``stopped_at`` as in WalIndex; empty for what is no segment. ``invalid``
    there is no failure: PostgreSQL handed the segment over as it is.
    """

    __slots__ = ("is_dropped", "name", "outcomes", "raw_bytes", "stopped_at", "warnings")

    def __init__(self, name: str, raw_bytes: int, stopped_at: str) -> None:
        self.name = name
        self.raw_bytes = raw_bytes
        self.stopped_at = stopped_at
        self.is_dropped = False
        self.outcomes: list[PushOutcome] = []
        self.warnings: list[str] = []

    @property
    def outcome(self) -> str:
        """CREATED if any repository lacked the file, else ALREADY_STORED; or DROPPED."""
        if self.is_dropped:
            return DROPPED
        statuses = [outcome.status for outcome in self.outcomes]
        return CREATED if CREATED in statuses else ALREADY_STORED

    @property
    def stored_bytes(self) -> int:
        """Bytes written, in all repositories together."""
        return sum(outcome.stored_bytes for outcome in self.outcomes)
