"""The component that runs the jobs of [schedule] at their moments, and remembers what it did."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from datetime import datetime

import msgspec

from pgrecall.agent.component import Fact, Facts
from pgrecall.agent.job_runner import Ended, JobRunner
from pgrecall.agent.schedule import Timetable, since_after_jump
from pgrecall.errors import AgentPlaceError
from pgrecall.system.clock import Clock
from pgrecall.system.durable import write_durable
from pgrecall.wal.agent_places import DIRECTORY_MODE

_log = logging.getLogger(__name__)

NAME = "schedule"
_STATE = "schedule.json"
# The clock may be set, or the host wake up, at any time: it is looked at often.
_LONGEST_WAIT_SECONDS = 15.0
_WAIT_WHILE_RUNNING_SECONDS = 0.5


class _Kept(msgspec.Struct, frozen=True):
    """What is remembered of one job: up to which planned moment everything is settled."""

    identity: str
    settled_at: datetime


_STATES = msgspec.json.Decoder(dict[str, _Kept])


class Scheduler:
    """Runs what is due; a Component.

    A planned moment is settled when its run has ended, however: an agent that is
    killed in the middle runs it again, late. The memory is a file in
    ``directory``; without it, planning begins at the present.
    """

    def __init__(
        self,
        timetable: Timetable,
        runner: JobRunner,
        directory: str,
        clock: Clock,
        report: Callable[[Ended], None],
        is_standby: Callable[[], bool] = lambda: False,
    ) -> None:
        """``report`` is told of every run that ended; it must not raise.

        While ``is_standby`` says so nothing is begun, and nothing is late afterwards:
        the primary's agent has run it.
        """
        self._timetable = timetable
        self._runner = runner
        self._path = os.path.join(directory, _STATE)
        self._clock = clock
        self._report = report
        self._is_standby = is_standby
        self._kept: dict[str, _Kept] | None = None
        self._lock = threading.Lock()
        self._facts: dict[str, Fact] = {}
        self._missed = 0
        self._late = 0

    @property
    def name(self) -> str:
        """``schedule``."""
        return NAME

    def run(self, stop: threading.Event) -> None:
        """Look at the clock until ``stop``; jobs that run then go on.

        Raises AgentPlaceError when what was done cannot be remembered: then nothing is begun.
        """
        while not stop.is_set():
            stop.wait(self.tick())

    def facts(self) -> Facts:
        """Per job its next moment, last outcome; what runs; late and missed ones since the start.

        Names: ``is_standby``, ``running``, ``late_total``, ``missed_total``, ``JOB_next_at``,
        ``JOB_last_status``, ``JOB_last_ended_at`` (moments as RFC 3339).
        """
        with self._lock:
            return dict(self._facts)

    def tick(self) -> float:
        """Settle what has ended, start what is due; returns the seconds until the next look."""
        now = self._clock.now()
        kept = self._kept if self._kept is not None else self._load(now)
        for ended in self._runner.ended():
            self.settle(ended)
        waits = [_LONGEST_WAIT_SECONDS]
        is_standby = self._is_standby()
        self._set("is_standby", is_standby)
        for job in self._timetable.expressions:
            if is_standby:
                self._pass_over(job, kept, now)
            else:
                self._begin_when_due(job, kept, now)
            following = self._timetable.next_after(job, now)
            if following is not None:
                waits.append((following - now).total_seconds())
            self._set(f"{job}_next_at", following.isoformat() if following else None)
        self._set("running", ", ".join(self._runner.running))
        if self._runner.running:
            waits.append(_WAIT_WHILE_RUNNING_SECONDS)
        return max(0.05, min(waits))

    def settle(self, ended: Ended) -> None:
        """Remember and report a run that ended."""
        planned_at = ended.trigger.planned_at
        if self._kept is not None and ended.job in self._kept and planned_at is not None:
            before = self._kept[ended.job]
            self._kept[ended.job] = _Kept(before.identity, max(before.settled_at, planned_at))
            self._save(self._kept)
        self._set(f"{ended.job}_last_status", ended.status)
        self._set(f"{ended.job}_last_ended_at", ended.ended_at.isoformat())
        level = logging.INFO if ended.status == 0 else logging.ERROR
        facts = {"job": ended.job, "job_run": ended.run_id, "status": ended.status}
        if ended.error_code:
            facts |= {"code": ended.error_code, "message_of_job": ended.message}
        _log.log(level, "a job of the schedule has ended", extra=facts)
        self._report(ended)

    def _begin_when_due(self, job: str, kept: dict[str, _Kept], now: datetime) -> None:
        since = since_after_jump(kept[job].settled_at, now)
        if since != kept[job].settled_at:
            _log.warning(
                "the clock went back: planning begins anew",
                extra={"job": job, "settled_at": kept[job].settled_at.isoformat()},
            )
            kept[job] = _Kept(kept[job].identity, since)
            self._save(kept)
        due = self._timetable.due(job, since, now)
        if due is None:
            return
        run_id = self._runner.start(due)
        if run_id is None:
            return  # the one before is at work still: this one begins late, or counts as missed
        self._missed += due.missed
        self._late += due.is_late
        self._set("missed_total", self._missed)
        self._set("late_total", self._late)
        _log.info(
            "a job of the schedule begins",
            extra={
                "job": job,
                "job_run": run_id,
                "planned_at": due.planned_at.isoformat(),
                "late": due.is_late,
                "missed": due.missed,
            },
        )

    def _pass_over(self, job: str, kept: dict[str, _Kept], now: datetime) -> None:
        """Settle what is due without running it."""
        due = self._timetable.due(job, kept[job].settled_at, now)
        if due is not None:
            kept[job] = _Kept(kept[job].identity, due.planned_at)
            self._save(kept)

    def _load(self, now: datetime) -> dict[str, _Kept]:
        """The memory; a job that is new, or has another expression than then, begins now."""
        found: dict[str, _Kept] = {}
        try:
            with open(self._path, "rb") as file:
                found = _STATES.decode(file.read())
        except FileNotFoundError:
            pass
        except msgspec.DecodeError as error:
            _log.warning("the memory of the schedule is damaged: %s", error)
        except OSError as error:
            raise self._unusable(error) from error
        kept = {}
        for job in self._timetable.expressions:
            identity = self._timetable.identity(job)
            before = found.get(job)
            is_same = before is not None and before.identity == identity
            kept[job] = before if before is not None and is_same else _Kept(identity, now)
        self._save(kept)
        self._kept = kept
        return kept

    def _save(self, kept: dict[str, _Kept]) -> None:
        try:
            os.makedirs(os.path.dirname(self._path), DIRECTORY_MODE, exist_ok=True)
            write_durable(self._path, [msgspec.json.encode(kept)])
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> AgentPlaceError:
        return AgentPlaceError(
            f"the schedule cannot remember what it did in {self._path}: {error.strerror}",
            hint="the agent's user must own its directory, and there must be space",
        )

    def _set(self, name: str, value: Fact) -> None:
        with self._lock:
            self._facts[name] = value
