"""How far a verification has come, written down now and then, so that another can go on there."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from pgrecall.model.damage import DEPTHS, Depth
from pgrecall.model.findings import Finding, worst
from pgrecall.model.verifications import ProvenBackup, ProvenWal, Verification
from pgrecall.repository.verifications import Verifications
from pgrecall.system.clock import Clock
from pgrecall.verify.backups import BackupProof
from pgrecall.verify.wal import WalProof

# So much work is lost at most when the process is killed; an interrupted one writes at once.
INTERVAL = timedelta(minutes=5)


def resumable(records: Verifications, wanted: str, depth: Depth) -> Verification | None:
    """The verification to go on from: the newest of ``wanted``, if it did not come to its end.

    One that looked less deep has proven too little. Raises StoreError.
    """
    newest = records.newest(lambda record: record.wanted == wanted)
    if newest is None or newest.is_complete:
        return None
    return newest if DEPTHS.index(newest.depth) >= DEPTHS.index(depth) else None


class ProgressLog:
    """What this verification has proven, and what the one that it goes on from has."""

    def __init__(
        self,
        records: Verifications,
        clock: Clock,
        record: Verification,
        earlier: Verification | None = None,
    ) -> None:
        """``record``: who verifies what; nothing is proven in it yet."""
        self._records = records
        self._clock = clock
        self._record = record
        self._written_at = clock.now()
        self._backups: dict[str, ProvenBackup] = {}
        self._wal: dict[tuple[int, int], str] = {}
        self._findings: list[Finding] = []
        if earlier is not None:
            self._record = msgspec.structs.replace(
                record, started_at=earlier.started_at, resumes=earlier.run_id
            )
            # What failed is looked at again, so that it is told again.
            whole = (one for one in earlier.backups if one.result != "fail")
            self._backups = {one.backup_id: one for one in whole}
            self._wal = {(one.generation, one.timeline): one.through for one in earlier.wal}

    def is_proven(self, backup_id: str) -> bool:
        """Whether nothing of the backup is left to verify."""
        known = self._backups.get(backup_id)
        return known is not None and known.is_done

    def proven_packs(self, backup_id: str) -> int:
        """How many packs of the backup, from the first on, are proven."""
        known = self._backups.get(backup_id)
        return known.packs if known is not None else 0

    def proven_wal(self, generation: int) -> dict[int, str]:
        """Of each timeline, the file up to which everything is proven."""
        return {line: name for (number, line), name in self._wal.items() if number == generation}

    def backup(self, proof: BackupProof) -> None:
        """Note what became of a backup; written when it is time."""
        self._findings += proof.findings
        result = worst(list(proof.findings))
        self._backups[proof.backup_id] = ProvenBackup(
            proof.backup_id, proof.proven_packs, proof.is_done, result
        )
        if self._clock.now() - self._written_at >= INTERVAL:
            self.write()

    def wal(self, proof: WalProof) -> None:
        """Note what became of a generation's WAL."""
        self._findings += proof.findings
        for timeline, name in proof.through.items():
            self._wal[proof.generation, timeline] = name

    def findings(self, found: list[Finding]) -> None:
        """Note other findings: they count for the result."""
        self._findings += found

    def write(self, *, is_complete: bool = False) -> None:
        """Write everything that is known. Durable. Raises StoreError."""
        self._written_at = self._clock.now()
        wal = sorted((*place, name) for place, name in self._wal.items())
        record = msgspec.structs.replace(
            self._record,
            recorded_at=self._written_at,
            is_complete=is_complete,
            result=worst(self._findings),
            backups=tuple(self._backups[key] for key in sorted(self._backups)),
            wal=tuple(ProvenWal(*one) for one in wal),
        )
        self._records.add(record)
