"""What a copy from one repository to another consists of; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from pgrecall.model.findings import Finding
from pgrecall.store.base import ObjectInfo


class BackupToCopy(msgspec.Struct, frozen=True, kw_only=True):
    """One backup: of its ``objects`` so many are there already; ``left_bytes`` are to be copied."""

    backup_id: str
    objects: int
    present: int
    left_bytes: int


class RecordToCopy(msgspec.Struct, frozen=True):
    """A record of the source, and what the target calls it."""

    source_key: str
    key: str
    size: int


class CopyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What goes from ``source`` to ``target``. Sizes are those of the source.

    ``complete``: backups that are there, whole as far as their completion record says.
    """

    server: str
    source: str
    target: str
    complete: int
    backups: tuple[BackupToCopy, ...]
    wal_files: int
    wal_bytes: int
    records: int
    total_bytes: int
    findings: tuple[Finding, ...] = ()


def backup_to_copy(
    backup_id: str, sizes: Mapping[str, int], present: Mapping[str, int]
) -> BackupToCopy:
    """How much of a backup's objects (``sizes`` by key) is to be copied; its record is one more."""
    left = [key for key in sizes if key not in present]
    return BackupToCopy(
        backup_id=backup_id,
        objects=len(sizes) + 1,
        present=len(sizes) - len(left),
        left_bytes=sum(sizes[key] for key in left),
    )


def missing(source: Iterable[ObjectInfo], target: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    """What ``source`` lists and ``target`` does not; both in key order, read once, side by side."""
    others = iter(target)
    other = next(others, None)
    for info in source:
        while other is not None and other.key < info.key:
            other = next(others, None)
        if other is None or other.key != info.key:
            yield info
