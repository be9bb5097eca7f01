"""Waiting, by event, until a segment of a running server is durable in its repositories."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository
from pgrecall.check.archiving import SegmentWait, Watched
from pgrecall.errors import (
    NotArchivedError,
    PgrecallError,
    ServerIsStandbyError,
    SettingsError,
)
from pgrecall.model.findings import Finding, Severity
from pgrecall.postgres.actions import ArchiverFacts, archiver_facts
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.facts import system_identifier
from pgrecall.postgres.server_log import last_message
from pgrecall.repository.identity import require_generation
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import RepositorySettings
from pgrecall.system.clock import SystemClock


class ArchivingState(msgspec.Struct, frozen=True):
    """What the server says before anything is done to it; ``message`` why nothing would arrive."""

    is_in_recovery: bool
    archive_mode: str
    receivers: int
    segment_bytes: int
    insert_lsn: str
    insert_file: str
    message: str = ""


def server_session(context: RunContext, purpose: str) -> Connection:
    """A session with the chosen server; raises PostgresError and its kinds."""
    return connect(
        context.server,
        application_name=f"pgrecall {purpose}",
        purpose=purpose,
        environment=context.environment,
    )


def require_primary(connection: Connection, server: str, what: str) -> None:
    """Raise ServerIsStandbyError when the server is in recovery."""
    if connection.value("SELECT pg_catalog.pg_is_in_recovery()"):
        raise ServerIsStandbyError(
            f"the server {server!r} is in recovery (a standby): {what}",
            hint="say it to the primary: set host and port of the server to those of the primary",
        )


def archiving_problem(connection: Connection) -> str:
    """Why no segment would reach a repository; empty when one may."""
    mode, command, library, senders = connection.row(
        "SELECT pg_catalog.current_setting('archive_mode'),"
        " pg_catalog.current_setting('archive_command', true),"
        " pg_catalog.current_setting('archive_library', true),"
        " (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots"
        "  WHERE active AND slot_type = 'physical')"
    )
    if senders:
        return ""  # a receiver may archive, whatever archive_mode says
    if mode == "off":
        return "archive_mode is off, and nobody receives WAL by streaming"
    if not (command or "").strip(" \t") and not library:
        return "archive_command is empty, and nobody receives WAL by streaming"
    return ""


class ArchiveWait:
    """The repositories of the chosen server, open, and the server's session, for one wait."""

    def __init__(self, context: RunContext, connection: Connection) -> None:
        """Open the repositories; one that is required must be there and know the system.

        Raises RepositoryError, StoreError, IdentityError. What a best-effort one
        lacks becomes a finding.
        """
        self._context = context
        self._connection = connection
        self.findings: list[Finding] = []
        self._required: list[Watched] = []
        self._best_effort: list[Watched] = []
        identifier = system_identifier(connection)
        if not context.repositories:
            raise SettingsError(
                f"the server {context.server.name!r} has no repository",
                hint="add a table [repositories.NAME] to the configuration file",
            )
        for settings in context.repositories:
            severity: Severity = "fail" if settings.role == "required" else "warn"
            try:
                watched = Watched(settings.name, self._archive(settings, identifier), severity)
            except PgrecallError as error:
                if severity == "fail":
                    raise
                self.findings.append(
                    Finding(
                        severity="warn",
                        code=error.code,
                        subject=settings.name,
                        message=error.message,
                        hint=error.hint,
                    )
                )
                continue
            (self._required if severity == "fail" else self._best_effort).append(watched)
        if not self._required:
            # With none that is required, a segment counts as soon as one has it.
            self._required, self._best_effort = self._best_effort, []

    def _archive(self, settings: RepositorySettings, identifier: int) -> WalArchive:
        opened = OpenedRepository(settings, self._context.environment)
        name = self._context.server.name
        generation = require_generation(opened.store, name, identifier, f"the server {name!r}")
        return WalArchive(opened.store, name, generation)

    @property
    def required(self) -> list[Watched]:
        """The repositories that are waited for."""
        return list(self._required)

    def before(self) -> ArchiverFacts:
        """What the archiver says now: to be asked before the switch."""
        return archiver_facts(self._connection)

    def until_durable(
        self, segment: str, before: ArchiverFacts, timeout_seconds: float | None
    ) -> list[str]:
        """Names of the repositories that have ``segment``; every required one is among them.

        Ends early when archiving fails. Raises NotArchivedError with the cause.
        """
        seconds = timeout_seconds
        if seconds is None:
            seconds = self._context.settings.backup.archive_timeout_seconds
        wait = SegmentWait(
            segment,
            self._required,
            archiver=self.before,
            before=before,
            clock=SystemClock(),
            complaint=self._complaint(),
        )
        arrived, problems = wait.run(seconds)
        if problems:
            first = problems[0]
            others = "".join(f"; {one.subject}: {one.message}" for one in problems[1:])
            raise NotArchivedError(
                f"{segment} is not durable in repository {first.subject}: {first.message}{others}",
                hint=first.hint,
            )
        names = [one.name for one in arrived]
        for one in self._best_effort:
            if self._has(one, segment):
                names.append(one.name)
        return names

    def _has(self, one: Watched, segment: str) -> bool:
        try:
            if one.archive.has(segment):
                return True
            message, hint = f"{segment} is not here yet", "it is paid later, from another one"
            code = "not-archived"
        except PgrecallError as error:
            code, message, hint = error.code, error.message, error.hint
        self.findings.append(
            Finding(severity="warn", code=code, subject=one.name, message=message, hint=hint)
        )
        return False

    def _complaint(self) -> Callable[[], str]:
        own = self._context.server.data_directory
        return lambda: last_message(
            self._connection,
            own or self._connection.value("SELECT pg_catalog.current_setting('data_directory')"),
            "pgrecall: ",
        )
