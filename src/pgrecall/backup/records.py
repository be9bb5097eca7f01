"""Build the records of a backup from what was planned, told by the server, and copied; pure."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import msgspec

from pgrecall import __version__
from pgrecall.backup.base import Base
from pgrecall.backup.leftover import Unfinished
from pgrecall.backup.plan import BackupPlan
from pgrecall.errors import BackupError
from pgrecall.model.findings import Finding, worst
from pgrecall.model.manifest import (
    Completion,
    ExternalFile,
    ManifestRoot,
    PartEntry,
    ServerFactsRecord,
    TablespaceEntry,
    Totals,
    WalRange,
)
from pgrecall.postgres.backup_session import BackupStart, BackupStop
from pgrecall.postgres.control import ControlData
from pgrecall.postgres.facts import ServerFacts
from pgrecall.repository.identity import Generation, RepositoryIdentity

LABEL = "pgrecall"


class Lineage(NamedTuple):
    """Whom a backup belongs to; ``restore_id``: of the restored copy that is backed up."""

    identity: RepositoryIdentity
    generation: Generation
    restore_id: str | None


class BackupTask:
    """What a backup works with: the plan, the server's facts, and whom it belongs to.

    ``base``: what an incremental one is compared with. ``unfinished``: what it goes on from.
    ``control`` None: it comes with the stream,
    as does whose copy the server is (``learn``).
    """

    def __init__(
        self,
        plan: BackupPlan,
        facts: ServerFacts,
        control: ControlData | None,
        *,
        lineage: Lineage,
        base: Base | None = None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self.plan = plan
        self.facts = facts
        self._control = control
        self.identity = lineage.identity
        self.generation = lineage.generation
        self.restore_id = lineage.restore_id
        self.base = base
        self.unfinished = unfinished
        #: The capture of the server's configuration that belongs to it, made before; or empty.
        self.capture_id = ""

    @property
    def control(self) -> ControlData:
        """What pg_control says."""
        if self._control is None:
            raise BackupError("pg_control has not come from the server")
        return self._control

    def learn(self, control: ControlData, restore_id: str | None) -> None:
        """What only the stream could tell."""
        self._control = control
        self.restore_id = restore_id


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """A copy that is done: its id, where it begins and ends, and what was noticed."""

    backup_id: str
    start: BackupStart
    stop: BackupStop
    findings: tuple[Finding, ...]


def manifest_root(
    task: BackupTask,
    taken: Taken,
    *,
    parts: tuple[PartEntry, ...],
    names: tuple[tuple[str, ...], tuple[str, ...]],
    external: tuple[ExternalFile, ...],
    block_digest: str,
) -> ManifestRoot:
    """The manifest's root; ``names`` are those of owners and groups."""
    label = taken.stop.label
    return ManifestRoot(
        backup_id=taken.backup_id,
        repository_id=task.identity.repository_id,
        digest="blake3",
        block_digest=block_digest,
        kind="incremental" if task.base is not None else "full",
        source=task.plan.source,
        system_identifier=str(task.facts.system_identifier),
        backup_label=label.text.encode(),
        tablespace_map=taken.stop.tablespace_map.encode(),
        wal_range=WalRange(taken.start.timeline, str(label.start_lsn), str(taken.stop.lsn)),
        server=_server_record(task),
        tablespaces=tuple(
            TablespaceEntry(space.oid, space.name, space.location, space.is_in_place)
            for space in task.facts.tablespaces
        ),
        external_files=external,
        owners=names[0],
        groups=names[1],
        findings=taken.findings,
        parts=parts,
    )


def completion(
    task: BackupTask,
    taken: Taken,
    *,
    totals: Totals,
    manifest: tuple[int, str, tuple[str, ...]],
    change_source: str,
    ended: tuple[datetime, float],
) -> Completion:
    """The completion record; ``manifest``: the root's size and digest (hex), what it refers to.

    ``ended``: when, and after how many seconds.
    """
    plan, facts = task.plan, task.facts
    return Completion(
        backup_id=taken.backup_id,
        repository_id=task.identity.repository_id,
        server=plan.server,
        generation=task.generation.number,
        system_identifier=str(facts.system_identifier),
        kind="incremental" if task.base is not None else "full",
        source=plan.source,
        version_num=facts.version_num,
        segment_bytes=facts.segment_bytes,
        timeline=taken.start.timeline,
        start_lsn=str(taken.stop.label.start_lsn),
        stop_lsn=str(taken.stop.lsn),
        started_at=taken.start.started_at,
        stopped_at=taken.stop.stopped_at,
        completed_at=ended[0],
        duration_seconds=round(ended[1], 3),
        label=LABEL,
        compression=f"{plan.compression}:{plan.level}",
        has_wal=plan.with_wal,
        totals=totals,
        manifest_bytes=manifest[0],
        manifest_digest=manifest[1],
        worst=worst(list(taken.findings)),
        finding_count=len(taken.findings),
        tool_version=__version__,
        restore_id=task.restore_id or "",
        base_id=task.base.completion.backup_id if task.base is not None else "",
        references=manifest[2],
        change_source=change_source,
        capture_id=task.capture_id,
    )


def _server_record(task: BackupTask) -> ServerFactsRecord:
    facts, control = task.facts, task.control
    return ServerFactsRecord(
        version_num=facts.version_num,
        version=facts.version,
        catalog_version=control.catalog_version,
        block_bytes=facts.block_bytes,
        relation_segment_bytes=facts.relation_segment_bytes,
        segment_bytes=facts.segment_bytes,
        data_checksums=control.data_checksum_version,
        data_directory=task.plan.data_directory,
        max_connections=control.max_connections,
        max_worker_processes=control.max_worker_processes,
        max_wal_senders=control.max_wal_senders,
        max_prepared_transactions=control.max_prepared_transactions,
        max_locks_per_transaction=control.max_locks_per_transaction,
        settings=facts.settings,
        collations=facts.collation_versions,
    )
