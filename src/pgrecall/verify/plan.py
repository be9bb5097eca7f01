"""What a verification looks at; pure."""

from __future__ import annotations

from collections.abc import Sequence

from pgrecall.errors import BackupNotFoundError
from pgrecall.model.damage import Depth
from pgrecall.model.ids import BACKUP, check_id
from pgrecall.model.manifest import Completion

FAST: Depth = "fast"
STORED: Depth = "stored"
FULL: Depth = "full"

ALL = "all"

__all__ = ["ALL", "FAST", "FULL", "STORED", "Depth", "chosen_backups"]


def chosen_backups(complete: Sequence[Completion], wanted: str) -> list[Completion]:
    """Of the backups that exist those to be verified: one by its id, or all.

    Raises BackupNotFoundError, UsageError (no such id).
    """
    if wanted in ("", ALL):
        return list(complete)
    check_id(wanted, BACKUP)
    found = [backup for backup in complete if backup.backup_id == wanted]
    if not found:
        raise BackupNotFoundError(
            f"there is no complete backup {wanted}",
            hint="'pgrecall backups list' shows those there are",
        )
    return found
