"""What a restore drill has shown: the record that is kept as evidence."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.model.findings import Finding, Severity
from pgrecall.model.manifest import FORMAT_VERSION


class DrilledDatabase(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at in one database of the copy. ``amcheck`` False: it was not run there."""

    name: str
    tables: int
    size_bytes: int
    amcheck: bool


class CheckOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One of the user's own checks; ``message``: why it failed, or empty."""

    name: str
    database: str
    is_passed: bool
    seconds: float
    message: str = ""


class DrillSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """How long each phase took: files written, WAL replayed, copy examined, all together."""

    restore: float
    recovery: float
    checks: float
    total: float


class DrillRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A drill that has ended; written once, never changed.

    ``item_id``: the backup that was restored; ``target``: where recovery was to stop, in words.
    ``replayed_to`` (LSN) and ``last_commit_at``: where it did. ``seconds`` None: it failed before
    the copy was up, ``error_code`` and ``message`` say why. ``rto_target_seconds`` 0: none was set.
    """

    format: int = FORMAT_VERSION
    drill_id: str
    run_id: str
    server: str
    host: str
    item_id: str
    target: str
    started_at: datetime
    ended_at: datetime
    result: Severity
    version_num: int = 0
    timeline: int = 0
    replayed_to: str = ""
    last_commit_at: datetime | None = None
    restored_bytes: int = 0
    seconds: DrillSeconds | None = None
    rto_target_seconds: float = 0.0
    databases: tuple[DrilledDatabase, ...] = ()
    checks: tuple[CheckOutcome, ...] = ()
    findings: tuple[Finding, ...] = ()
    error_code: str = ""
    message: str = ""
    tool_version: str = ""
