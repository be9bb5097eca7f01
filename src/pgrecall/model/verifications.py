"""How far a verification has come: what it has proven, so that another can go on from there."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.model.damage import Depth
from pgrecall.model.findings import Severity

VERIFICATION_FORMAT = 1


class ProvenBackup(msgspec.Struct, frozen=True, array_like=True):
    """A backup: its first ``packs`` packs were read; ``is_done``: all of it, with ``result``."""

    backup_id: str
    packs: int
    is_done: bool
    result: Severity


class ProvenWal(msgspec.Struct, frozen=True, array_like=True):
    """The WAL of one timeline: every file up to ``through`` (a name) was read, and is whole."""

    generation: int
    timeline: int
    through: str


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """One verification of one repository, as far as it has come; the highest ``number`` counts.

    ``wanted``: ``all`` or the id of a backup. ``started_at``: of the first of the runs that
    it consists of, ``resumes`` the one before. ``is_complete``: nothing is left to verify.
    """

    format: int = VERIFICATION_FORMAT
    number: int
    run_id: str
    server: str
    wanted: str
    depth: Depth
    started_at: datetime
    recorded_at: datetime
    is_complete: bool
    result: Severity
    resumes: str = ""
    backups: tuple[ProvenBackup, ...] = ()
    wal: tuple[ProvenWal, ...] = ()
