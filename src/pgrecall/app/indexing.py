"""``wal index``: indexes for segments that were stored before indexes told of tables."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository, main_repository, newest_archive
from pgrecall.app.requests import WalIndexRequest
from pgrecall.errors import CorruptObjectError, UsageError, WalFormatError
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import SEGMENT, WalFile, segment_name
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.repository.wal_knowledge import has_later_index, make_later_index
from pgrecall.repository.wal_rollups import unrolled, write_rollups


class WalIndexPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What will be read: ``to_index`` of ``segments`` lack what an index tells now.

    ``to_roll_up``: finished log directories, whose indexes will be stored in one object.
    """

    server: str
    repository: str
    segments: int
    to_index: int
    read_bytes: int
    first_segment: str
    last_segment: str
    to_roll_up: int = 0


class WalIndexResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``wal index`` prints; ``indexed`` and ``rolled_up`` count objects that were written."""

    plan: WalIndexPlan
    indexed: int
    rolled_up: int = 0
    findings: tuple[Finding, ...] = ()


def run_wal_index(context: RunContext, request: WalIndexRequest) -> WalIndexResult:
    """Read the segments that lack it, and store an index for each beside the archive.

    Segments are not changed. Each index is durable when the next segment is read, so that a run
    that was interrupted goes on where it stopped. A damaged segment becomes a finding. Raises
    UsageError, RepositoryError, StoreError.
    """
    opened = main_repository(context)
    archive = newest_archive(opened, context.server.name)
    names = list(_chosen(archive, request))
    wanted = [
        name
        for name, index in archive.indexes(names)
        if index.knowledge is None and not has_later_index(archive, name)
    ]
    plan = WalIndexPlan(
        server=context.server.name,
        repository=opened.settings.name,
        segments=len(names),
        to_index=len(wanted),
        read_bytes=len(wanted) * archive.segment_bytes,
        first_segment=wanted[0] if wanted else "",
        last_segment=wanted[-1] if wanted else "",
        to_roll_up=len(unrolled(archive.store, archive.server, archive.generation)),
    )
    if not (wanted or plan.to_roll_up) or not context.approve(plan):
        return WalIndexResult(plan=plan, indexed=0)
    return _index(context, opened, archive, plan, wanted)


def _index(
    context: RunContext,
    opened: OpenedRepository,
    archive: WalArchive,
    plan: WalIndexPlan,
    wanted: list[str],
) -> WalIndexResult:
    findings: list[Finding] = []
    indexed = 0
    progress = context.progress
    progress.phase("index")
    progress.start(plan.read_bytes)
    for name in wanted:
        try:
            indexed += make_later_index(archive, name, opened.identity.repository_id)
        except (CorruptObjectError, WalFormatError) as error:
            findings.append(
                Finding(
                    severity="fail",
                    code=error.code,
                    subject=name,
                    message=error.message,
                    hint=error.hint,
                )
            )
        progress.advance(archive.segment_bytes)
    progress.phase("roll up")
    written, problems = write_rollups(
        archive.store, archive.server, archive.generation, opened.identity.repository_id
    )
    progress.done()
    return WalIndexResult(
        plan=plan,
        indexed=indexed,
        rolled_up=len(written),
        findings=(*findings, *problems),
    )


def _chosen(archive: WalArchive, request: WalIndexRequest) -> Iterator[str]:
    timelines = archive.timelines()
    if request.timeline is not None:
        if request.timeline not in timelines:
            raise UsageError(
                f"timeline {request.timeline} is not in the archive",
                hint=f"archived are: {', '.join(map(str, timelines))}",
            )
        timelines = [request.timeline]
    first, last = (_bound(archive, text) for text in (request.first, request.last))
    for timeline in timelines:
        for segment in archive.segments(timeline, first, last):
            yield segment.name


def _bound(archive: WalArchive, text: str) -> str | None:
    """A bound as the name of a segment; its timeline does not count."""
    if not text:
        return None
    if "/" in text:
        return segment_name(1, Lsn.parse(text), archive.segment_bytes)
    file = WalFile(text)
    if file.kind != SEGMENT:
        raise UsageError(f"{text!r} is not the name of a segment")
    return text
