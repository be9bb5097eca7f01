"""The schedule at work: real processes, an injected clock."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgrecall.agent.job_runner import Ended, JobRunner
from pgrecall.agent.schedule import Due, Timetable
from pgrecall.agent.scheduler import Scheduler
from pgrecall.errors import AgentPlaceError
from pgrecall.settings.sections import ScheduleSettings

DEADLINE_SECONDS = 20.0
START = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)
NIGHTLY = "0 3 * * *"

# Says what it was given in a file, waits while there is a file "hold", and ends as it is told.
PROGRAM = """
import json, os, sys, time
place = sys.argv[1]
with open(os.path.join(place, f"ran-{os.environ['PGRECALL_RUN_ID']}"), "w") as file:
    json.dump([sys.argv[2:], os.environ["PGRECALL_TRIGGER"]], file)
while os.path.exists(os.path.join(place, "hold")):
    time.sleep(0.005)
answer = os.path.join(place, "answer")
if os.path.exists(answer):
    print(open(answer).read())
    sys.exit(4)
"""


class StandingClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return time.monotonic()


class Scene:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = StandingClock()
        self.reported: list[Ended] = []
        self.runner = self.new_runner()
        self.scheduler = self.new_scheduler()

    def new_runner(self) -> JobRunner:
        argv = [sys.executable, "-c", PROGRAM, str(self.path)]
        return JobRunner(lambda: argv, str(self.path / "state"), dict(os.environ), self.clock)

    def new_scheduler(self, **expressions: str) -> Scheduler:
        settings = ScheduleSettings(**(expressions or {"backup": NIGHTLY}))  # type: ignore[arg-type]
        self.scheduler = Scheduler(
            Timetable(settings),
            self.runner,
            str(self.path / "state"),
            self.clock,
            self.reported.append,
        )
        return self.scheduler

    def restart(self) -> None:
        """As after a kill of the agent: a new runner knows of no process."""
        self.runner = self.new_runner()
        self.new_scheduler()

    def at(self, hours: float) -> float:
        """Put the clock to so many hours after the start, and look."""
        self.clock.at = START + timedelta(hours=hours)
        return self.scheduler.tick()

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            self.scheduler.tick()
            time.sleep(0.005)

    def runs(self) -> list[tuple[list[str], dict[str, object]]]:
        found = []
        for path in sorted(self.path.glob("ran-*"), key=lambda path: path.stat().st_mtime_ns):
            text = path.read_text()
            if text:
                words, trigger = json.loads(text)
                found.append((words, json.loads(trigger)))
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_job_runs_at_its_moment_and_is_reported(scene: Scene) -> None:
    scene.at(0)
    assert scene.at(6) <= 15
    assert scene.runs() == []
    scene.at(6.75)
    scene.until(lambda: scene.reported)
    ((words, trigger),) = scene.runs()
    assert words == ["backup", "--json"]
    assert trigger["planned_at"] == "2026-11-23T03:00:00Z"
    (ended,) = scene.reported
    assert (ended.job, ended.status, ended.error_code) == ("backup", 0, "")
    scene.at(7)
    assert scene.runner.running == []


def test_what_was_missed_runs_once_and_says_so(scene: Scene) -> None:
    scene.at(0)
    scene.restart()
    scene.at(24 * 5)
    scene.until(lambda: scene.reported)
    trigger = scene.reported[0].trigger
    assert (trigger.by, trigger.is_late, trigger.missed) == ("schedule", True, 4)
    facts = scene.scheduler.facts()
    assert (facts["late_total"], facts["missed_total"]) == (1, 4)
    scene.at(24 * 5 + 0.1)
    assert len(scene.runs()) == 1


def test_a_failure_is_reported_with_its_error(scene: Scene) -> None:
    (scene.path / "answer").write_text('{"error": {"code": "store", "message": "away"}}')
    scene.at(0)
    scene.at(6.75)
    scene.until(lambda: scene.reported)
    (ended,) = scene.reported
    assert (ended.status, ended.error_code, ended.message) == (4, "store", "away")
    scene.at(8)
    assert len(scene.runs()) == 1, "a failure is not repeated before its next moment"


def test_no_two_of_a_job_at_once(scene: Scene) -> None:
    (scene.path / "hold").touch()
    scene.at(0)
    scene.at(6.75)
    scene.until(scene.runs)
    scene.at(24 + 6.75)
    scene.at(48 + 6.75)
    assert len(scene.runs()) == 1
    (scene.path / "hold").unlink()
    scene.until(lambda: len(scene.reported) == 2)
    second = scene.reported[1].trigger
    assert (second.missed, second.planned_at) == (1, datetime(2026, 11, 25, 3, tzinfo=UTC))


def test_a_job_that_outlives_its_agent_is_not_doubled(scene: Scene) -> None:
    (scene.path / "hold").touch()
    scene.at(0)
    scene.at(6.75)
    scene.until(scene.runs)
    first = scene.runner
    scene.restart()
    scene.at(7)
    assert scene.runner.is_busy("backup")
    assert scene.runner.running == []
    assert len(scene.runs()) == 1
    (scene.path / "hold").unlink()
    # Nobody knows how it ended: it runs again, late.
    scene.until(lambda: scene.reported)
    assert scene.reported[0].trigger.is_late
    first.stop(DEADLINE_SECONDS)


def test_a_job_that_the_end_of_the_agent_cut_off_runs_again(scene: Scene) -> None:
    (scene.path / "hold").touch()
    scene.at(0)
    scene.at(6.75)
    scene.until(scene.runs)
    (ended,) = scene.runner.stop(DEADLINE_SECONDS)
    assert ended.status == -15
    (scene.path / "hold").unlink()
    scene.restart()
    scene.at(7)
    scene.until(lambda: scene.reported)
    assert len(scene.runs()) == 2


def test_another_expression_plans_from_now_on(scene: Scene) -> None:
    scene.at(0)
    scene.clock.at = START + timedelta(days=30)
    scene.new_scheduler(backup="0 4 * * *")
    scene.scheduler.tick()
    scene.scheduler.tick()
    assert scene.runs() == []


def test_a_clock_that_goes_back_by_years_plans_anew(scene: Scene) -> None:
    scene.at(24 * 365 * 9)
    scene.at(0)
    scene.at(6.75)
    scene.until(lambda: scene.reported)
    assert len(scene.runs()) == 1


def test_a_damaged_memory_begins_at_the_present(scene: Scene) -> None:
    scene.at(0)
    (scene.path / "state" / "schedule.json").write_text("{")
    scene.restart()
    scene.at(24 * 5)
    scene.at(24 * 5 + 1)
    assert scene.runs() == []


def test_without_a_memory_nothing_is_begun(scene: Scene) -> None:
    (scene.path / "state").write_text("a file where the directory belongs")
    with pytest.raises(AgentPlaceError, match=r"schedule\.json"):
        scene.at(0)


def test_a_program_that_cannot_be_started_leaves_no_lock(tmp_path: Path) -> None:
    runner = JobRunner(lambda: ["/does/not/exist"], str(tmp_path), {}, StandingClock())
    with pytest.raises(FileNotFoundError):
        runner.start(Due("backup", START, 0, False))
    assert not runner.is_busy("backup")


def test_a_standby_leaves_it_to_the_primary_and_a_promotion_takes_it_over(scene: Scene) -> None:
    is_standby = [True]
    scene.scheduler = Scheduler(
        Timetable(ScheduleSettings(backup=NIGHTLY)),
        scene.runner,
        str(scene.path / "state"),
        scene.clock,
        scene.reported.append,
        lambda: is_standby[0],
    )
    scene.at(0)
    scene.at(24 * 3)
    assert scene.scheduler.facts()["is_standby"] is True
    is_standby[0] = False
    scene.at(24 * 3 + 1)
    assert scene.runs() == []
    scene.at(24 * 3 + 6.75)
    scene.until(lambda: scene.reported)
    trigger = scene.reported[0].trigger
    assert (trigger.planned_at, trigger.missed) == (datetime(2026, 11, 26, 3, tzinfo=UTC), 0)
