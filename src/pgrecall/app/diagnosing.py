"""``doctor``: look at everything that can be looked at, and name what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec

from pgrecall.app.checking import run_check
from pgrecall.app.context import RunContext
from pgrecall.app.diagnosing_places import dump_looks, places_of, recovering_of, words_of
from pgrecall.app.opened import main_repository
from pgrecall.app.recoverable import run_recoverable
from pgrecall.app.recoverable_result import RecoverableResult
from pgrecall.app.repositories import RepositoriesResult, run_repositories
from pgrecall.app.requests import (
    CheckRequest,
    DoctorRequest,
    RecoverableRequest,
    StatusRequest,
    WalStatusRequest,
)
from pgrecall.app.status import run_status, wanted_targets
from pgrecall.app.wal_status import run_wal_status
from pgrecall.doctor.diagnose import diagnose
from pgrecall.doctor.facts import Diagnosis, DoctorFacts, Hole, Look, Recovering, Seen
from pgrecall.errors import PgrecallError
from pgrecall.model.drills import DrillRecord
from pgrecall.model.findings import Finding, Severity
from pgrecall.model.lsn import Lsn
from pgrecall.model.runs import RunRecord
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.instance import running_postmaster
from pgrecall.postgres.roles import superuser_name
from pgrecall.postgres.slots import SlotState, slot_keep_bytes
from pgrecall.repository.drill_log import DrillLog
from pgrecall.repository.journal import Journal
from pgrecall.system.clock import SystemClock

_HISTORY = timedelta(days=30)
_DOWN = frozenset({"postgres-unreachable"})
_Result = TypeVar("_Result")


class DoctorResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``doctor`` prints; ``result`` is the gravest severity. ``seen``: what was looked at."""

    server: str
    looked_at: datetime
    result: Severity
    seen: tuple[Seen, ...]
    diagnoses: tuple[Diagnosis, ...]


class _Asked(msgspec.Struct, frozen=True):
    """What only a doctor asks of the server."""

    superuser: str = ""
    data_directory: str = ""
    slot_limit_bytes: int | None = None


def run_doctor(context: RunContext, request: DoctorRequest) -> DoctorResult:
    """Look at the chosen server, its repositories and its history; changes nothing.

    What cannot be looked at is a diagnosis, and never ends it. Raises SettingsError.
    """
    one = RunContext(
        context.settings,
        context,
        server_name=context.server.name,
        repository_name=context.repository_name,
    )
    now = SystemClock().now()
    try:
        facts = _Round(one, request, now).facts()
    finally:
        context.progress.done()
    found = diagnose(facts)
    worst: Severity = "ok"
    if found:
        worst = "fail" if any(item.severity == "fail" for item in found) else "warn"
    return DoctorResult(
        server=one.server.name,
        looked_at=now,
        result=worst,
        seen=facts.seen,
        diagnoses=tuple(found),
    )


class _Round:
    """One round: each part is looked at by itself, and fails by itself."""

    def __init__(self, context: RunContext, request: DoctorRequest, now: datetime) -> None:
        self._context = context
        self._request = request
        self._now = now
        self._server = context.server
        self._seen: list[Seen] = []
        self._findings: list[Finding] = []

    def facts(self) -> DoctorFacts:
        """Collect; every part says in ``seen`` whether it was looked at."""
        self._check()
        is_down = any(one.code in _DOWN for one in self._findings)
        asked, slots = (_Asked(), ()) if is_down else self._ask()
        directory = self._server.data_directory or asked.data_directory
        if is_down:
            self._note_process(directory)
        words = words_of(self._context, directory=directory, superuser=asked.superuser)
        self._status()
        reach = self._look("recoverable ranges", self._recoverable)
        copies = self._look("repositories", lambda: run_repositories(self._context))
        if copies is not None:
            self._findings += copies.findings
        runs = self._look("history", self._runs)
        drilled = self._look("drills", self._drilled)
        dumps = self._look("dumps", lambda: dump_looks(self._context))
        places = self._look("disks", lambda: places_of(directory)) if directory else None
        recovering = [
            found
            for path in (*([directory] if directory else []), *self._request.target_dirs)
            if (found := self._look(f"recovery of {path}", self._recovering(path))) is not None
        ]
        return DoctorFacts(
            words=words,
            seen=tuple(self._seen),
            findings=tuple(self._findings),
            runs=tuple(runs or ()),
            drilled=drilled[0] if drilled else None,
            is_drill_known=bool(drilled),
            backups=sum(bool(one.whole_in) for one in copies.backups) if copies else 0,
            slots=slots,
            slot_limit_bytes=asked.slot_limit_bytes,
            holes=_holes(reach),
            newest_at=reach.newest_at if reach is not None else None,
            repositories=_looks(copies),
            dumps=tuple(dumps or ()),
            places=tuple(places or ()),
            recovering=tuple(one for found in recovering for one in found),
            rto_seconds=wanted_targets(self._context).rto_seconds,
            least_free=self._request.least_free_percent / 100,
        )

    # --- parts ---------------------------------------------------------------------

    def _look(self, what: str, look: Callable[[], _Result]) -> _Result | None:
        self._context.progress.phase(what)
        try:
            found = look()
        except PgrecallError as error:
            self._seen.append(Seen(what=what, problem=error.message, hint=error.hint))
            return None
        except OSError as error:
            self._seen.append(Seen(what=what, problem=f"{error.filename}: {error.strerror}"))
            return None
        self._seen.append(Seen(what=what))
        return found

    def _check(self) -> None:
        found = self._look(
            "configuration", lambda: run_check(self._context, CheckRequest(switch_wal=False))
        )
        if found is not None:
            self._findings += found.findings

    def _ask(self) -> tuple[_Asked, tuple[SlotState, ...]]:
        asked = self._look("server", self._asked)
        status = self._look(
            "server's archiving", lambda: run_wal_status(self._context, WalStatusRequest())
        )
        if status is not None:
            self._findings += status.findings
        return asked or _Asked(), status.slots if status is not None else ()

    def _asked(self) -> _Asked:
        with connect(
            self._server,
            application_name="pgrecall doctor",
            purpose="doctor",
            environment=self._context.environment,
        ) as connection:
            limit = slot_keep_bytes(connection)
            return _Asked(
                superuser=superuser_name(connection),
                data_directory=_data_directory(connection),
                slot_limit_bytes=-1 if limit is None else limit,
            )

    def _note_process(self, directory: str) -> None:
        self._seen.append(Seen(what="server", problem="no session can be had"))
        try:
            is_up = not directory or running_postmaster(directory) is not None
        except (PgrecallError, OSError) as error:
            self._seen.append(Seen(what="server's PGDATA", problem=str(error)))
            return
        if not is_up:
            self._seen.append(
                Seen(what="server process", problem=f"no postmaster runs on {directory}")
            )

    def _status(self) -> None:
        found = self._look("status", lambda: run_status(self._context, StatusRequest()))
        if found is not None:
            self._findings += [item for one in found.servers for item in one.findings]

    def _recoverable(self) -> RecoverableResult:
        return run_recoverable(self._context, RecoverableRequest())

    def _runs(self) -> list[RunRecord]:
        opened = main_repository(self._context)
        records, damaged = Journal(opened.store, self._server.name).runs(self._now - _HISTORY)
        self._findings += damaged
        return records

    def _drilled(self) -> list[DrillRecord | None]:
        opened = main_repository(self._context)
        return [DrillLog(opened.store, self._server.name).newest()]

    def _recovering(self, path: str) -> Callable[[], list[Recovering]]:
        return lambda: recovering_of(self._context, path)


def _data_directory(connection: Connection) -> str:
    """Empty when the role may not know it."""
    rows = connection.rows(
        "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'"
    )
    return str(rows[0][0] or "") if rows else ""


def _holes(reach: RecoverableResult | None) -> tuple[Hole, ...]:
    """The gaps of the newest generation: in older ones nothing can be mended."""
    if reach is None or not reach.generations:
        return ()
    return tuple(
        Hole(
            timeline=gap.timeline,
            first=gap.first_missing,
            last=gap.last_missing,
            segments=gap.segments,
            explanation=gap.explanation,
            is_expired=gap.cause == "expired",
            is_bridged=any(Lsn.parse(one.from_lsn) >= Lsn.parse(gap.to_lsn) for one in path.ranges),
        )
        for path in reach.generations[-1].paths
        for gap in path.gaps
    )


def _looks(copies: RepositoriesResult | None) -> tuple[Look, ...]:
    if copies is None:
        return ()
    return tuple(
        Look(
            name=one.name,
            damaged=one.damaged,
            damaged_ids=tuple(
                backup.backup_id for backup in copies.backups if one.name in backup.damaged_in
            ),
            verified=one.last_verified_result,
            verified_at=one.last_verified_at,
        )
        for one in copies.repositories
    )
