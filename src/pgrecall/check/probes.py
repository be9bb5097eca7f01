"""Probes that act: what is read, written and asked to find out whether things work.

Nothing that they write stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import datetime

from pgrecall.check.plan import CheckFacts, backup_functions
from pgrecall.errors import (
    DataDirectoryError,
    PgrecallError,
    StoreError,
)
from pgrecall.model.findings import Finding, Severity
from pgrecall.postgres.actions import archiver_facts
from pgrecall.postgres.ahead_place import AHEAD_DIRECTORY, is_abandoned
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.control import read_control
from pgrecall.postgres.facts import ServerFacts, server_facts, server_rights
from pgrecall.postgres.replication import ReplicationSession
from pgrecall.repository.identity import RepositoryIdentity
from pgrecall.settings import RepositorySettings, ServerSettings
from pgrecall.store.base import Store
from pgrecall.system.clock import Clock
from pgrecall.system.filesystems import free_bytes

_READ_AS_OWNER = "run pgrecall as the operating system user that owns the data directory"
_SKEW_WARN_SECONDS = 5.0
_SKEW_FAIL_SECONDS = 300.0
_LEAST_FREE_SEGMENTS = 8
_FREE_SHARE = 0.05


def failed(error: PgrecallError, severity: Severity = "fail", subject: str = "") -> Finding:
    """An error as a finding."""
    return Finding(
        severity=severity,
        code=error.code,
        message=error.message,
        subject=subject,
        hint=error.hint or "see docs/errors.md",
    )


def ask_server(connection: Connection, slot: str) -> CheckFacts:
    """Everything that a check wants to know of a server; changes nothing. Raises PostgresError.

    ``slot`` is the one through which pgrecall receives, if it does.
    """
    facts = server_facts(connection)
    stop = backup_functions(facts.major)[1]
    can_stop, full_page_writes, fsync = connection.row(
        "SELECT pg_catalog.has_function_privilege(%s, 'EXECUTE'),"
        " pg_catalog.current_setting('full_page_writes')::pg_catalog.bool,"
        " pg_catalog.current_setting('fsync')::pg_catalog.bool",
        (f"pg_catalog.{stop}",),
    )
    standbys, receivers = connection.row(
        "SELECT pg_catalog.count(*) FILTER (WHERE s.slot_name IS DISTINCT FROM %s),"
        " pg_catalog.count(*) FILTER (WHERE s.slot_name = %s)"
        " FROM pg_catalog.pg_stat_replication AS r"
        " LEFT JOIN pg_catalog.pg_replication_slots AS s ON s.active_pid = r.pid",
        (slot, slot),
    )
    return CheckFacts(
        server=facts,
        rights=server_rights(connection),
        archiver=archiver_facts(connection),
        can_stop_backup=bool(can_stop),
        full_page_writes=bool(full_page_writes),
        fsync=bool(fsync),
        standbys=int(standbys),
        is_received=bool(receivers),
    )


# --- the data directory ------------------------------------------------------------


def probe_data_directory(data_directory: str, facts: ServerFacts | None) -> Iterator[Finding]:
    """Whether this process can read PGDATA, and whether it is the server's.

    ``facts`` None: the server did not answer.
    """
    if not data_directory:
        yield Finding(
            severity="fail",
            code="data-directory",
            message="where the data directory is, is not known",
            hint="set data_directory of the server, or let the role read it "
            "(GRANT pg_read_all_settings)",
        )
        return
    try:
        control = read_control(data_directory)
    except DataDirectoryError as error:
        yield failed(error, subject=data_directory)
        return
    if facts is not None and control.system_identifier != facts.system_identifier:
        yield Finding(
            severity="fail",
            code="data-directory",
            subject=data_directory,
            message=f"it holds the system {control.system_identifier}, the server that answers is "
            f"{facts.system_identifier}",
            hint="correct data_directory, host or port of the server",
        )
        return
    if facts is not None and control.is_stopped:
        yield Finding(
            severity="fail",
            code="data-directory",
            subject=data_directory,
            message="it says that its server is stopped, yet one answers: it is a copy",
            hint="set data_directory to what SHOW data_directory prints",
        )
        return
    unreadable = list(_unreadable(data_directory, facts))
    yield from unreadable
    if not unreadable:
        yield Finding(
            severity="ok",
            code="data-directory",
            subject=data_directory,
            message="can be read, and is the server's",
        )
        yield from _ahead(data_directory)
    yield from _links(data_directory)


def probe_stream(connect: Callable[[], ReplicationSession], facts: ServerFacts | None) -> Finding:
    """Whether the server could send its data directory, where that is how backups are made."""
    try:
        with connect() as session:
            system = session.identify()
            where = session.where
    except PgrecallError as error:
        return failed(error, subject="source")
    if facts is not None and system.system_identifier != facts.system_identifier:
        return Finding(
            severity="fail",
            code="source",
            subject="stream",
            message=f"{where} is system {facts.system_identifier} in one session and"
            f" {system.system_identifier} in the next",
            hint="host and port must be those of one server, not of a load balancer",
        )
    return Finding(
        severity="ok",
        code="source",
        subject="stream",
        message="the server gives a session for replication: it can send its data directory",
    )


def _unreadable(data_directory: str, facts: ServerFacts | None) -> Iterator[Finding]:
    places = [data_directory, *(f"{data_directory}/{name}" for name in ("base", "global"))]
    places.append(f"{data_directory}/pg_wal")
    places += _databases(data_directory)
    if facts is not None:
        for space in facts.tablespaces:
            places.append(f"{data_directory}/pg_tblspc/{space.oid}")
    for place in places:
        try:
            with os.scandir(place) as entries:
                first = next((entry for entry in entries if entry.is_file()), None)
            if first is not None and not os.access(first.path, os.R_OK):
                yield _cannot_read(first.path, "Permission denied")
        except OSError as error:
            yield _cannot_read(place, error.strerror)


def _databases(data_directory: str) -> list[str]:
    try:
        names = os.listdir(f"{data_directory}/base")
    except OSError:
        return []  # reported by the caller, which reads the directory itself
    return [f"{data_directory}/base/{name}" for name in sorted(names) if name.isdecimal()]


def _cannot_read(place: str, why: str | None) -> Finding:
    return Finding(
        severity="fail",
        code="data-directory-unreadable",
        subject=place,
        message=f"cannot be read: {why}",
        hint=_READ_AS_OWNER,
    )


def _links(data_directory: str) -> Iterator[Finding]:
    try:
        with os.scandir(data_directory) as entries:
            links = sorted(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return  # reported as unreadable already
    for name in links:
        if name == "pg_wal":
            continue
        path = f"{data_directory}/{name}"
        what = f"is a link to {os.path.realpath(path)}"
        message = what if os.path.exists(path) else f"{what}, which does not exist"
        yield Finding(
            severity="warn",
            code="link-in-data-directory",
            subject=path,
            message=f"{message}; a backup stores what it shows, not the link",
            hint="a restore puts files in its place; make the link again after it",
        )


def _ahead(data_directory: str) -> Iterator[Finding]:
    """What a ``wal fetch-ahead`` that was killed has left, where nobody has removed it yet."""
    subject = f"{data_directory}/{AHEAD_DIRECTORY}"
    try:
        is_left = is_abandoned(data_directory)
    except OSError as error:
        yield _cannot_read(str(error.filename or subject), error.strerror)
        return
    if is_left:
        yield Finding(
            severity="warn",
            code="ahead-abandoned",
            subject=subject,
            message="a wal fetch-ahead that was killed has left segments, and nobody uses them",
            hint="the next wal push of this server, its agent and the next recovery remove them;"
            " where none of these comes, remove the directory",
        )


# --- repositories --------------------------------------------------------------------


def probe_space(settings: RepositorySettings, needed_bytes: int) -> Finding | None:
    """Free space of a local repository; ``needed_bytes`` is what the next backup may take.

    None for object stores, which do not tell.
    """
    if settings.store != "local":
        return None
    try:
        free = free_bytes(settings.path)
        status = os.statvfs(settings.path)
    except OSError as error:
        return Finding(
            severity="warn",
            code="space-unknown",
            subject=settings.name,
            message=f"free space of {settings.path} cannot be told: {error.strerror}",
            hint="see that it is mounted",
        )
    share = free / max(1, status.f_blocks * status.f_frsize)
    shown = f"{free >> 20} MiB free on {settings.path} ({share:.0%})"
    hint = "make room, or move the repository to a larger file system"
    if free < _LEAST_FREE_SEGMENTS * (16 << 20):
        return Finding(
            severity="fail", code="space", subject=settings.name, message=shown, hint=hint
        )
    if share < _FREE_SHARE or free < needed_bytes:
        return Finding(
            severity="warn", code="space", subject=settings.name, message=shown, hint=hint
        )
    return Finding(severity="ok", code="space", subject=settings.name, message=shown)


def probe_clock(store: Store, clock: Clock, subject: str) -> Finding:
    """Compare the store's clock with this host's by an object that does not stay.

    Raises StoreError.
    """
    key = f"probe-{os.urandom(8).hex()}"
    before = clock.now()
    try:
        store.put(key, [b"what time is it?"])
        after = clock.now()
        info = store.head(key)
    finally:
        with contextlib.suppress(StoreError):  # what happened before matters more
            store.delete(key)
    if info is None:
        raise StoreError(f"{store.name} does not hold {key}, which it has just acknowledged")
    return clock_finding(info.stored_at, (before, after), f"the clock of {store.name}", subject)


def clock_finding(
    told: datetime, bounds: tuple[datetime, datetime], whose: str, subject: str
) -> Finding:
    """Judge a clock that said ``told`` between two moments of this host's clock."""
    before, after = bounds
    early, late = (before - told).total_seconds(), (told - after).total_seconds()
    skew = max(early, late, 0.0)
    if skew <= _SKEW_WARN_SECONDS:
        return Finding(
            severity="ok", code="clock", subject=subject, message=f"{whose} agrees with this host's"
        )
    return Finding(
        severity="fail" if skew > _SKEW_FAIL_SECONDS else "warn",
        code="clock",
        subject=subject,
        message=f"{whose} is {skew:.0f} seconds {'behind' if early > late else 'ahead of'} "
        "this host's",
        hint="let both follow the same time service (chrony, systemd-timesyncd)",
    )


def secret_findings(settings: RepositorySettings | ServerSettings) -> list[Finding]:
    """Files of secrets that others than their owner and group may read."""
    found = []
    for name, field in settings.fields.items():
        value = str(getattr(settings, name))
        if not field.is_secret or not value.startswith("file:"):
            continue
        path = value.removeprefix("file:")
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue  # opening the store says so, and fails
        if mode & 0o007:
            found.append(
                Finding(
                    severity="warn",
                    code="secret-readable",
                    subject=path,
                    message=f"every user of this host may read the secret ({mode & 0o777:04o})",
                    hint=f"chmod 0640 {path}",
                )
            )
    return found


def encryption_finding(identity: RepositoryIdentity, settings: RepositorySettings) -> Finding:
    """Whether what is stored is encrypted; that the keys open was proven by reading."""
    if identity.root is None:
        said = "what is stored there is not encrypted by pgrecall"
    else:
        said = f"what is stored there is encrypted ({identity.suite}, by {settings.encryption})"
    return Finding(severity="ok", code="encryption", subject=settings.name, message=said)
