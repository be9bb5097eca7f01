"""The objects of block digests that a backup refers to, its own and those of older ones."""

from __future__ import annotations

from collections.abc import Callable

from pgrecall.errors import CorruptObjectError, ObjectMissingError
from pgrecall.model.findings import Finding
from pgrecall.repository.block_digests import DigestReader
from pgrecall.store.base import Store
from pgrecall.verify.plan import FAST, Depth


def verify_digests(
    store: Store, reader: DigestReader, backup_id: str, depth: Depth, take: Callable[[int], None]
) -> list[Finding]:
    """Prove that they are there, and unless ``depth`` is fast that they are whole.

    ``take`` is told the bytes of each before it is read. Raises StoreError.
    """
    findings = []
    for index, entry in enumerate(reader.objects):
        key = reader.key(index)
        said = ""
        try:
            if depth == FAST:
                info = store.head(key)
                if info is None:
                    said = f"{key} is missing"
                elif info.size != entry.stored_bytes:
                    said = f"{key} has {info.size} bytes, not {entry.stored_bytes}"
            else:
                take(entry.stored_bytes)
                reader.read(index)
        except ObjectMissingError:
            said = f"{key} is missing"
        except CorruptObjectError as error:
            said = error.message
        if said:
            findings.append(_finding(backup_id, said))
    return findings


def _finding(backup_id: str, said: str) -> Finding:
    return Finding(
        severity="fail",
        code="digests-damaged",
        subject=backup_id,
        message=said,
        hint="the backup can be restored; what goes by its digests (an incremental backup,"
        " restore --delta) cannot: take a full backup",
    )
