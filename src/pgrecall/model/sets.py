"""A recovery set: capture, dump and backup of one moment, and the WAL that leads there."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.model.captures import CapturedSlot
from pgrecall.model.manifest import FORMAT_VERSION
from pgrecall.model.runs import ChainHead


class SetPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The restore point at which a set with a backup ends; its name is the set's id.

    ``lsn`` (text) is the position behind its record, which lies in ``segment``; ``start_lsn``:
    where the WAL that the set needs begins, on the same ``timeline``.
    """

    lsn: str
    created_at: datetime
    timeline: int
    segment: str
    start_lsn: str


class SetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The record that makes a set exist; written last, never changed.

    ``backup_id`` and ``dump_id`` are empty, and ``point`` is None, where the set was made without.
    ``made_at``: the moment of the set, by the server's clock; ``dumped_at`` that of the dump's
    snapshots. ``slots`` are those of the capture. Sizes are the sums of the parts'.
    """

    format: int = FORMAT_VERSION
    set_id: str
    repository_id: str
    server: str
    generation: int
    system_identifier: str
    version_num: int
    capture_id: str
    dump_id: str = ""
    backup_id: str = ""
    point: SetPoint | None = None
    databases: tuple[str, ...] = ()
    slots: tuple[CapturedSlot, ...] = ()
    made_at: datetime
    dumped_at: datetime | None = None
    started_at: datetime
    completed_at: datetime
    duration_seconds: float
    raw_bytes: int = 0
    stored_bytes: int = 0
    worst: str = "ok"
    finding_count: int = 0
    tool_version: str = ""
    run_heads: tuple[ChainHead, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Ids of the backup and the dump: what retention keeps together with the set."""
        return tuple(one for one in (self.backup_id, self.dump_id) if one)
