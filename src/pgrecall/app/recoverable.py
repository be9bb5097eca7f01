"""``recoverable``: which moments can be reached, where the gaps are, and a plain yes or no."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from datetime import datetime

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.app.recoverable_result import (
    Answer,
    BackupMark,
    GapCause,
    GenerationRanges,
    ReachableRange,
    RecoverableResult,
    SegmentSpan,
    TimelinePath,
    UnusableBackup,
    WalGap,
)
from pgrecall.app.requests import RecoverableRequest
from pgrecall.errors import (
    BackupNotFoundError,
    CorruptObjectError,
    ObjectMissingError,
    TargetUnreachableError,
)
from pgrecall.model.catalog_items import WalSpan
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.ranges import PathRuns, Placed, Run, pieces_from
from pgrecall.model.targets import Latest, RecoveryTarget, ToLsn, ToName, ToTime, ToXid
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import segment_name
from pgrecall.model.wal_index import datetime_of
from pgrecall.repository.gaps import DROPPED, Gap, read_gaps
from pgrecall.repository.identity import Generation, generations
from pgrecall.repository.pack_source import PackSource
from pgrecall.repository.recoverable import ArchiveSnapshot
from pgrecall.repository.retention_log import read_state
from pgrecall.repository.segment_rows import NO_TIME
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.choice import Choice, Chooser
from pgrecall.restore.reach import Reach, likely_backups, reach_of
from pgrecall.system.clock import SystemClock


def run_recoverable(context: RunContext, request: RecoverableRequest) -> RecoverableResult:
    """The recoverable ranges of the chosen server, and the answer for ``request.target``.

    Looks into the repository that a restore would use, and writes nothing. Raises
    RepositoryError and StoreError when it cannot be looked at: that is never
    reported as "nothing". An answer of "no" is a result, not an error.
    """
    opened = main_repository(context)
    now = SystemClock().now()
    survey = RecoverableSurvey(opened, context.server.name)
    result = survey.result(now)
    if isinstance(request.target, Latest):
        return result
    answer = survey.answer(request.target, timeline=request.timeline, now=now)
    return result.with_answer(answer)


class RecoverableSurvey:
    """One look at a server's backups and WAL in one repository; lists everything once."""

    def __init__(self, opened: OpenedRepository, server: str) -> None:
        self._opened = opened
        self._server = server
        self._catalog = opened.catalog(server)
        state = read_state(opened.store, server)
        self._backups, self._damaged = self._catalog.usable(state=state)
        self._generations = generations(opened.store, server)
        self._expired = state.wal
        self._snapshots = {
            generation.number: ArchiveSnapshot(self._archive(generation))
            for generation in self._generations
        }

    @property
    def backups(self) -> Sequence[Completion]:
        """Those from which a restore may choose, oldest first."""
        return self._backups

    def _archive(self, generation: Generation) -> WalArchive:
        archive = WalArchive(self._opened.store, self._server, generation)
        archive.hide(self._expired)
        return archive

    def result(self, now: datetime) -> RecoverableResult:
        """All ranges of all generations; ``now`` is when this was asked."""
        findings = list(self._damaged)
        found = []
        for generation in self._generations:
            ranges, problems = self._ranges(generation)
            found.append(ranges)
            findings += problems
        latest = found[-1] if found else None
        path = next((one for one in latest.paths if one.is_default), None) if latest else None
        newest = path.ranges[-1] if path is not None and path.ranges else None
        if not self._backups:
            findings.append(
                Finding(
                    severity="fail",
                    code="backup-none",
                    message="there is no complete backup: no moment can be reached",
                    hint="take one: pgrecall backup",
                )
            )
        return RecoverableResult(
            server=self._server,
            repository=self._opened.settings.name,
            looked_at=now,
            newest_at=newest.reaches_at if newest is not None else None,
            newest_lsn=newest.end_lsn if newest is not None else "",
            newest_timeline=newest.timeline if newest is not None else None,
            generations=tuple(found),
            findings=tuple(findings),
        )

    def answer(self, target: RecoveryTarget, *, timeline: int | None, now: datetime) -> Answer:
        """Whether ``target`` can be reached, as ``restore`` would plan it."""
        try:
            choice, snapshot = self._choose(target, timeline, now)
        except (TargetUnreachableError, BackupNotFoundError) as error:
            return Answer(
                target=str(target), is_reachable=False, reason=error.message, hint=error.hint
            )
        problem = self._damage(choice.backup)
        stop = choice.stop
        archived = [name for name in choice.needed if name not in choice.path.unarchived]
        return Answer(
            target=str(target),
            is_reachable=not problem,
            reason=problem or "; ".join(choice.reasons),
            hint="" if not problem else "an older backup may serve: restore --backup ID --dry-run",
            backup_id=choice.backup.backup_id,
            timeline=choice.path.history.timeline,
            stops_at=stop.what if stop is not None else str(choice.target),
            stops_at_lsn=str(stop.lsn) if stop is not None else "",
            stops_at_time=stop.at if stop is not None else choice.survey.last_commit_at,
            segments=len(choice.needed),
            wal_bytes=len(choice.needed) * snapshot.segment_bytes,
            stored_bytes=snapshot.stored_bytes(archived),
            segment_names=tuple(choice.needed),
            restore_command="" if problem else restore_words(target, timeline),
        )

    # --- one answer ----------------------------------------------------------------

    def _choose(
        self, target: RecoveryTarget, timeline: int | None, now: datetime
    ) -> tuple[Choice, ArchiveSnapshot]:
        if not self._generations or not self._backups:
            raise BackupNotFoundError(
                f"there is no complete backup of server {self._server!r}",
                hint="take one: pgrecall backup",
            )
        number = self._generations[-1].number
        snapshot = self._snapshots[number]
        backups = [backup for backup in self._backups if backup.generation == number]
        if not backups:
            raise BackupNotFoundError(
                f"there is no backup of generation {number} of server {self._server!r} yet,"
                " only of older ones (before pg_upgrade or initdb)",
                hint="take one now; an older one is restored with --backup ID",
            )
        used = snapshot.used_timelines(backups)
        chosen = timeline if timeline is not None else max(used, default=1)
        history = snapshot.histories().get(chosen)
        if history is not None:
            backups = self._likely(snapshot, history, backups, target)
        chooser = Chooser(snapshot, backups, now=now)
        return chooser.choose(target, timeline=chosen), snapshot

    def _likely(
        self,
        snapshot: ArchiveSnapshot,
        history: TimelineHistory,
        backups: list[Completion],
        target: RecoveryTarget,
    ) -> list[Completion]:
        """Without the backups that cannot serve; one stays, to say why there is none."""
        path = snapshot.path_runs(history, backups)
        names = set(likely_backups(path, snapshot, target))
        likely = [backup for backup in backups if backup.backup_id in names]
        if likely:
            return likely
        on_path = {backup.backup_id for run in path.runs for backup in run.backups}
        serving = [backup for backup in backups if backup.backup_id in on_path]
        if isinstance(target, ToTime):
            serving = [one for one in serving if one.started_at <= target.at] or serving[:1]
        if isinstance(target, ToLsn):
            before = [one for one in serving if Lsn.parse(one.stop_lsn) <= target.lsn]
            serving = before or serving[:1]
        return serving[-1:] or backups

    def _damage(self, backup: Completion) -> str:
        """What a restore of this backup would stumble over, from manifest and sizes of packs."""
        try:
            packs = self._catalog.manifest(backup).packs()
            source = PackSource(self._opened.store, self._server, backup.backup_id, packs)
            for index in range(len(packs)):
                source.check(index)
        except (CorruptObjectError, ObjectMissingError) as error:
            return f"backup {backup.backup_id} is damaged: {error.message}"
        return ""

    # --- ranges --------------------------------------------------------------------

    def _ranges(self, generation: Generation) -> tuple[GenerationRanges, list[Finding]]:
        snapshot = self._snapshots[generation.number]
        backups = [one for one in self._backups if one.generation == generation.number]
        used = snapshot.used_timelines(backups)
        findings = snapshot.findings(backups)
        known = read_gaps(self._opened.store, self._server, generation.number)
        paths = []
        for timeline in used:
            history = snapshot.histories()[timeline]
            runs = snapshot.path_runs(history, backups)
            path = _path(snapshot, runs, (known, self._expired), is_default=timeline == used[-1])
            paths.append(path)
            if not runs.is_whole and runs.runs and runs.last_usable is not None:
                findings.append(_unreached(runs))
        return GenerationRanges(
            generation=generation.number,
            system_identifier=str(generation.system_identifier),
            major_version=generation.major_version,
            is_latest=generation is self._generations[-1],
            backups=len(backups),
            paths=tuple(paths),
        ), findings


Known = tuple[Sequence[Gap], Sequence[WalSpan]]
"""Gaps that are recorded, and WAL that has expired."""


def restore_words(target: RecoveryTarget, timeline: int | None) -> str:
    """The ready-made command that plans a restore to ``target``."""
    match target:
        case ToTime():
            words = ["--to-time", str(target.at)]
        case ToLsn():
            words = ["--to-lsn", str(target.lsn)]
        case ToXid():
            words = ["--to-xid", str(target.xid)]
        case ToName():
            words = ["--to-name", target.name]
        case _:
            words = []
    if not getattr(target, "inclusive", True):
        words.append("--exclusive")
    if timeline is not None:
        words += ["--timeline", str(timeline)]
    return shlex.join(["pgrecall", "restore", *words, "--target-dir", "DIRECTORY"])


def _path(
    snapshot: ArchiveSnapshot, runs: PathRuns, known: Known, *, is_default: bool
) -> TimelinePath:
    history = runs.history
    ranges, gaps = [], []
    has_begun = False
    for at, run in enumerate(runs.runs):
        is_last = at == len(runs.runs) - 1
        if run.backups:
            has_begun = True
            reach = reach_of(snapshot, history, run, is_open=is_last)
            ranges.append(_range(snapshot, history, run, reach, is_open=is_last))
        if has_begun and not is_last:
            gaps.append(_gap(snapshot, runs, at, known))
    return TimelinePath(
        timeline=history.timeline,
        path=", then ".join(
            [f"{switch.timeline} to {switch.end}" for switch in history.switches]
            + [str(history.timeline)]
        ),
        is_default=is_default,
        ranges=tuple(ranges),
        gaps=tuple(gaps),
        only_immediate=tuple(_mark(backup) for backup in runs.alone),
        unusable=tuple(
            UnusableBackup(backup_id=backup.backup_id, missing=missing)
            for backup, missing in runs.useless
        ),
    )


def _mark(backup: Placed) -> BackupMark:
    return BackupMark(
        backup_id=backup.backup_id, stopped_at=backup.stopped_at, stop_lsn=str(Lsn(backup.stop))
    )


def _range(
    snapshot: ArchiveSnapshot, history: TimelineHistory, run: Run, reach: Reach, *, is_open: bool
) -> ReachableRange:
    first = run.backups[0]
    return ReachableRange(
        timeline=history.timeline,
        is_open=is_open,
        from_at=reach.from_at,
        to_at=reach.to_at,
        from_lsn=str(reach.from_lsn),
        to_lsn=str(reach.to_lsn) if reach.to_lsn is not None else "",
        end_lsn=str(reach.end_lsn),
        newest_commit_at=reach.newest_commit_at,
        consistent_at=first.stopped_at,
        tail=run.tail,
        segments=_spans(snapshot, run, first.start),
        backups=tuple(_mark(backup) for backup in run.backups),
    )


def _spans(snapshot: ArchiveSnapshot, run: Run, start: int) -> tuple[SegmentSpan, ...]:
    """The segments of a run that reach behind ``start``, by timeline."""
    size = snapshot.segment_bytes
    pieces = list(pieces_from(run.pieces, start // size))
    return tuple(
        SegmentSpan(
            timeline=timeline,
            first=segment_name(timeline, own[0].first * size, size),
            last=segment_name(timeline, (own[-1].behind - 1) * size, size),
            segments=sum(piece.behind - piece.first for piece in own),
            wal_bytes=sum(piece.behind - piece.first for piece in own) * size,
            stored_bytes=sum(snapshot.stored_bytes_of(piece) for piece in own),
        )
        for timeline, own in (
            (timeline, list(found))
            for timeline, found in itertools.groupby(pieces, lambda piece: piece.timeline)
        )
    )


def _gap(snapshot: ArchiveSnapshot, runs: PathRuns, at: int, known: Known) -> WalGap:
    """What lies between run ``at`` and the next; ``known`` are recorded gaps."""
    history, before, behind = runs.history, runs.runs[at], runs.runs[at + 1]
    size = snapshot.segment_bytes
    first_lost = before.end - before.end % size
    last_lost = max(first_lost, behind.start - size)
    lost = [snapshot.candidates(history, lsn)[0] for lsn in (first_lost, last_lost)]
    ended = int(snapshot.rows_of(before, before.end - 1).rows["last_commit"][-1])
    begun = int(snapshot.first_row(behind)["first_end"][0])
    cause, explanation = _cause(runs, at, known)
    return WalGap(
        timeline=history.timeline,
        from_lsn=str(before.end),
        to_lsn=str(behind.start),
        gap_bytes=behind.start - before.end,
        segments=max(1, (behind.start - first_lost) // size),
        first_missing=before.damaged or lost[0],
        last_missing=before.damaged or lost[1],
        cause=cause,
        explanation=explanation,
        after_at=datetime_of(ended) if ended != NO_TIME else None,
        before_at=datetime_of(begun) if begun != NO_TIME else None,
    )


def _cause(runs: PathRuns, at: int, known: Known) -> tuple[GapCause, str]:
    before, behind = runs.runs[at], runs.runs[at + 1]
    if before.damaged:
        return "damaged", f"behind {before.end} the segment {before.damaged} holds no WAL"
    gaps, expired = known
    for gap in gaps:
        if (
            gap.start < behind.start
            and gap.end > before.end
            and runs.history.is_ancestor_or_self(gap.timeline)
        ):
            recorded = f"{gap.detail} (recorded {gap.recorded_at.isoformat(sep=' ')})"
            return ("dropped" if gap.cause == DROPPED else "not-received"), recorded
    for span in expired:
        if (
            span.start < behind.start
            and span.end > before.end
            and runs.history.is_ancestor_or_self(span.timeline)
        ):
            return "expired", "WAL that no kept backup needs has expired (docs/retention.md)"
    return "missing", "the segments are not in the archive"


def _unreached(runs: PathRuns) -> Finding:
    usable = runs.last_usable
    end = usable.end if usable is not None else runs.runs[0].start
    return Finding(
        severity="warn",
        code="wal-behind-gap",
        subject=f"timeline {runs.history.timeline}",
        message=f"the WAL from {runs.runs[-1].start} to {runs.runs[-1].end} cannot be used: behind"
        f" the gap at {end} there is no backup yet",
        hint="take a backup now; look whether the server's pg_wal still has what is missing",
    )
