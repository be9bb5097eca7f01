"""What ``wal enable`` and its undoing share: the repositories, the session, the server's files."""

from __future__ import annotations

import os
import pwd

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository
from pgrecall.app.requests import EnableRequest
from pgrecall.errors import (
    DataDirectoryError,
    PgrecallError,
    RepositoryError,
    ServerBeingChangedError,
    ServerIsStandbyError,
    SettingsError,
    StoreError,
)
from pgrecall.model.findings import Finding
from pgrecall.postgres.change_lock import take_change_lock
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.control import read_control
from pgrecall.postgres.facts import ServerFacts
from pgrecall.postgres.instance import running_postmaster
from pgrecall.postgres.restarting import restart
from pgrecall.postgres.tools import find_bin_directory
from pgrecall.repository.enablements import Change, open_changes, read_enablements
from pgrecall.settings import ServerSettings

RESTART_SECONDS = 300


class OpenedAll(msgspec.Struct, frozen=True):
    """The repositories that could be opened; ``failed`` maps others to what was wrong."""

    repositories: tuple[OpenedRepository, ...]
    failed: dict[str, PgrecallError]

    def findings(self) -> list[Finding]:
        """A warning for each that was left out."""
        return [
            Finding(
                severity="warn",
                code=error.code,
                subject=name,
                message=f"left out: {error.message}",
                hint=error.hint,
            )
            for name, error in self.failed.items()
        ]


def open_all(context: RunContext, *, needs_required: bool) -> OpenedAll:
    """Open all repositories of the server, whatever --repository says.

    With ``needs_required`` one that is required and fails raises what is wrong with it.
    """
    opened: list[OpenedRepository] = []
    failed: dict[str, PgrecallError] = {}
    for settings in context.settings.repositories_of(context.server):
        try:
            opened.append(OpenedRepository(settings, context.environment))
        except (StoreError, RepositoryError, SettingsError) as error:
            if needs_required and settings.role == "required":
                raise
            failed[settings.name] = error
    return OpenedAll(tuple(opened), failed)


def administrator(context: RunContext, request: EnableRequest) -> ServerSettings:
    """The server, connected to as who may change it."""
    if not request.admin:
        return context.server
    # The configured password is that of the configured role.
    return context.server.replace(user=request.admin, password="")


def open_session(context: RunContext, request: EnableRequest, purpose: str) -> Connection:
    """A session of the administrator; raises PostgresUnreachableError, PostgresRightsError."""
    return connect(
        administrator(context, request),
        application_name="pgrecall wal enable",
        purpose=purpose,
        environment=context.environment,
    )


def open_changing_session(
    context: RunContext, request: EnableRequest, purpose: str, *, done: str = "nothing was changed"
) -> Connection:
    """As open_session, and nobody else plans or changes the server as long as it lives.

    A dry run changes nothing, and waits for nobody. Raises ServerBeingChangedError too, which
    says what was ``done``.
    """
    connection = open_session(context, request, purpose)
    if request.dry_run:
        return connection
    try:
        take_change_lock(connection)
    except ServerBeingChangedError as error:
        connection.close()
        raise ServerBeingChangedError(f"{error.message}; {done}", hint=error.hint) from error
    except BaseException:
        connection.close()
        raise
    return connection


def recorded_changes(context: RunContext, opened: OpenedAll, facts: ServerFacts) -> list[Change]:
    """What was changed and not undone, oldest first, as all repositories together tell it.

    Raises what is wrong with a required repository when none tells of any.
    """
    found = []
    failed = dict(opened.failed)
    for one in opened.repositories:
        try:
            found.append(read_enablements(one.store, context.server.name))
        except StoreError as error:
            failed[one.settings.name] = error
    changes = open_changes(found, facts.system_identifier)
    for name, problem in failed.items():
        # Unknown is not "nothing". Every change is on record in each required repository, so
        # that one of best effort can only repeat what those say.
        if not changes and context.settings.repository(name).role == "required":
            raise problem
    return changes


def require_primary(server: str, facts: ServerFacts) -> None:
    """Raise ServerIsStandbyError for a standby, or a server that still recovers."""
    if facts.is_in_recovery:
        raise ServerIsStandbyError(
            f"the server {server!r} is in recovery: a standby, or it is not open yet",
            hint="set host and port to those of the primary; a standby takes over its settings "
            "from the files of its own, where archive_mode = always lets it archive too",
        )


def local_data_directory(context: RunContext, facts: ServerFacts) -> str:
    """PGDATA, if this host has it and it is the answering server's; else empty."""
    pgdata = context.server.data_directory or facts.data_directory
    try:
        control = read_control(pgdata) if pgdata else None
        pid = running_postmaster(pgdata) if control is not None else None
    except DataDirectoryError:
        return ""  # elsewhere, or not for this user: what needs it says so
    if control is None or pid is None or control.system_identifier != facts.system_identifier:
        return ""
    return pgdata


def restart_server(context: RunContext, pgdata: str, major: int) -> None:
    """Restart the server of ``pgdata``; raises PostgresError, ToolMissingError."""
    directory = find_bin_directory(
        major,
        configured=context.server.bin_directory,
        data_directory=pgdata,
        program="pg_ctl",
    )
    restart(pgdata, str(directory), timeout_seconds=RESTART_SECONDS)


def user_name(uid: int) -> str:
    """The name of an operating system user; empty when it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def owner_of(path: str) -> int | None:
    """Uid of the owner; None when it cannot be told."""
    try:
        return os.stat(path).st_uid
    except OSError:
        return None
