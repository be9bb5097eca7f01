"""``find``: the moment before a mistake, and the command line that brings it back."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.finding_tables import LostTable, TableSearch
from pgrecall.app.opened import main_repository, newest_archive
from pgrecall.app.requests import FindRequest
from pgrecall.errors import UsageError, WalMissingError
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile
from pgrecall.model.wal_index import RestorePoint, Transaction, datetime_of
from pgrecall.repository.name_maps import NameMaps
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.repository.wal_knowledge import path_with_tails
from pgrecall.wal.moments import Moments, Segments
from pgrecall.wal.table_patterns import TablePattern


class FoundMoment(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was found. ``restore`` brings the state just before it.

    Of a restore point, and of the last commit before a time, it brings that one, too. It is
    empty where every backup is later. ``rescue`` brings that table alone, beside what is there now.
    ``at`` is the time in WAL, where there is one; ``rows``
    counts deleted rows. ``note``: what to do after the restore.
    """

    what: str
    name: str
    at: datetime | None
    timeline: int
    lsn: str
    xid: int
    rows: int | None
    restore: str
    rescue: str = ""
    note: str = ""


class SearchedRange(msgspec.Struct, frozen=True, kw_only=True):
    """The WAL of one timeline that was searched; ``unknown_segments`` tell nothing of tables.

    It ends at ``end_lsn``; the last commit in it, or rollback, was at ``last_end_at``. ``tail``
    names the last segment when it is not whole yet: a receiver stored its beginning.
    """

    timeline: int
    segments: int
    first_segment: str
    last_segment: str
    gaps: int
    unknown_segments: int
    end_lsn: str
    last_end_at: datetime | None
    tail: str = ""


class FindResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``find`` prints. ``candidates``: tables that the name may mean, when there are several.

    ``found`` is in the order of WAL, timeline by timeline.
    """

    server: str
    repository: str
    question: str
    found: tuple[FoundMoment, ...]
    candidates: tuple[str, ...]
    searched: tuple[SearchedRange, ...]
    findings: tuple[Finding, ...] = ()


def run_find(context: RunContext, request: FindRequest) -> FindResult:
    """Search the archive of the chosen server's newest generation; writes nothing.

    Finding nothing is a result, and ``findings`` say where nothing could be known. Raises
    UsageError, RepositoryError, StoreError, CorruptObjectError.
    """
    opened = main_repository(context)
    archive = newest_archive(opened, context.server.name)
    histories = _histories(archive, request.timeline)
    backups = [
        backup
        for backup in opened.catalog(context.server.name).usable()[0]
        if backup.generation == archive.generation.number
    ]
    search = _Search(context, request, archive, (histories, backups))
    maps = NameMaps(opened.store, context.server.name, archive.generation)
    found: dict[tuple[object, ...], FoundMoment] = {}
    searched: list[SearchedRange] = []
    for history in histories.chosen:
        segments, tails = path_with_tails(archive, history)
        tables = TableSearch(archive, maps, history)
        for moment in search.along(history, segments, tables):
            key = (moment.timeline, Lsn.parse(moment.lsn), moment.what, moment.name, moment.xid)
            found.setdefault(key, moment)
        searched.append(_searched(history, segments, tables, archive))
        if segments and segments[-1][0] in tails:
            searched[-1] = msgspec.structs.replace(searched[-1], tail=segments[-1][0])
    moments = sorted(found.items(), key=_in_order)
    return FindResult(
        server=context.server.name,
        repository=opened.settings.name,
        question=search.question,
        found=tuple(moment for _, moment in moments),
        candidates=tuple(sorted(search.candidates)) if len(search.candidates) > 1 else (),
        searched=tuple(searched),
        findings=(
            *histories.findings,
            *search.findings(searched),
            *(() if moments else (_nothing(search.question, searched),)),
        ),
    )


def _nothing(question: str, searched: list[SearchedRange]) -> Finding:
    """Says that the answer is empty, and of what."""
    count = sum(one.segments for one in searched)
    ends = ", ".join(one.end_lsn for one in searched if one.end_lsn)
    return Finding(
        severity="ok",
        code="nothing-found",
        subject=question,
        message=f"nothing found in {count} segments, up to {ends or 'nowhere'}; what was written"
        " since is searched when it is archived (pgrecall wal switch) or received",
    )


class _Histories:
    """The timelines to search, parents first."""

    def __init__(self, found: dict[int, TimelineHistory], lost: list[int], one: int | None) -> None:
        self.all = found
        self.chosen = [
            history
            for timeline, history in sorted(found.items(), key=_age)
            if one is None or timeline == one
        ]
        self.findings = [
            Finding(
                severity="warn",
                code="timeline-without-history",
                subject=f"timeline {timeline}",
                message="its history file is not archived: it was not searched",
                hint="push its .history file from the server's pg_wal",
            )
            for timeline in lost
        ]


def _histories(archive: WalArchive, timeline: int | None) -> _Histories:
    found = archive.histories()
    present = sorted({*archive.timelines(), *archive.timelines_with_tails()})
    lost = [number for number in present if number not in found]
    if timeline is not None and timeline not in found:
        raise WalMissingError(
            f"timeline {timeline} of {archive.server!r} is not in {archive.store.name}",
            hint=f"archived are: {', '.join(map(str, sorted(found)))}",
        )
    usable = {number: history for number, history in found.items() if number in present}
    return _Histories(usable, lost if timeline is None else [], timeline)


class _Search:
    """The one question that was asked."""

    def __init__(
        self,
        context: RunContext,
        request: FindRequest,
        archive: WalArchive,
        known: tuple[_Histories, list[Completion]],
    ) -> None:
        histories, self._backups = known
        self._unreachable = 0
        self._request = request
        self._archive = archive
        self._options: list[str] = []
        if len(context.settings.servers) > 1:
            self._options += ["--server", context.server.name]
        if context.repository_name is not None:
            self._options += ["--repository", context.repository_name]
        self._names_timeline = len(histories.all) > 1
        self.candidates: set[str] = set()
        self._blind: set[str] = set()
        self._has_names = False
        text = request.dropped or request.truncated
        self._pattern = TablePattern(text) if text else None
        self.question = self._question()

    def _question(self) -> str:
        request = self._request
        asked = {
            "restore points": request.restore_points,
            f"when {request.dropped} was dropped": bool(request.dropped),
            f"when {request.truncated} was truncated": bool(request.truncated),
            f"commits around {request.at}": request.at is not None,
            f"transaction {request.xid}": bool(request.xid),
            "transactions that deleted many rows": request.deletes,
        }
        chosen = [text for text, is_asked in asked.items() if is_asked]
        if len(chosen) != 1:
            raise UsageError(
                "find answers one question at a time" if chosen else "find what?",
                hint="--restore-points, --dropped TABLE, --truncated TABLE, --at TIME, --xid XID"
                " or --deletes",
            )
        return chosen[0]

    def along(
        self, history: TimelineHistory, segments: Segments, tables: TableSearch
    ) -> Iterator[FoundMoment]:
        """Everything that answers the question along one path."""
        request = self._request
        moments = Moments(self._archive, segments)
        if request.restore_points:
            yield from self._points(history, list(moments.restore_points()))
        elif request.xid:
            transaction = moments.transaction(request.xid)
            if transaction is not None:
                yield self._ended(history, transaction, "")
        elif request.at is not None:
            before, after = moments.around(request.at)
            if before is not None:
                yield self._ended(history, before, "last commit before")
            if after is not None:
                yield self._ended(history, after, "first commit after")
        else:
            yield from self._tables(history, segments, tables)

    def findings(self, searched: list[SearchedRange]) -> list[Finding]:
        """What the answer does not cover."""
        found = []
        unknown = sum(one.unknown_segments for one in searched)
        if unknown:
            found.append(
                Finding(
                    severity="warn",
                    code="segments-not-indexed",
                    subject=f"{unknown} segments",
                    message="their indexes were made before they told of tables: not known"
                    " what was dropped, truncated or deleted in them",
                    hint="pgrecall wal index makes them anew, then ask again",
                )
            )
        if self._unreachable:
            found.append(
                Finding(
                    severity="warn",
                    code="no-backup-before",
                    subject=f"{self._unreachable} moments",
                    message="every backup that there is ended later: what was lost then cannot be"
                    " restored from this repository",
                    hint="look into other repositories: --repository NAME",
                )
            )
        for database in sorted(self._blind):
            found.append(
                Finding(
                    severity="warn",
                    code="catalog-rewritten",
                    subject=database,
                    message="pg_class was rewritten (VACUUM FULL): names that changed since"
                    " are known from name maps only",
                )
            )
        if self._pattern is not None and not self.candidates:
            found.append(
                Finding(
                    severity="warn",
                    code="table-not-known",
                    subject=self._pattern.text,
                    message="no table of this name is in any name map or in the WAL searched",
                    hint="is the name right? Every backup records the names of its moment"
                    if self._has_names
                    else "no name map was found: every backup records one from now on",
                )
            )
        elif self._pattern is not None and self._pattern.is_exact and len(self.candidates) > 1:
            found.append(
                Finding(
                    severity="warn",
                    code="table-ambiguous",
                    subject=self._pattern.text,
                    message=f"{len(self.candidates)} tables have this name; all are shown",
                    hint="write SCHEMA.TABLE or DATABASE.SCHEMA.TABLE",
                )
            )
        return found

    # --- inside --------------------------------------------------------------------

    def _points(
        self, history: TimelineHistory, points: list[RestorePoint]
    ) -> Iterator[FoundMoment]:
        names = [point.name for point in points]
        for point in points:
            # PostgreSQL stops at the first of a name: others are reached by their position.
            is_unique = names.count(point.name) == 1
            target = ("--to-name", point.name) if is_unique else ("--to-lsn", str(point.lsn))
            timeline = history.timeline_at(point.lsn)
            yield FoundMoment(
                what="restore point",
                name=point.name,
                at=point.created_at,
                timeline=timeline,
                lsn=str(point.lsn),
                xid=0,
                rows=None,
                restore=self._command((history, point.lsn), *target),
            )

    def _ended(self, history: TimelineHistory, ended: Transaction, role: str) -> FoundMoment:
        timeline = history.timeline_at(ended.lsn)
        is_before = role.endswith("before")
        inclusion = () if is_before else ("--exclusive",)
        return FoundMoment(
            what=role or ("commit" if ended.is_commit else "abort"),
            name=f"transaction {ended.xid}",
            at=ended.ended_at,
            timeline=timeline,
            lsn=str(ended.lsn),
            xid=ended.xid,
            rows=None,
            restore=self._command((history, ended.lsn), "--to-lsn", str(ended.lsn), *inclusion),
        )

    def _tables(
        self, history: TimelineHistory, segments: Segments, tables: TableSearch
    ) -> Iterator[FoundMoment]:
        wanted = (
            "deleted"
            if self._request.deletes
            else "dropped"
            if self._request.dropped
            else "truncated"
        )
        for lost in tables.search(segments, wanted, self._pattern):
            timeline = history.timeline_at(lost.lsn)
            yield FoundMoment(
                what=lost.what,
                name=lost.name,
                at=datetime_of(lost.time) if lost.time is not None else None,
                timeline=timeline,
                lsn=str(Lsn(lost.lsn)),
                xid=lost.xid,
                rows=lost.rows,
                restore=self._restore_of(history, lost),
                rescue=self._rescue_of(history, lost),
                note=lost.note,
            )
        self.candidates |= tables.candidates
        self._blind |= tables.blind
        self._has_names |= tables.has_names

    def _restore_of(self, history: TimelineHistory, lost: LostTable) -> str:
        return self._command((history, lost.lsn), "--to-lsn", str(Lsn(lost.lsn)), "--exclusive")

    def _rescue_of(self, history: TimelineHistory, lost: LostTable) -> str:
        if lost.table is None or not self._is_reachable(history, lost.lsn):
            return ""
        database, schema, name = lost.table
        target = ("--database", database, "--to-lsn", str(Lsn(lost.lsn)), "--exclusive")
        table = f"{schema}.{name}"
        last = ("--", table) if table.startswith("-") else (table,)
        return self._line("rescue", history.timeline_at(lost.lsn), target, last)

    def _command(self, place: tuple[TimelineHistory, int], *target: str) -> str:
        """The command line for a target at an LSN; empty without a backup that leads there."""
        history, lsn = place
        if not self._is_reachable(history, lsn):
            self._unreachable += 1
            return ""
        return self._line("restore", history.timeline_at(lsn), target)

    def _is_reachable(self, history: TimelineHistory, lsn: int) -> bool:
        return any(_leads_to(backup, history, lsn) for backup in self._backups)

    def _line(
        self, command: str, timeline: int, target: tuple[str, ...], last: tuple[str, ...] = ()
    ) -> str:
        words = ["pgrecall", command, *self._options, *target]
        if self._names_timeline:
            words += ["--timeline", str(timeline)]
        return shlex.join([*words, *last])


def _leads_to(backup: Completion, history: TimelineHistory, lsn: int) -> bool:
    """Whether recovery from a backup along a history comes by an LSN; gaps are not looked for."""
    begin, end = Lsn.parse(backup.start_lsn), Lsn.parse(backup.stop_lsn)
    return end <= lsn and history.timeline_at(begin) == backup.timeline


def _searched(
    history: TimelineHistory, segments: Segments, tables: TableSearch, archive: WalArchive
) -> SearchedRange:
    own = [name for name, _ in segments]
    last = archive.index(own[-1]) if own else None
    begins = [WalFile(name).start(archive.segment_bytes) for name in own]
    gaps = sum(1 for i in range(1, len(segments)) if begins[i] != segments[i - 1][1])
    return SearchedRange(
        timeline=history.timeline,
        segments=len(own),
        first_segment=own[0] if own else "",
        last_segment=own[-1] if own else "",
        gaps=gaps,
        unknown_segments=tables.unknown,
        end_lsn=str(Lsn(min(last.end_lsn, segments[-1][1]))) if last is not None else "",
        last_end_at=last.end_times.last_at if last is not None and last.end_times else None,
    )


def _age(item: tuple[int, TimelineHistory]) -> tuple[int, int]:
    return len(item[1].switches), item[0]


def _in_order(item: tuple[tuple[object, ...], FoundMoment]) -> tuple[int, int, str]:
    moment = item[1]
    return moment.timeline, Lsn.parse(moment.lsn), moment.name
