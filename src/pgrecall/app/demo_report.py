"""What the demonstration tells while it runs, and what it says at its end."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec


class Story(Protocol):
    """Told to whoever watches; the demonstration itself prints nothing."""

    def opening(self, directory: str, version: str, *, keep: bool) -> None:
        """Before the first step: where everything lives, and which PostgreSQL runs."""
        ...

    def step(self, title: str) -> None:
        """The next step begins; steps are numbered from 1."""
        ...

    def doing(self, what: str) -> None:
        """Something that takes a moment is going on, until the next call of any kind."""
        ...

    def command(self, line: str) -> None:
        """A command that does in a shell what was just done."""
        ...

    def fact(self, text: str, seconds: float | None = None) -> None:
        """What came of it, and how long it took."""
        ...


class Proof(msgspec.Struct, frozen=True):
    """One comparison: what was ``known`` before the accident, what was ``found`` afterwards."""

    what: str
    known: str
    found: str

    @property
    def is_proven(self) -> bool:
        """Whether they are equal."""
        return self.known == self.found


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes as PostgreSQL has them and as they are stored, and how long the backup took."""

    backup_files: int
    backup_raw_bytes: int
    backup_stored_bytes: int
    backup_seconds: float
    wal_segments: int
    wal_raw_bytes: int
    wal_stored_bytes: int


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """How long things took. ``rto_seconds``: from the decision to a server open for writing.

    That is the sum of waiting until the last WAL was archived, of writing the
    files, and of recovery.
    """

    load_seconds: float
    archive_seconds: float
    restore_seconds: float
    recovery_seconds: float
    rto_seconds: float


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """The RPO reached. ``rows``: committed before the accident and not there afterwards.

    ``margin_seconds``: from the last commit that came back to the accident's commit.
    """

    rows: int
    last_commit_at: datetime | None
    accident_at: datetime
    margin_seconds: float


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What --keep left, and the commands to look at it and to end it."""

    directory: str
    connect_to_restored: str
    connect_to_server: str
    stop: tuple[str, ...]
    remove: str


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """The end of the demonstration."""

    is_proven: bool
    version: str
    accident_xid: int
    stopped: str
    proofs: tuple[Proof, ...]
    sizes: Sizes
    times: Times
    loss: Loss
    total_seconds: float = 0.0
    kept: Kept | None = None
