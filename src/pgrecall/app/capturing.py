"""``capture``, ``captures list`` and ``captures show``: configuration and metadata of a moment."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall import __version__
from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.errors import CorruptObjectError, UsageError
from pgrecall.model.captures import CaptureFacts, CaptureRecord
from pgrecall.model.findings import Finding, worst
from pgrecall.model.ids import CAPTURE, kind_of, new_id
from pgrecall.model.runs import RunFacts
from pgrecall.model.targets import parse_time
from pgrecall.postgres.capturing import capture_facts, volatile_facts
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.facts import system_identifier
from pgrecall.repository.capture_log import CaptureLog
from pgrecall.repository.identity import require_generation
from pgrecall.repository.retention_log import read_state
from pgrecall.store.base import SUITE_NONE
from pgrecall.system.clock import SystemClock

LATEST = "latest"


class CaptureResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``capture`` prints. ``is_new`` False: nothing changed since ``capture_id``."""

    server: str
    repository: str
    capture_id: str
    is_new: bool
    captured_at: datetime
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=worst(list(self.findings)), capture_id=self.capture_id)


class CaptureLine(msgspec.Struct, frozen=True):
    """One line of the list."""

    capture_id: str
    captured_at: datetime
    version_num: int
    files: int
    settings: int
    roles: int
    databases: int


class CaptureList(msgspec.Struct, frozen=True):
    """The captures of a server that have not expired, oldest first."""

    server: str
    repository: str
    captures: tuple[CaptureLine, ...]
    findings: tuple[Finding, ...] = ()


class CaptureDetails(msgspec.Struct, frozen=True):
    """One capture."""

    capture: CaptureRecord


def run_capture(context: RunContext) -> CaptureResult:
    """Capture the chosen server into its main repository, once for what has not changed.

    Raises PostgresError and its kinds, StoreError, RepositoryError, IdentityError.
    """
    opened = main_repository(context)
    with capture_session(context) as connection:
        return capture_into(context, opened, connection)


def capture_session(context: RunContext) -> Connection:
    """A session for a capture of the chosen server; raises PostgresError and its kinds."""
    return connect(
        context.server,
        application_name="pgrecall capture",
        purpose="capture",
        environment=context.environment,
    )


def observe(context: RunContext, opened: OpenedRepository, connection: Connection) -> CaptureFacts:
    """The server as it is now, with as much as a capture into ``opened`` would hold.

    Raises PostgresError and its kinds, IdentityError when it is another server.
    """
    name, identifier = context.server.name, system_identifier(connection)
    require_generation(opened.store, name, identifier, f"the server {name!r}")
    return capture_facts(connection, with_secrets=opened.store.suite != SUITE_NONE)


def capture_into(
    context: RunContext, opened: OpenedRepository, connection: Connection
) -> CaptureResult:
    """As run_capture, by a session that there is already."""
    server = context.server
    facts = observe(context, opened, connection)
    volatile = volatile_facts(connection)
    log = CaptureLog(opened.store, server.name)
    newest, damaged = _newest(log)
    is_new = newest is None or newest.facts != facts
    if newest is None or is_new:
        now = SystemClock().now()
        newest = CaptureRecord(
            capture_id=new_id(CAPTURE, now),
            server=server.name,
            captured_at=now,
            facts=facts,
            volatile=volatile,
            tool_version=__version__,
        )
        log.add(newest)
    return CaptureResult(
        server=server.name,
        repository=opened.settings.name,
        capture_id=newest.capture_id,
        is_new=is_new,
        captured_at=newest.captured_at,
        findings=(*facts.findings, *damaged),
    )


def list_captures(context: RunContext) -> CaptureList:
    """The captures of the chosen server, from its main repository."""
    opened = main_repository(context)
    records, findings = CaptureLog(opened.store, context.server.name).all()
    state = read_state(opened.store, context.server.name)
    return CaptureList(
        server=context.server.name,
        repository=opened.settings.name,
        captures=tuple(_line(one) for one in records if state.is_listed(one.capture_id)),
        findings=tuple(findings),
    )


def show_capture(context: RunContext, name: str) -> CaptureDetails:
    """One capture, named as for named_capture; raises UsageError when there is none."""
    log = CaptureLog(main_repository(context).store, context.server.name)
    return CaptureDetails(named_capture(log, name))


def named_capture(log: CaptureLog, name: str) -> CaptureRecord:
    """The capture of an identity, ``latest``, or the one that was current at a moment.

    Raises UsageError when there is none, or ``name`` is none of these.
    """
    if kind_of(name):
        return log.get(name)
    if name != LATEST:
        return log.current_at(parse_time(name))
    newest = log.newest()
    if newest is None:
        raise UsageError(
            f"there is no capture of server {log.server!r} yet", hint="make one: pgrecall capture"
        )
    return newest


def _newest(log: CaptureLog) -> tuple[CaptureRecord | None, list[Finding]]:
    """The newest capture; a damaged one is a finding, and the next capture is stored anew."""
    try:
        return log.newest(), []
    except CorruptObjectError as error:
        return None, [Finding("warn", error.code, error.message, "", error.hint)]


def _line(record: CaptureRecord) -> CaptureLine:
    facts = record.facts
    return CaptureLine(
        capture_id=record.capture_id,
        captured_at=record.captured_at,
        version_num=facts.version_num,
        files=len(facts.files),
        settings=len(facts.settings),
        roles=len(facts.roles),
        databases=len(facts.databases),
    )
