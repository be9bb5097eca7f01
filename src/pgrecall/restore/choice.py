"""Choose backup, timeline and stopping point for a recovery target, or say why there is none.

Nothing is written. The choice rests on the archive's indexes alone, never on the
clock of this host, but for one question: whether a target behind the last commit
lies in the future. One before a commit can be reached, whatever this clock says.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from pgrecall.errors import BackupNotFoundError, TargetUnreachableError
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.targets import (
    Immediate,
    Latest,
    RecoveryTarget,
    ToLsn,
    ToName,
    ToTime,
    ToXid,
)
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.model.wal_index import TablespaceCreation
from pgrecall.restore.branches import later_branches
from pgrecall.restore.replay import ArchiveView, ReplayPath, replay_path
from pgrecall.restore.stops import Stop, StopFinder, Survey

# How wrong this host's clock may be before a target counts as lying in the future.
CLOCK_ALLOWANCE = timedelta(minutes=5)


class Choice:
    """What was chosen. ``target`` is what PostgreSQL is told: an unreachable-but-harmless
    time becomes Latest. ``needed`` are the segments that recovery reads, ``stop`` the record
    where it stops (None: the end of the archive, or of the backup), ``tablespaces`` what is
    created on the way."""

    def __init__(self, backup: Completion, path: ReplayPath, target: RecoveryTarget) -> None:
        self.backup = backup
        self.path = path
        self.target = target
        self.stop: Stop | None = None
        self.survey = Survey()
        self.needed: list[str] = path.names
        self.tablespaces: list[TablespaceCreation] = []
        self.findings: list[Finding] = []
        self.reasons: list[str] = []

    def looked_to(self, segment_bytes: int) -> Lsn:
        """The end of the last segment that recovery was planned with."""
        if not self.needed:
            return Lsn.parse(self.backup.stop_lsn)
        if self.needed[-1] == self.path.tail:
            return self.path.end  # it may have grown when recovery asks for it
        return Lsn(WalFile(self.needed[-1]).start(segment_bytes) + segment_bytes)


class Chooser:
    """Chooses for one server and generation; ``backups`` are complete, oldest first."""

    def __init__(
        self, archive: ArchiveView, backups: Sequence[Completion], *, now: datetime
    ) -> None:
        self._archive = archive
        self._backups = sorted(backups, key=lambda backup: Lsn.parse(backup.stop_lsn))
        self._histories = archive.histories()
        self._now = now

    def choose(
        self, target: RecoveryTarget, *, timeline: int | None = None, backup_id: str = ""
    ) -> Choice:
        """The best way to ``target``.

        Raises TargetUnreachableError with the reason and the nearest target that
        can be reached, BackupNotFoundError when there is no backup at all.
        """
        history = self._history(timeline, target, backup_id)
        candidates = [
            backup
            for backup in self._on_path(history)
            if not backup_id or backup.backup_id == backup_id
        ]
        if not candidates:
            raise self._no_backup(history, backup_id)
        choice = self._first_fitting(candidates, history, target, is_fixed=bool(backup_id))
        is_future = isinstance(target, ToTime) and target.at > self._now + CLOCK_ALLOWANCE
        if is_future and choice.stop is None:
            raise TargetUnreachableError(
                f"{target} lies in the future",
                hint="leave the target out to recover to the newest moment",
            )
        self._explain(choice, history, timeline)
        if timeline is None and isinstance(target, Latest):
            last = choice.survey.last_commit_at
            choice.findings += later_branches(self._archive, history, last)
        return choice

    # --- timelines -----------------------------------------------------------------

    def _history(
        self, timeline: int | None, target: RecoveryTarget, backup_id: str
    ) -> TimelineHistory:
        if timeline is not None:
            history = self._histories.get(timeline)
            if history is None:
                known = ", ".join(str(number) for number in sorted(self._histories))
                raise TargetUnreachableError(
                    f"the archive knows no timeline {timeline}",
                    hint=f"it knows {known}",
                )
            return history
        used = [number for number in self._archive.newest_segments() if number in self._histories]
        used += [backup.timeline for backup in self._backups if backup.timeline in self._histories]
        if isinstance(target, Immediate):
            # It needs no WAL behind the backup; positions of two timelines are not compared.
            fitting = [one for one in self._backups if not backup_id or one.backup_id == backup_id]
            used = [max((one.stopped_at, one.timeline) for one in fitting)[1]] if fitting else used
        # A history file without a segment is a promise that nobody kept (fact 2).
        return self._histories[max(used, default=1)]

    def _on_path(self, history: TimelineHistory) -> list[Completion]:
        """Backups that lie on the path, newest first."""
        found = []
        for backup in self._backups:
            if not history.is_ancestor_or_self(backup.timeline):
                continue
            left = history.end_of(backup.timeline)
            if left is None or Lsn.parse(backup.stop_lsn) <= left:
                found.append(backup)
        return found[::-1]

    # --- targets -------------------------------------------------------------------

    def _first_fitting(
        self,
        candidates: Sequence[Completion],
        history: TimelineHistory,
        target: RecoveryTarget,
        *,
        is_fixed: bool,
    ) -> Choice:
        refusal: TargetUnreachableError | None = None
        serving = candidates if is_fixed else [one for one in candidates if _serves(one, target)]
        for backup in serving or candidates[-1:]:
            try:
                return self._fit(backup, history, target)
            except TargetUnreachableError as error:
                refusal = refusal or error
                if is_fixed or not _older_may_help(target):
                    break
        assert refusal is not None
        if not is_fixed and isinstance(target, ToTime | ToLsn):
            refusal = self._before_first(candidates[-1], target) or refusal
        raise refusal

    def _fit(self, backup: Completion, history: TimelineHistory, target: RecoveryTarget) -> Choice:
        start, stop = Lsn.parse(backup.start_lsn), Lsn.parse(backup.stop_lsn)
        if isinstance(target, ToTime) and target.at < backup.started_at:
            # The server's own clock: commits of the backup's time are later than the target.
            raise TargetUnreachableError(f"backup {backup.backup_id} began after {target}")
        present = _own_segments(backup, self._archive.segment_bytes) if backup.has_wal else []
        path = replay_path(self._archive, history, start, present)
        _require_consistent(backup, path, stop)
        choice = Choice(backup, path, target)
        finder = StopFinder(self._archive, path, start)
        match target:
            case Immediate():
                choice.needed = _until(path, self._archive.segment_bytes, stop)
                finder.look_until(stop)
            case Latest():
                self._fit_latest(choice, finder)
            case ToLsn():
                self._fit_lsn(choice, finder, target, stop)
            case ToTime():
                self._fit_time(choice, finder, target, stop)
            case ToXid():
                found = finder.by_xid(target.xid)
                self._fit_found(choice, finder, found, stop)
            case ToName():
                self._fit_name(choice, finder, target, stop)
        _require_consistent(backup, path, stop)  # what was read may have shortened it
        choice.survey = finder.survey
        choice.tablespaces = _replayed_tablespaces(choice, start, stop)
        return choice

    def _fit_latest(self, choice: Choice, finder: StopFinder) -> None:
        finder.walk()
        if choice.path.has_gap:
            raise TargetUnreachableError(
                f"the archive has a gap: {choice.path.missing} is missing, and goes on to"
                f" {choice.path.beyond}; recovery would end at {choice.path.end}",
                hint=f"push the missing segments if the server still has them; to stop before the"
                f" gap say --to-lsn {finder.survey.last_record}",
            )

    def _fit_lsn(self, choice: Choice, finder: StopFinder, target: ToLsn, stop: Lsn) -> None:
        if target.lsn < stop:
            raise TargetUnreachableError(
                f"LSN {target.lsn} lies before the end of backup {choice.backup.backup_id}"
                f" at {stop}"
            )
        if target.lsn >= choice.path.end:
            raise self._behind_end(choice, finder, f"LSN {target.lsn}")
        choice.needed = _until(choice.path, self._archive.segment_bytes, Lsn(target.lsn + 1))
        survey = finder.walk()
        last = survey.last_record
        if last is None or target.lsn > last:
            # No record starts there: PostgreSQL would replay all, and then call it a failure.
            self._everything(choice, f"no record begins at or after LSN {target.lsn}")
            return
        choice.needed = _until(choice.path, self._archive.segment_bytes, Lsn(target.lsn + 1))

    def _fit_time(self, choice: Choice, finder: StopFinder, target: ToTime, stop: Lsn) -> None:
        found = finder.by_time(target.at, inclusive=target.inclusive)
        if found is None:
            if choice.path.has_gap:
                raise self._behind_end(choice, finder, str(target))
            last = finder.survey.last_commit_at
            shown = f"the last is of {last.isoformat(sep=' ')}" if last else "there is none at all"
            self._everything(choice, f"no commit after {target} is in the archive ({shown})")
            return
        self._fit_found(choice, finder, found, stop)

    def _fit_name(self, choice: Choice, finder: StopFinder, target: ToName, stop: Lsn) -> None:
        found = finder.by_name(target.name)
        behind = [point for point in found if point.lsn >= stop]
        if len(behind) > 1:
            shown = "; ".join(f"{point.lsn} of {point.at}" for point in behind)
            raise TargetUnreachableError(
                f"there are {len(behind)} restore points named {target.name!r}: {shown}",
                hint=f"say which: --to-lsn {behind[-1].lsn} is the newest",
            )
        if not behind and not found:
            known = sorted({point.name for point in finder.restore_points()})
            raise TargetUnreachableError(
                f"no restore point {target.name!r} is in the archive after backup"
                f" {choice.backup.backup_id}",
                hint=f"there are: {', '.join(known[:20])}" if known else "there are none",
            )
        self._fit_found(choice, finder, behind[0] if behind else found[0], stop)

    def _fit_found(self, choice: Choice, finder: StopFinder, found: Stop | None, stop: Lsn) -> None:
        if found is None:
            raise self._behind_end(choice, finder, str(choice.target))
        if found.lsn < stop:
            raise TargetUnreachableError(
                f"{choice.target} ({found.what} at {found.lsn}) lies inside backup"
                f" {choice.backup.backup_id}, which is consistent only from {stop} on"
            )
        choice.stop = found
        choice.needed = _until(choice.path, self._archive.segment_bytes, found.end_lsn)

    def _everything(self, choice: Choice, why: str) -> None:
        if choice.path.has_gap:
            raise TargetUnreachableError(
                f"{why}, and the archive has a gap behind: {choice.path.missing} is missing"
            )
        choice.target = Latest()
        choice.needed = choice.path.names
        choice.reasons.append(f"{why}: recovery goes to the end of the archive")

    # --- words ---------------------------------------------------------------------

    def _behind_end(
        self, choice: Choice, finder: StopFinder, target: str
    ) -> TargetUnreachableError:
        survey = finder.walk() if finder.survey.last_record is None else finder.survey
        path = choice.path
        where = f"; behind the gap the archive goes on to {path.beyond}" if path.has_gap else ""
        last = survey.last_commit_at
        nearest = f"the last commit before it is of {last.isoformat(sep=' ')}; " if last else ""
        return TargetUnreachableError(
            f"{target} is not in the WAL from backup {choice.backup.backup_id} on: the archive"
            f" reaches {path.end} on timeline {path.history.timeline},"
            f" then {path.missing} is missing{where}",
            hint=f"{nearest}--to-lsn {survey.last_record} is the nearest that can be reached,"
            " and without a target recovery goes to the end",
        )

    def _before_first(
        self, oldest: Completion, target: ToTime | ToLsn
    ) -> TargetUnreachableError | None:
        if isinstance(target, ToTime):
            is_before = target.at < oldest.stopped_at
        else:
            is_before = target.lsn < Lsn.parse(oldest.stop_lsn)
        if not is_before:
            return None
        return TargetUnreachableError(
            f"{target} lies before the end of the oldest backup, {oldest.backup_id}:"
            f" {oldest.stop_lsn} at {oldest.stopped_at.isoformat(sep=' ')}",
            hint=f"the oldest moment there is: --immediate --backup {oldest.backup_id}",
        )

    def _no_backup(self, history: TimelineHistory, backup_id: str) -> BackupNotFoundError:
        if not self._backups:
            return BackupNotFoundError(
                "there is no complete backup of this server", hint="take one: pgrecall backup"
            )
        wanted = f"backup {backup_id}" if backup_id else "no backup"
        verb = "does not lie" if backup_id else "lies"
        return BackupNotFoundError(
            f"{wanted} {verb} on the path of timeline {history.timeline}",
            hint="'pgrecall backups list' shows the timelines; choose one with --timeline",
        )

    def _explain(self, choice: Choice, history: TimelineHistory, timeline: int | None) -> None:
        backup = choice.backup
        choice.reasons.insert(
            0,
            f"backup {backup.backup_id}: the newest that is consistent ({backup.stop_lsn}) before"
            f" {choice.target}",
        )
        others = sorted(set(self._histories) - {history.timeline})
        if timeline is None and others:
            choice.reasons.append(
                f"timeline {history.timeline}: the newest with WAL of its own; others are"
                f" {', '.join(map(str, others))} (--timeline)"
            )


def _require_consistent(backup: Completion, path: ReplayPath, stop: Lsn) -> None:
    if path.end < stop:
        raise TargetUnreachableError(
            f"backup {backup.backup_id} can never become consistent: it needs the WAL up to"
            f" {stop}, and {path.missing} is missing or damaged",
            hint="push that segment from the server's pg_wal if it is still there,"
            " or use another backup",
        )


def _serves(backup: Completion, target: RecoveryTarget) -> bool:
    """False when the backup alone tells, without a look at the WAL, that it is too new."""
    if isinstance(target, ToTime):
        return target.at >= backup.started_at
    return not isinstance(target, ToLsn) or target.lsn >= Lsn.parse(backup.stop_lsn)


def _older_may_help(target: RecoveryTarget) -> bool:
    return not isinstance(target, Latest)


def _until(path: ReplayPath, segment_bytes: int, end: Lsn) -> list[str]:
    """The path's segments that hold bytes before ``end``."""
    count = len(path.names)
    full_end = path.end + (-path.end) % segment_bytes
    first = full_end - count * segment_bytes
    wanted = -(-(end - first) // segment_bytes)
    return path.names[: max(0, min(count, wanted))]


def _replayed_tablespaces(choice: Choice, start: Lsn, stop: Lsn) -> list[TablespaceCreation]:
    """What CREATE TABLESPACE replays between the backup's start and where recovery stops."""
    end = choice.path.end
    if choice.stop is not None:
        end = choice.stop.end_lsn
    elif isinstance(choice.target, ToLsn):
        end = Lsn(choice.target.lsn + int(choice.target.inclusive))
    elif isinstance(choice.target, Immediate):
        end = stop
    return [made for made in choice.survey.tablespaces if start <= made.lsn < end]


def _own_segments(backup: Completion, segment_bytes: int) -> list[str]:
    from_lsn, to_lsn = Lsn.parse(backup.start_lsn), Lsn.parse(backup.stop_lsn)
    first = from_lsn - from_lsn % segment_bytes
    return [
        segment_name(backup.timeline, at, segment_bytes)
        for at in range(first, max(to_lsn, from_lsn + 1), segment_bytes)
    ]
