"""``restore --database``: names to oids, and what is done with the other databases afterwards."""

from __future__ import annotations

from pgrecall.app.context import RunContext
from pgrecall.app.requests import RestoreRequest
from pgrecall.errors import PgrecallError, RecoveryError, UsageError
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.databases import (
    close_database,
    database_names,
    drop_database,
    reject_connections,
)
from pgrecall.repository.name_maps import NameMaps, NamePlace
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.choice import Choice
from pgrecall.restore.selection import ALWAYS, Selection, invalid_pages, select

#: For recovery over files of zeros, and for a server that has some.
SETTINGS = {"ignore_invalid_pages": "on", "autovacuum": "off"}


def selection_of(
    context: RunContext, archive: WalArchive, choice: Choice, request: RestoreRequest
) -> Selection | None:
    """The databases to restore; None: all. Raises UsageError, StoreError, CorruptObjectError."""
    if not request.databases:
        return None
    maps = NameMaps(archive.store, context.server.name, archive.generation)
    history = choice.path.history
    timelines = [*(switch.timeline for switch in history.switches), history.timeline]
    places = _telling(maps.places(timelines), Lsn.parse(choice.backup.stop_lsn))
    if not places:
        raise UsageError(
            f"which databases backup {choice.backup.backup_id} holds was never recorded",
            hint="restore all of it, without --database",
        )
    known = [(entry.oid, entry.name) for place in places for entry in maps.record(place).databases]
    return select(request.databases, known)


def _telling(places: list[NamePlace], stop: Lsn) -> list[NamePlace]:
    """The record before the backup's end, and everything that came later."""
    before = [place for place in places if place.lsn <= stop]
    return before[-1:] + [place for place in places if place.lsn > stop]


def require_selective(request: RestoreRequest) -> None:
    """Raise UsageError for what a restore of some databases cannot do."""
    if request.drop_others and not request.databases:
        raise UsageError("--drop-others needs --database")
    if not request.databases:
        return
    for given, option, why in (
        (request.take_over, "--take-over", "a server without its other databases owns no archive"),
        (request.standby, "--standby", "its recovery would never end"),
        (request.delta, "--delta", "the other databases would be overwritten with zeros"),
        (request.action != "promote", "--action", "the other databases must be closed"),
    ):
        if given:
            raise UsageError(f"--database does not go with {option}: {why}")
    if not request.start:
        raise UsageError(
            "--database needs --start: only in its log does PostgreSQL say whether recovery found"
            " all pages of the databases that were asked for",
            hint="add --start",
        )


def home_database(selection: Selection | None, configured: str) -> str:
    """A database that can be connected to."""
    if selection is None or configured in selection.databases:
        return configured
    return ALWAYS[0]


def require_valid_pages(log: str, selection: Selection, log_path: str) -> None:
    """Raise RecoveryError when WAL refers to pages that are missing in a restored database."""
    found = invalid_pages(log, selection.zeroed)
    if found:
        raise RecoveryError(
            f"recovery met {len(found)} invalid pages in databases that were restored:"
            f" {', '.join(found[:5])}; the copy was stopped",
            hint=f"the whole log is {log_path}; another backup may be whole: --backup ID",
        )


class OtherDatabases:
    """The databases that were not restored: ``closed`` to everybody, or ``dropped``."""

    def __init__(self, selection: Selection, *, drops: bool) -> None:
        self._selection = selection
        self._drops = drops
        self.closed: list[str] = []
        self.dropped: list[str] = []
        self.findings: list[Finding] = []

    def end(self, connection: Connection) -> None:
        """Close them, and drop them if that was asked; what fails is a finding."""
        wanted = {*ALWAYS, *self._selection.databases}
        for oid, name in sorted(database_names(connection).items()):
            if name in wanted and oid not in self._selection.zeroed:
                continue
            try:
                if self._drops:
                    close_database(connection, name)
                    drop_database(connection, name)
                    self.dropped.append(name)
                else:
                    close_database(connection, name)
                    self.closed.append(name)
            except PgrecallError as error:
                self.findings.append(
                    Finding(
                        severity="warn",
                        code="database-of-zeros",
                        subject=name,
                        message=f"{name} was not restored and could not be"
                        f" {'dropped' if self._drops else 'closed'}: {error.message}",
                        hint="its tables are zeros: drop it before anybody takes them for empty",
                    )
                )
        if not self.closed:
            return
        try:
            reject_connections(connection, self.closed)
        except PgrecallError as error:
            self.findings.append(
                Finding(
                    severity="warn",
                    code="database-of-zeros",
                    subject="pg_hba.conf",
                    message="the databases that were not restored are not refused:"
                    f" {error.message}",
                    hint="do not connect to them: the server would end with PANIC, and start again",
                )
            )
