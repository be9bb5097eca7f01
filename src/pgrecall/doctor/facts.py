"""What a diagnosis is made of: facts that others have collected. Values only."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.doctor.words import Words
from pgrecall.model.drills import DrillRecord
from pgrecall.model.findings import Finding, Severity
from pgrecall.model.runs import RunRecord
from pgrecall.postgres.slots import SlotState


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """One trouble. ``evidence``: what was seen, a line each; ``commands`` can be typed.

    ``issue``: its number in the operations guide, 0 where that does not have it.
    """

    severity: Severity
    code: str
    issue: int
    subject: str
    evidence: tuple[str, ...]
    cause: str
    commands: tuple[str, ...] = ()
    advice: str = ""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at, or could not be; ``problem`` empty: it was."""

    what: str
    problem: str = ""
    hint: str = ""


class Hole(msgspec.Struct, frozen=True, kw_only=True):
    """WAL that is missing on a timeline path. ``is_expired``: nothing needs it any more.

    ``is_bridged``: a backup behind it makes what follows reachable.
    """

    timeline: int
    first: str
    last: str
    segments: int
    explanation: str
    is_expired: bool
    is_bridged: bool = False


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """One repository. ``verified``: how its last whole verification ended, None: never."""

    name: str
    damaged: int
    damaged_ids: tuple[str, ...] = ()
    verified: Severity | None = None
    verified_at: datetime | None = None


class DumpLook(msgspec.Struct, frozen=True, kw_only=True):
    """One database of a dump, newest dumps last. ``large_objects``: in the database, then."""

    dump_id: str
    database: str
    large_objects: int
    has_them: bool
    left_out_by: str = ""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A file system: that of PGDATA, or of pg_wal. Sizes in bytes."""

    what: str
    path: str
    free_bytes: int
    total_bytes: int


class Recovering(msgspec.Struct, frozen=True, kw_only=True):
    """A data directory in recovery. ``signal``: the file that says so.

    ``wanted``: the commands that fit here, the first of them to be set. ``is_running``: its
    server is up. ``is_startable``: the program that it names is there.
    """

    path: str
    signal: str
    restore_command: str
    wanted: tuple[str, ...]
    is_running: bool = False
    missing_program: str = ""


class DoctorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was seen; what could not be is in ``seen``, and empty or None here.

    ``runs``: oldest first. ``drilled``: the newest drill. ``backups``: how many are whole.
    ``slot_limit_bytes``: max_slot_wal_keep_size, -1: none, None: not known.
    ``newest_at``: the newest moment that can be reached. ``rto_seconds`` 0: no target is set.
    ``least_free``: the share of a file system below which it is called full.
    """

    words: Words
    seen: tuple[Seen, ...] = ()
    findings: tuple[Finding, ...] = ()
    runs: tuple[RunRecord, ...] = ()
    drilled: DrillRecord | None = None
    is_drill_known: bool = False
    backups: int = 0
    slots: tuple[SlotState, ...] = ()
    slot_limit_bytes: int | None = None
    holes: tuple[Hole, ...] = ()
    newest_at: datetime | None = None
    repositories: tuple[Look, ...] = ()
    dumps: tuple[DumpLook, ...] = ()
    places: tuple[Place, ...] = ()
    recovering: tuple[Recovering, ...] = ()
    rto_seconds: float = 0.0
    least_free: float = 0.1
