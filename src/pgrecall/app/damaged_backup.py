"""Backups that are damaged: refused when they are named, explained when a restore meets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository
from pgrecall.errors import (
    BackupMarkedError,
    BackupNotFoundError,
    CorruptObjectError,
    ObjectMissingError,
    PgrecallError,
    RepositoryError,
)
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import Completion, ManifestRoot
from pgrecall.model.relation_files import first_block
from pgrecall.repository.catalog import Catalog
from pgrecall.settings import RepositorySettings
from pgrecall.verify.objects import check_stored_object

_MOST_NAMED = 5


def require_unmarked(catalog: Catalog, backup_id: str, *, is_allowed: bool) -> list[Finding]:
    """Raise BackupMarkedError for a backup that is marked as damaged, unless that is wanted.

    Then its damage comes back as a finding.
    """
    mark = catalog.damage.newest(backup_id)
    if mark is None or mark.state != "damaged":
        return []
    if is_allowed:
        return [mark.finding()]
    raise BackupMarkedError(
        f"backup {backup_id} is damaged in {catalog.store.name}: {mark.said()}",
        hint=f"heal it from another repository: pgrecall repair {backup_id}; or restore another"
        " backup, or the copy of it in another repository (--repository NAME). To try it as it"
        " is: --allow-damaged",
    )


@contextmanager
def damage_explained(
    context: RunContext,
    opened: OpenedRepository,
    backup: Completion,
    root: ManifestRoot | None = None,
) -> Iterator[None]:
    """Have corruption of a backup's object named with its blocks, and who else holds it.

    The same error comes out, telling more; with ``root`` bytes of relations are told
    as blocks, too (invariant 6).
    """
    try:
        yield
    except (CorruptObjectError, ObjectMissingError) as error:
        known = (
            error if isinstance(error, CorruptObjectError) else CorruptObjectError(error.message)
        )
        blocks = _blocks(known, root) if root is not None else ""
        holders = _holders(context, opened, backup, known.key)
        explained = CorruptObjectError(
            f"backup {backup.backup_id} is damaged in repository {opened.settings.name!r}:"
            f" {known.message}{blocks}{holders.said}",
            hint=holders.hint,
        )
        explained.key, explained.pieces = known.key, known.pieces
        raise explained from error


def _blocks(error: CorruptObjectError, root: ManifestRoot) -> str:
    """The blocks of relations that lie in what is damaged."""
    page = root.server.block_bytes
    per_segment = root.server.relation_segment_bytes // page
    told = []
    for path, offset, length in error.pieces:
        begin = first_block(path.encode(), per_segment)
        if begin is not None:
            first = begin + offset // page
            told.append(f"{path} blocks {first} to {begin + (offset + length - 1) // page}")
    if not told:
        return ""
    more = len(told) - _MOST_NAMED
    return f"; {', '.join(told[:_MOST_NAMED])}" + (f" and {more} more files" if more > 0 else "")


class _Holders:
    """What other repositories hold of the damaged object: whole, damaged, not there, unknown."""

    def __init__(self, backup_id: str) -> None:
        self.whole: list[str] = []
        self.others: list[str] = []
        self._backup_id = backup_id

    @property
    def said(self) -> str:
        parts = [f"repository {name!r} holds it whole" for name in self.whole]
        parts += self.others
        return "; " + "; ".join(parts) if parts else "; no other repository is configured"

    @property
    def hint(self) -> str:
        if not self.whole:
            return "restore an older backup (--backup ID), and take another one now"
        name = self.whole[0]
        return (
            f"heal it: pgrecall repair {self._backup_id}; or restore from the other copy:"
            f" --repository {name}"
        )


def _holders(
    context: RunContext, opened: OpenedRepository, backup: Completion, key: str
) -> _Holders:
    found = _Holders(backup.backup_id)
    for settings in context.settings.repositories_of(context.server):
        if settings.name == opened.settings.name:
            continue
        try:
            _check_copy(context, settings, backup, key)
        except (BackupNotFoundError, ObjectMissingError):
            found.others.append(f"repository {settings.name!r} does not hold it")
        except RepositoryError as error:
            found.others.append(f"repository {settings.name!r} cannot help: {error.message}")
        except PgrecallError as error:
            found.others.append(f"repository {settings.name!r} cannot be asked: {error.message}")
        else:
            found.whole.append(settings.name)
    return found


def _check_copy(
    context: RunContext, settings: RepositorySettings, backup: Completion, key: str
) -> None:
    """Read the same object in another repository; raises unless it is whole there."""
    other = OpenedRepository(settings, context.environment)
    catalog = other.catalog(backup.server)
    copy = catalog.get(backup.backup_id)
    if copy.manifest_digest != backup.manifest_digest:
        raise RepositoryError(f"its backup {backup.backup_id} is another one")
    check_stored_object(catalog, copy, key)
