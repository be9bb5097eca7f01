"""What runs that were killed have left in a repository: who looks at it, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from pgrecall.model.findings import Finding
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog, Unfinished
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.settings import RepositorySettings
from pgrecall.store.base import ObjectInfo, Store
from pgrecall.store.remains import ABANDONED_AFTER, abandoned_files


def remains(
    store: Store, settings: RepositorySettings, server: str, now: datetime
) -> Iterator[Finding]:
    """Findings on unfinished backups, dumps and temporary files that are older than a day.

    A backup or dump that still runs, on whatever host, stores something all the time: it is
    not among them. Raises StoreError.
    """
    found = [*Catalog(store, server).unfinished(), *DumpCatalog(store, server).unfinished()]
    yield from judge_unfinished(found, settings, server, now)
    yield from judge_abandoned(abandoned_files(settings), settings)


def judge_unfinished(
    found: list[Unfinished], settings: RepositorySettings, server: str, now: datetime
) -> Iterator[Finding]:
    """A warning for each backup without completion record whose newest object is a day old."""
    for one in found:
        if now - one.newest_at < ABANDONED_AFTER:
            continue
        prefix = layout.backup_prefix(server, one.backup_id)
        place = f"{settings.path.rstrip('/')}/{prefix}" if settings.store == "local" else prefix
        yield Finding(
            severity="warn",
            code="backup-unfinished",
            subject=settings.name,
            message=f"{one.backup_id} was never completed, and holds {one.stored_bytes} bytes in "
            f"{one.objects} objects, the newest of {one.newest_at.isoformat(timespec='seconds')}",
            hint=f"nothing reads it: `pgrecall purge` deletes {place} when the grace is over",
        )


def judge_abandoned(found: list[ObjectInfo], settings: RepositorySettings) -> Iterator[Finding]:
    """One warning for all temporary files together."""
    if found:
        yield Finding(
            severity="warn",
            code="temporary-files",
            subject=settings.name,
            message=f"{len(found)} temporary files of writers that were killed take "
            f"{sum(info.size for info in found)} bytes, for example {found[0].key}",
            hint="the next backup removes them",
        )
