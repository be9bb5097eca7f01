"""One backup: its manifest, its packs, and at full depth every file that they make."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from pgrecall.codec.crc import crc32c_combine, crc32c_of_zeros
from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import Completion
from pgrecall.repository.block_digests import DigestReader
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.contents import Contents
from pgrecall.repository.pack_source import PackSource
from pgrecall.system.throttle import Throttle
from pgrecall.verify.digests import verify_digests
from pgrecall.verify.packs import PackProof, PackVerifier
from pgrecall.verify.plan import FULL, Depth

_PIECES = np.dtype([("file", "u4"), ("offset", "u8"), ("length", "u8"), ("crc", "u4")])
# Of the files of one backup so many are named.
_MOST_NAMED = 20


class BackupProof(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one backup: what was read, and what is wrong with it."""

    backup_id: str
    packs: int = 0
    files: int = 0
    stored_bytes: int = 0
    raw_bytes: int = 0
    pages_checked: int = 0
    findings: tuple[Finding, ...] = ()


class BackupVerifier:
    """Verifies backups of one catalog, the packs of each by ``workers`` threads.

    Memory: for each worker a few MiB, and for a backup what a restore's plan takes;
    at full depth 24 bytes for each MiB of it besides.
    """

    def __init__(self, catalog: Catalog, depth: Depth, throttle: Throttle, workers: int) -> None:
        self._catalog = catalog
        self._depth = depth
        self._throttle = throttle
        self._workers = workers

    def verify(self, backup: Completion, advance: Callable[[int], None]) -> BackupProof:
        """Prove one backup; ``advance`` is told the stored bytes of each pack that is done.

        Raises StoreError: then nothing is known of it.
        """
        try:
            manifest = self._catalog.manifest(backup)
            packs = manifest.packs()
            digests = manifest.digests()
            contents = Contents(len(packs), manifest.root.server.block_bytes)
            contents.read(manifest.files())
        except (CorruptObjectError, ObjectMissingError, RepositoryError) as error:
            finding = Finding(
                severity="fail",
                code="manifest-damaged",
                subject=backup.backup_id,
                message=error.message,
                hint="this backup cannot be restored: take another one now",
            )
            return BackupProof(backup_id=backup.backup_id, findings=(finding,))
        source = PackSource(self._catalog.store, self._catalog.server, backup.backup_id, packs)
        verifier = PackVerifier(manifest.root, contents, source, self._depth, self._throttle)

        def prove(index: int) -> PackProof:
            proof = verifier.verify(index)
            advance(source.packs[index].stored_bytes)
            return proof

        with ThreadPoolExecutor(self._workers, thread_name_prefix="verify") as pool:
            proofs = list(pool.map(prove, range(len(packs))))
        findings = [finding for proof in proofs for finding in proof.findings]
        store, server = self._catalog.store, self._catalog.server
        reader = DigestReader(store, server, backup.backup_id, digests)
        findings += verify_digests(
            store, reader, backup.backup_id, self._depth, self._throttle.take
        )
        if self._depth == FULL:
            damaged = _damaged_files(contents, proofs)
            findings += _named(contents, damaged, backup.backup_id)
        return BackupProof(
            backup_id=backup.backup_id,
            packs=len(packs),
            files=sum(1 for _ in contents.table.files()),
            stored_bytes=sum(proof.stored_bytes for proof in proofs),
            raw_bytes=sum(proof.raw_bytes for proof in proofs),
            pages_checked=sum(proof.pages_checked for proof in proofs),
            findings=tuple(findings),
        )


def _damaged_files(contents: Contents, proofs: Sequence[PackProof]) -> list[int]:
    """Files whose bytes together are not those that the manifest has the checksum of."""
    pieces = np.frombuffer(b"".join(proof.pieces for proof in proofs), _PIECES)
    pieces = pieces[np.lexsort((pieces["offset"], pieces["file"]))]
    crcs = array("I", bytes(4 * len(contents.table)))
    ends = array("Q", bytes(8 * len(contents.table)))
    for file, offset, length, crc in pieces.tolist():
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


def _named(contents: Contents, files: Sequence[int], backup_id: str) -> list[Finding]:
    names = [contents.table.path(file).decode(errors="replace") for file in files[:_MOST_NAMED]]
    more = len(files) - len(names)
    if not names:
        return []
    return [
        Finding(
            severity="fail",
            code="file-damaged",
            subject=backup_id,
            message="the checksum of the whole file does not match: "
            + ", ".join(names)
            + (f" and {more} more files" if more else ""),
            hint="what a restore would write is not what was backed up: take another backup now",
        )
    ]
