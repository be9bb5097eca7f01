"""What a verification looks at; pure."""

from __future__ import annotations

from collections.abc import Sequence

from pgrecall.errors import BackupNotFoundError
from pgrecall.further_errors import DumpNotFoundError
from pgrecall.model.damage import Depth
from pgrecall.model.dumps import DumpCompletion
from pgrecall.model.ids import BACKUP, DUMP, check_id, kind_of
from pgrecall.model.manifest import Completion

FAST: Depth = "fast"
STORED: Depth = "stored"
FULL: Depth = "full"

ALL = "all"

__all__ = ["ALL", "FAST", "FULL", "STORED", "Depth", "chosen_backups", "chosen_dumps"]


def chosen_dumps(complete: Sequence[DumpCompletion], wanted: str) -> list[DumpCompletion]:
    """Of the dumps that exist those to be verified; none when ``wanted`` is a backup's id.

    Raises DumpNotFoundError.
    """
    if wanted in ("", ALL):
        return list(complete)
    found = [dump for dump in complete if dump.backup_id == wanted]
    if not found and kind_of(wanted) == DUMP:
        raise DumpNotFoundError(
            f"there is no complete dump {wanted}",
            hint="'pgrecall dumps list' shows those there are",
        )
    return found


def chosen_backups(complete: Sequence[Completion], wanted: str) -> list[Completion]:
    """Of the backups that exist those to be verified: one by its id, all, or none for a dump's.

    Raises BackupNotFoundError, UsageError (no such id).
    """
    if wanted in ("", ALL):
        return list(complete)
    if kind_of(wanted) == DUMP:
        return []
    check_id(wanted, BACKUP)
    found = [backup for backup in complete if backup.backup_id == wanted]
    if not found:
        raise BackupNotFoundError(
            f"there is no complete backup {wanted}",
            hint="'pgrecall backups list' shows those there are",
        )
    return found
