"""When a job is due: cron expressions, a zone, and a clock that may jump. Pure: ``now`` comes in.

The clock of a host goes forward in leaps (asleep, set right) and sometimes back;
a job must neither be lost nor run twice for that. What was planned and passed
while nobody looked is caught up once, with the number of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from pgrecall.errors import SettingsError
from pgrecall.settings.sections import ScheduleSettings

#: What each job of [schedule] runs: the words behind ``pgrecall``.
JOBS: Mapping[str, tuple[str, ...]] = {
    "backup": ("backup",),
    "check": ("check",),
    "drill": ("drill",),
    "dump": ("dump",),
    "expire": ("expire", "--yes"),
    "purge": ("purge", "--yes"),
    "verify": ("verify",),
}

#: A run that begins later than this after its moment is reported as late.
ON_TIME = timedelta(seconds=60)
#: A clock may go back so far without anything being planned anew (a step of NTP).
SMALL_STEP = timedelta(minutes=5)

_FIELDS = 5
_COUNTED_ONE_BY_ONE = 10_000
_COUNTED_DAYS = timedelta(days=7)


class Due(NamedTuple):
    """A job is to be run now, for the moment ``planned_at`` (UTC).

    ``missed``: so many earlier moments passed without a run (beyond 10,000: at
    least so many). ``is_late``: more than a minute behind.
    """

    job: str
    planned_at: datetime
    missed: int
    is_late: bool


class Timetable:
    """The jobs that have an expression, in their zone."""

    def __init__(self, settings: ScheduleSettings) -> None:
        """Raises SettingsError that lists every bad expression and an unknown zone."""
        problems: list[str] = []
        self.zone = _zone(settings.time_zone, problems)
        self.expressions: dict[str, str] = {}
        for job in JOBS:
            expression = str(getattr(settings, job)).strip()
            if expression:
                _check(job, expression, problems)
                self.expressions[job] = expression
        if problems:
            raise SettingsError(
                "the schedule is wrong:\n" + "\n".join(f"  {problem}" for problem in problems),
                hint="five fields: minute, hour, day of the month, month, day of the week; "
                'for example "0 3 * * *" is every night at three',
            )
        self._zone_name = settings.time_zone

    def identity(self, job: str) -> str:
        """Changes when the job's moments do: what was planned before means nothing then."""
        return f"{self.expressions[job]} {self._zone_name}"

    def due(self, job: str, since: datetime, now: datetime) -> Due | None:
        """Whether ``job`` is to be run: a planned moment lies after ``since``, up to ``now``."""
        newest, count = None, 0
        for planned in self._between(job, since, now):
            newest, count = planned, count + 1
        if newest is None:
            return None
        return Due(job, newest, count - 1, now - newest > ON_TIME)

    def next_after(self, job: str, now: datetime) -> datetime | None:
        """The next planned moment (UTC) after ``now``; None: never again."""
        return next(self._after(job, now), None)

    def _between(self, job: str, since: datetime, now: datetime) -> Iterator[datetime]:
        """Planned moments in (since, now]; of very many, those of the last days and the oldest."""
        for count, planned in enumerate(self._after(job, since), start=1):
            if planned > now:
                return
            yield planned
            if count >= _COUNTED_ONE_BY_ONE and planned < now - _COUNTED_DAYS:
                break
        else:
            return
        for planned in self._after(job, now - _COUNTED_DAYS):
            if planned > now:
                return
            yield planned

    def _after(self, job: str, since: datetime) -> Iterator[datetime]:
        for local in CronSim(self.expressions[job], since.astimezone(self.zone)):
            planned = local.astimezone(UTC)
            # In the hour that a clock repeats, local times behind `since` come up again.
            if planned > since:
                yield planned


def since_after_jump(since: datetime, now: datetime) -> datetime:
    """From where to look for planned moments when the clock says ``now``.

    Behind ``since`` by more than a small step, the clock was wrong before or is
    now: waiting for it to come back to ``since`` could take years, so planning
    begins anew at ``now``.
    """
    return now if since - now > SMALL_STEP else since


def _zone(name: str, problems: list[str]) -> tzinfo:
    if name in {"", "UTC"}:
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        problems.append(
            f"[schedule] time_zone: {name!r} is not a zone that this host knows"
            " (package tzdata has them)"
        )
        return UTC


def _check(job: str, expression: str, problems: list[str]) -> None:
    if len(expression.split()) != _FIELDS:
        problems.append(f"[schedule] {job}: {expression!r} has not five fields")
        return
    try:
        # Any moment will do: an expression that fits none in the next 50 years fits none.
        first = next(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)), None)
    except CronSimError as error:
        problems.append(f"[schedule] {job}: {expression!r} is no cron expression: {error}")
        return
    if first is None:
        problems.append(f"[schedule] {job}: {expression!r} is never")
