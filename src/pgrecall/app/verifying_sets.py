"""``verify`` of a recovery set: every part, and the WAL up to its restore point."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from pgrecall.app.opened import OpenedRepository
from pgrecall.app.sets import missing_parts
from pgrecall.errors import CorruptObjectError, WalMissingError
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.sets import SetRecord
from pgrecall.repository.identity import read_generation
from pgrecall.repository.retention_log import read_state
from pgrecall.repository.set_catalog import SetCatalog
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.verify.run import VerifyProof


def verify_set(
    opened: OpenedRepository, server: str, set_id: str, verify: Callable[[str], VerifyProof]
) -> VerifyProof:
    """Prove a set; ``verify`` proves the backup or dump of an id, as deep as was asked for.

    Raises SetNotFoundError, CorruptObjectError, StoreError.
    """
    record = SetCatalog(opened.store, server).get(set_id)
    absent = missing_parts(opened.catalog(server), record)
    lost = {finding.subject for finding in absent}
    proofs = [verify(part) for part in record.parts if part not in lost]
    findings = [*absent, *_wal_findings(opened, record)]
    return _merged(proofs, findings)


def _wal_findings(opened: OpenedRepository, record: SetRecord) -> list[Finding]:
    """What is wrong with the way to the restore point; raises StoreError."""
    point = record.point
    if point is None:
        return []
    generation = read_generation(opened.store, record.server, record.generation)
    archive = WalArchive(opened.store, record.server, generation)
    archive.hide(read_state(opened.store, record.server).hidden_wal(generation.number))
    try:
        history = archive.history(point.timeline)
        gap = archive.first_gap(history, Lsn.parse(point.start_lsn), Lsn.parse(point.lsn))
        if gap is None:
            _require_point(archive, record)
            return []
        problem = f"the segment {gap} is not there: its restore point cannot be reached"
    except (CorruptObjectError, WalMissingError) as error:
        problem = error.message
    return [
        Finding(
            severity="fail",
            code="set-wal",
            subject=record.set_id,
            message=problem,
            hint="bring it back from another repository: pgrecall repair; until then the set can be"
            " restored with --logical, if it has a dump",
        )
    ]


def _require_point(archive: WalArchive, record: SetRecord) -> None:
    """Raise CorruptObjectError unless the segment holds the restore point of the set."""
    assert record.point is not None
    index = archive.index(record.point.segment)
    if index.has_more_restore_points:
        return  # the index lists the first ones only
    if all(one.name != record.set_id for one in index.restore_points):
        raise CorruptObjectError(
            f"the segment {record.point.segment} holds no restore point {record.set_id}"
        )


def _merged(proofs: Sequence[VerifyProof], findings: Sequence[Finding]) -> VerifyProof:
    """What several verifications have shown together."""
    whole = VerifyProof(findings=tuple(findings))
    for one in proofs:
        whole = msgspec.structs.replace(
            whole,
            backups=whole.backups + one.backups,
            wal=whole.wal + one.wal,
            records=whole.records + one.records,
            damage=whole.damage + one.damage,
            referring={**whole.referring, **one.referring},
            findings=whole.findings + one.findings,
            stopped=whole.stopped or one.stopped,
            skipped=whole.skipped + one.skipped,
        )
    return whole
