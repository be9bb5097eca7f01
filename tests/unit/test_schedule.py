"""The schedule: expressions, zones, and a clock that jumps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.agent.schedule import JOBS, Due, Timetable, since_after_jump
from pgrecall.errors import SettingsError
from pgrecall.settings.sections import ScheduleSettings

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def table(backup: str, zone: str = "UTC") -> Timetable:
    return Timetable(ScheduleSettings(backup=backup, time_zone=zone))


def planned(
    timetable: Timetable, since: datetime, until: datetime, step: timedelta
) -> list[datetime]:
    """What runs when somebody looks every ``step``, in UTC."""
    found: list[datetime] = []
    now = since
    while now <= until:
        due = timetable.due("backup", since, now)
        if due is not None:
            assert due.missed == 0
            found.append(due.planned_at)
            since = due.planned_at
        now += step
    return found


def test_every_setting_is_a_job_and_every_job_a_setting() -> None:
    assert {*ScheduleSettings.fields} - {"time_zone"} == {*JOBS}


def test_without_an_expression_nothing_is_planned() -> None:
    assert Timetable(ScheduleSettings()).expressions == {}


def test_due_at_its_moment_and_not_before() -> None:
    nightly = table("0 3 * * *")
    since = at("2026-11-22T20:00:00Z")
    assert nightly.due("backup", since, at("2026-11-23T02:59:59.999Z")) is None
    moment = at("2026-11-23T03:00:00Z")
    assert nightly.due("backup", since, moment) == Due("backup", moment, 0, False)
    assert nightly.due("backup", moment, moment + timedelta(hours=1)) is None
    assert nightly.next_after("backup", moment) == at("2026-11-24T03:00:00Z")


def test_what_was_missed_is_caught_up_once_and_said() -> None:
    """The agent was down, or the host asleep, for four days and a half."""
    due = table("0 3 * * *").due("backup", at("2026-11-20T03:00:00Z"), at("2026-11-24T15:00:00Z"))
    assert due == Due("backup", at("2026-11-24T03:00:00Z"), missed=3, is_late=True)


@pytest.mark.parametrize(("seconds", "is_late"), [(60, False), (61, True)])
def test_late_is_more_than_a_minute(seconds: int, is_late: bool) -> None:
    moment = at("2026-11-23T03:00:00Z")
    due = table("0 3 * * *").due(
        "backup", moment - timedelta(hours=1), moment + timedelta(seconds=seconds)
    )
    assert due is not None
    assert due.is_late is is_late


def test_years_of_minutes_are_counted_in_bounded_time() -> None:
    due = table("* * * * *").due("backup", at("2000-01-01T00:00:00Z"), at("2026-11-22T20:16:37Z"))
    assert due is not None
    assert due.planned_at == at("2026-11-22T20:16:00Z")
    assert due.missed > 10_000


def test_a_yearly_run_is_not_lost_in_a_long_absence() -> None:
    due = table("0 3 1 1 *").due("backup", at("2025-06-01T00:00:00Z"), at("2026-11-22T00:00:00Z"))
    assert due == Due("backup", at("2026-01-01T03:00:00Z"), missed=0, is_late=True)


# --- clocks that jump ------------------------------------------------------------------


def test_a_small_step_back_plans_nothing_twice() -> None:
    """NTP puts the clock back by seconds, right behind the moment."""
    done = at("2026-11-23T03:00:00Z")
    now = done - timedelta(seconds=2)
    since = since_after_jump(done, now)
    assert since == done
    assert table("0 3 * * *").due("backup", since, now + timedelta(seconds=5)) is None


def test_a_clock_that_was_years_ahead_does_not_silence_the_schedule() -> None:
    wrong = at("2035-01-01T03:00:00Z")
    now = at("2026-11-22T20:00:00Z")
    since = since_after_jump(wrong, now)
    assert since == now
    due = table("0 3 * * *").due("backup", since, at("2026-11-23T03:00:01Z"))
    assert due == Due("backup", at("2026-11-23T03:00:00Z"), 0, False)


def test_a_leap_forward_runs_once() -> None:
    hourly = table("0 * * * *")
    due = hourly.due("backup", at("2026-11-22T20:00:00Z"), at("2026-11-25T20:30:00Z"))
    assert due == Due("backup", at("2026-11-25T20:00:00Z"), missed=71, is_late=True)


# --- summer time ------------------------------------------------------------------------


def test_the_hour_that_is_skipped_runs_at_its_end() -> None:
    """29 March 2026: 02:00 to 03:00 does not exist in Berlin."""
    found = planned(
        table("30 2 * * *", "Europe/Berlin"),
        at("2026-03-28T12:00:00+01:00"),
        at("2026-03-30T12:00:00+02:00"),
        timedelta(minutes=10),
    )
    assert found == [at("2026-03-29T03:00:00+02:00"), at("2026-03-30T02:30:00+02:00")]


@pytest.mark.parametrize("step_minutes", [1, 7, 30])
def test_the_hour_that_comes_twice_runs_once(step_minutes: int) -> None:
    """25 October 2026: 02:00 to 03:00 comes twice in Berlin."""
    found = planned(
        table("30 2 * * *", "Europe/Berlin"),
        at("2026-10-24T12:00:00+02:00"),
        at("2026-10-26T12:00:00+01:00"),
        timedelta(minutes=step_minutes),
    )
    assert found == [at("2026-10-25T02:30:00+02:00"), at("2026-10-26T02:30:00+01:00")]


def test_nothing_behind_is_due_when_it_begins_in_the_repeated_hour() -> None:
    since = at("2026-10-25T02:10:00+01:00")  # the second time
    nightly = table("30 2 * * *", "Europe/Berlin")
    assert nightly.due("backup", since, since + timedelta(hours=2)) is None
    assert nightly.next_after("backup", since) == at("2026-10-26T02:30:00+01:00")


@pytest.mark.parametrize("day", ["2026-03-28", "2026-10-24"])
def test_what_runs_every_half_hour_does_so_through_the_change(day: str) -> None:
    since = at(f"{day}T22:00:00Z")
    found = planned(
        table("*/30 * * * *", "Europe/Berlin"),
        since,
        since + timedelta(hours=8),
        timedelta(minutes=5),
    )
    assert found == [since + timedelta(minutes=30) * n for n in range(1, 17)]


# --- settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression", ["0 3 * *", "0 0 3 * * *", "60 * * * *", "0 3 * * FOO", "0 0 30 2 *", "@daily"]
)
def test_a_bad_expression_is_named(expression: str) -> None:
    with pytest.raises(SettingsError, match=r"\[schedule\] backup: ") as caught:
        table(expression)
    assert expression in caught.value.message


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Timetable(ScheduleSettings(backup="x", check="* *", time_zone="Europe/Berlln"))
    assert all(word in caught.value.message for word in ("backup", "check", "Berlln"))


@pytest.mark.parametrize("zone", ["../../etc/passwd", "/etc/passwd", "Europe", "\x01"])
def test_a_zone_is_no_path(zone: str) -> None:
    with pytest.raises(SettingsError, match="time_zone"):
        table("0 3 * * *", zone)


@settings(deadline=None)  # a busy machine is no bug
@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
    st.lists(st.integers(1, 200_000), min_size=1, max_size=30),
    st.sampled_from(["*/5 * * * *", "0 3 * * *", "30 2 * * *", "15 1,2 * * SUN", "0 */2 1 * *"]),
)
def test_however_it_is_looked_at_no_moment_is_lost_or_doubled(
    begin: datetime, pauses: list[int], expression: str
) -> None:
    timetable = table(expression, "Europe/Berlin")
    start = now = since = begin.replace(tzinfo=UTC)
    counted = 0
    for seconds in pauses:
        now += timedelta(seconds=seconds)
        due = timetable.due("backup", since, now)
        if due is not None:
            assert since < due.planned_at <= now
            counted += 1 + due.missed
            since = due.planned_at
    whole = timetable.due("backup", start, now)
    assert counted == (0 if whole is None else whole.missed + 1)
