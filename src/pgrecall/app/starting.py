"""Start a restored instance, follow its recovery, and say where it stopped."""

from __future__ import annotations

import os
import tempfile
import time
from datetime import datetime
from pathlib import Path

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.copy_place import CopyPlace
from pgrecall.app.requests import RestoreRequest
from pgrecall.app.selecting import OtherDatabases, home_database, require_valid_pages
from pgrecall.errors import RecoveryError
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import ManifestRoot
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.instance import Instance, InstanceSettings, Phase
from pgrecall.postgres.recovery import recovery_state
from pgrecall.postgres.tools import find_bin_directory
from pgrecall.restore.configuration import AUTO_CONF
from pgrecall.restore.recovery_settings import clear_targets
from pgrecall.restore.selection import Selection
from pgrecall.system.clock import SystemClock
from pgrecall.system.durable import write_durable

LOG_FILE = "pgrecall_recovery.log"


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """A restored instance after its start. ``state`` is open, paused, recovering or shut-down.

    ``stopped`` is PostgreSQL's own sentence on where recovery stopped, empty at
    the end of the archive. ``replayed_to`` is an LSN. ``closed_databases`` were not
    restored and admit nobody.
    """

    state: str
    pid: int | None
    port: int
    socket_directory: str
    timeline: int
    stopped: str
    replayed_to: str
    last_commit_at: datetime | None
    recovery_seconds: float
    log_path: str
    prepared_transactions: tuple[str, ...] = ()
    subscriptions: tuple[str, ...] = ()
    closed_databases: tuple[str, ...] = ()
    dropped_databases: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def start_restored(
    context: RunContext,
    request: RestoreRequest,
    root: ManifestRoot,
    target_dir: str,
    *,
    place: CopyPlace | None,
    selection: Selection | None = None,
) -> Started:
    """Start the instance, wait for the end of recovery, and leave it running.

    ``place`` None: the instance takes production's place, and listens as configured.
    Raises RecoveryError with PostgreSQL's own words when recovery fails; then
    nothing is left running.
    """
    server = context.server
    directory = find_bin_directory(
        root.server.version_num // 10000,
        configured=server.bin_directory,
        data_directory=server.data_directory,
    )
    if place is None:
        is_socket = server.host.startswith("/")
        place = CopyPlace(server.port, server.host if is_socket else tempfile.gettempdir())
    settings = InstanceSettings(
        bin_directory=str(directory),
        pgdata=target_dir,
        port=place.port,
        socket_directory=place.socket_directory,
        log_path=os.path.join(target_dir, LOG_FILE),
        user=server.user,
        database=home_database(selection, server.database),
    )
    context.progress.phase("recover")
    began = time.monotonic()
    until: tuple[Phase, ...] = ("open", "paused", "shut-down")
    with Instance(settings) as instance:
        instance.start(context.environment)
        phase = instance.wait((*until, "recovering") if request.standby else until)
        seconds = time.monotonic() - began
        if selection is not None:
            require_valid_pages(instance.log_since_start(), selection, settings.log_path)
        started = _report(instance, phase, place, seconds)
        if phase == "open":
            if not request.take_over:
                _prove_isolation(instance)
            clear_targets_of(target_dir)
            if selection is not None:
                started = _end_others(instance, request, selection, started)
        instance.keep()
    return started


def _end_others(
    instance: Instance, request: RestoreRequest, selection: Selection, started: Started
) -> Started:
    others = OtherDatabases(selection, drops=request.drop_others)
    with instance.connect("closing the databases that were not restored") as connection:
        others.end(connection)
    return msgspec.structs.replace(
        started,
        closed_databases=tuple(others.closed),
        dropped_databases=tuple(others.dropped),
        findings=tuple(others.findings),
    )


def _report(instance: Instance, phase: Phase, place: CopyPlace, seconds: float) -> Started:
    report = instance.report()
    replayed = str(report.redo_done_at or "")
    last_commit: datetime | None = None
    timeline = report.new_timeline or 0
    prepared: tuple[str, ...] = ()
    subscriptions: tuple[str, ...] = ()
    if phase != "shut-down":
        with instance.connect("asking where recovery stopped") as connection:
            state = recovery_state(connection)
            replayed = str(state.replayed_to or replayed)
            last_commit = state.last_commit_at
            timeline = state.timeline
            prepared = _column(connection, "SELECT gid FROM pg_catalog.pg_prepared_xacts")
            subscriptions = _column(connection, "SELECT subname FROM pg_catalog.pg_subscription")
    return Started(
        state=phase,
        pid=instance.pid if phase != "shut-down" else None,
        port=place.port,
        socket_directory=place.socket_directory,
        timeline=timeline,
        stopped=report.stopped,
        replayed_to=replayed,
        last_commit_at=last_commit,
        recovery_seconds=round(seconds, 3),
        log_path=instance.settings.log_path,
        prepared_transactions=prepared,
        subscriptions=subscriptions,
    )


def _column(connection: Connection, query: str) -> tuple[str, ...]:
    return tuple(str(row[0]) for row in connection.rows(query))


def _prove_isolation(instance: Instance) -> None:
    """A copy must not archive (fact 2): asked from the instance itself, not from its files."""
    with instance.connect("proving that the copy does not archive") as connection:
        mode = connection.value("SELECT pg_catalog.current_setting('archive_mode')")
    if mode != "off":
        raise RecoveryError(
            f"the copy has archive_mode = {mode}, it could write to production's archive;"
            " it was stopped",
            hint="a command line or environment of its own must have set it",
        )


def clear_targets_of(target_dir: str) -> None:
    """Comment the targets out: left behind, they would stop the next recovery (fact 19)."""
    path = Path(target_dir, AUTO_CONF)
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    cleared = clear_targets(text, now=SystemClock().now())
    mode = path.stat().st_mode & 0o777
    write_durable(str(path), [cleared.encode("utf-8", "surrogateescape")], mode=mode)
