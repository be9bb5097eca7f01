"""One backup or dump: its manifest, its packs, and at full depth every file that they make."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from pgrecall.codec.crc import crc32c_combine, crc32c_of_zeros
from pgrecall.errors import (
    CorruptObjectError,
    ObjectMissingError,
    PgrecallError,
    RepositoryError,
)
from pgrecall.model.damage import DIGESTS_DAMAGED, DamagedObject
from pgrecall.model.findings import Finding
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.contents import Contents
from pgrecall.repository.dump_catalog import AnyCompletion, any_manifest
from pgrecall.repository.pack_source import PackSource
from pgrecall.system.faults import reached
from pgrecall.system.throttle import Throttle
from pgrecall.verify.digests import DigestsVerifier
from pgrecall.verify.objects import damaged_documents
from pgrecall.verify.packs import PIECE_RECORD, PackProof, PackVerifier, page_bytes
from pgrecall.verify.plan import FULL, Depth

_HINT = (
    "heal it from another repository: pgrecall repair; where there is none, take another backup"
    " now, and restore an older one until then"
)
# Of the files of one backup so many are named.
_MOST_NAMED = 20


class BackupProof(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one backup: what was read, and what is wrong with it.

    ``read_bytes``: stored bytes that were read for it; packs that it shares with a backup
    that was verified before are not read twice. ``proven_packs``: so many, from the first
    on, are whole; ``is_done``: nothing of it is left to verify.
    """

    backup_id: str
    packs: int = 0
    files: int = 0
    stored_bytes: int = 0
    read_bytes: int = 0
    raw_bytes: int = 0
    pages_checked: int = 0
    proven_packs: int = 0
    is_done: bool = True
    damage: tuple[DamagedObject, ...] = ()
    findings: tuple[Finding, ...] = ()


class BackupVerifier:
    """Verifies backups of one catalog, the packs of each by ``workers`` threads.

    Memory: for each worker a few MiB, and for a backup what a restore's plan takes;
    at full depth some 80 bytes for each MiB of it besides.
    """

    def __init__(
        self,
        catalog: Catalog,
        depth: Depth,
        throttle: Throttle,
        workers: int,
        *,
        accepted: frozenset[str],
    ) -> None:
        """``accepted``: ids of the repositories that objects here may come from."""
        self._catalog = catalog
        self._depth = depth
        self._throttle = throttle
        self._workers = workers
        self._accepted = accepted
        self._digests = DigestsVerifier(catalog, depth, throttle)
        self._known: dict[tuple[str, str], PackProof] = {}
        self._backup_id = ""
        self._proofs: list[PackProof] = []

    def verify(
        self, backup: AnyCompletion, advance: Callable[[int], None], *, skips: int = 0
    ) -> BackupProof:
        """Prove one backup; ``advance`` is told the stored bytes of each pack that is done.

        ``skips``: so many packs, from the first on, were proven before; not at full depth.
        Raises StoreError: then ``so_far`` has what is known of it.
        """
        self._backup_id, self._proofs = backup.backup_id, []
        try:
            manifest = any_manifest(self._catalog, backup)
            packs = manifest.packs()
            digests = manifest.digests()
            contents = Contents(len(packs), page_bytes(manifest.root))
            contents.read(manifest.files())
        except (CorruptObjectError, ObjectMissingError, RepositoryError) as error:
            return self._without_manifest(backup, error)
        source = PackSource(self._catalog.store, self._catalog.server, backup.backup_id, packs)
        verifier = PackVerifier(manifest.root, contents, source, self._depth, self._throttle)

        def prove(index: int) -> PackProof:
            proof = self._once(source, verifier, index)
            advance(source.packs[index].stored_bytes)
            return proof

        left = range(skips if self._depth != FULL else 0, len(packs))
        with ThreadPoolExecutor(self._workers, thread_name_prefix="verify") as pool:
            for proof in pool.map(prove, left):
                self._proofs.append(proof)
                reached("verify.pack")
        damage = [one for proof in self._proofs for one in proof.damage]
        damage += self._digests.damaged(backup.backup_id, digests)
        if self._depth == FULL:
            damage += _named(contents, _damaged_files(contents, self._proofs))
        origins = {manifest.root.repository_id, *(proof.origin for proof in self._proofs)} - {""}
        findings = [_finding(backup.backup_id, one) for one in damage]
        findings += _strangers(backup.backup_id, origins - self._accepted)
        return BackupProof(
            backup_id=backup.backup_id,
            packs=len(packs),
            files=sum(1 for _ in contents.table.files()),
            stored_bytes=sum(proof.stored_bytes for proof in self._proofs),
            read_bytes=_read_bytes(self._proofs),
            raw_bytes=sum(proof.raw_bytes for proof in self._proofs),
            pages_checked=sum(proof.pages_checked for proof in self._proofs),
            proven_packs=len(packs),
            damage=tuple(damage),
            findings=tuple(findings),
        )

    def so_far(self, *, skips: int = 0) -> BackupProof:
        """What is known of a backup whose verification did not come to its end."""
        damage = [one for proof in self._proofs for one in proof.damage]
        return BackupProof(
            backup_id=self._backup_id,
            packs=skips + len(self._proofs),
            stored_bytes=sum(proof.stored_bytes for proof in self._proofs),
            read_bytes=_read_bytes(self._proofs),
            proven_packs=0 if damage else skips + len(self._proofs),
            is_done=False,
            damage=tuple(damage),
            findings=tuple(_finding(self._backup_id, one) for one in damage),
        )

    def _once(self, source: PackSource, verifier: PackVerifier, index: int) -> PackProof:
        """Prove a pack, unless an older backup that refers to it had it proven."""
        if self._depth == FULL:  # which bytes of it are whose differs
            return verifier.verify(index)
        place = (source.key(index), source.packs[index].footer_digest)
        known = self._known.get(place)
        if known is None:
            known = self._known[place] = verifier.verify(index)
            return known
        again = PackProof()
        again.damage, again.origin = known.damage, known.origin
        again.stored_bytes, again.is_known = known.stored_bytes, True
        return again

    def _without_manifest(self, backup: AnyCompletion, error: PgrecallError) -> BackupProof:
        damage = damaged_documents(self._catalog, backup)
        if not damage:  # of a newer format, or parts that contradict each other
            key = layout.manifest_key(self._catalog.server, backup.backup_id)
            damage = [DamagedObject(key=key, code="manifest-damaged", message=error.message)]
        findings = tuple(_finding(backup.backup_id, one) for one in damage)
        return BackupProof(backup_id=backup.backup_id, damage=tuple(damage), findings=findings)


def _read_bytes(proofs: Sequence[PackProof]) -> int:
    return sum(proof.stored_bytes for proof in proofs if not proof.is_known)


def _finding(backup_id: str, damage: DamagedObject) -> Finding:
    if damage.code == DIGESTS_DAMAGED:
        hint = (
            "the backup can be restored; what goes by its digests (an incremental backup,"
            " restore --delta) cannot: pgrecall repair, or take a full backup"
        )
    else:
        hint = _HINT
    return Finding(
        severity="fail",
        code=damage.code,
        subject=backup_id,
        message=damage.message,
        hint=hint,
    )


def _strangers(backup_id: str, ids: set[str]) -> list[Finding]:
    return [
        Finding(
            severity="warn",
            code="strange-origin",
            subject=backup_id,
            message=f"objects of it were made in the repository {one}, which is none that was"
            " copied into this one",
            hint="it came here by another way than `pgrecall copy`: is that meant?",
        )
        for one in sorted(ids)
    ]


def _damaged_files(contents: Contents, proofs: Sequence[PackProof]) -> list[int]:
    """Files whose bytes together are not those that the manifest has the checksum of."""
    size = PIECE_RECORD.size
    pieces = sorted(
        bytes(proof.pieces[at : at + size])
        for proof in proofs
        for at in range(0, len(proof.pieces), size)
    )
    crcs = array("I", bytes(4 * len(contents.table)))
    ends = array("Q", bytes(8 * len(contents.table)))
    for file, offset, length, crc in map(PIECE_RECORD.unpack, pieces):
        end = ends[file]
        known = crcs[file]
        if offset > end:  # what no run covers is zeros
            known = _with_zeros(known, offset - end)
        crcs[file] = crc32c_combine(known, crc, length)
        ends[file] = offset + length
    return [
        file
        for file in contents.table.files()
        if _with_zeros(crcs[file], contents.table.sizes[file] - ends[file]) != contents.crcs[file]
        or ends[file] > contents.table.sizes[file]
    ]


def _with_zeros(crc: int, count: int) -> int:
    if count <= 0:
        return crc
    return crc32c_combine(crc, crc32c_of_zeros(count), count)


def _named(contents: Contents, files: Sequence[int]) -> list[DamagedObject]:
    names = [contents.table.path(file).decode(errors="replace") for file in files[:_MOST_NAMED]]
    more = len(files) - len(names)
    if not names:
        return []
    message = "the checksum of the whole file does not match: " + ", ".join(names)
    message += f" and {more} more files" if more else ""
    return [DamagedObject(key="", code="file-damaged", message=message)]
