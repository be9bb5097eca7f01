"""The last minutes of a server that is to be replaced: into the archive, as ``wal push`` does it.

Fact 27: what waits in the pg_wal of a stopped PGDATA (``.ready``), every other whole segment that
the archive lacks, and what there is of the segment that was being written. What an archive does
not take stays where it is, with the reason: whoever replaces the PGDATA keeps it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from pgrecall.codec.wal_scan import LONG_HEADER_BYTES
from pgrecall.errors import NotOwnerError, PgrecallError
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import WalFile
from pgrecall.postgres.control import read_control
from pgrecall.repository.identity import read_copy_marker
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import ServerSettings
from pgrecall.system.faults import reached
from pgrecall.wal.outcomes import CREATED
from pgrecall.wal.push import push_file, required_repositories
from pgrecall.wal.ready import ready_names
from pgrecall.wal.receive_upload import Landing
from pgrecall.wal.source import Origin, check_source
from pgrecall.wal.targets import open_target, target_store


class NotTaken(msgspec.Struct, frozen=True):
    """A file of pg_wal that an archive did not take, and why."""

    name: str
    reason: str


class Salvage(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the WAL of a stopped PGDATA.

    ``pushed`` are files that the archive lacked; ``tail`` the unfinished segment,
    stored up to ``tail_end`` (an LSN), empty for none; ``not_taken`` is archived
    nowhere. ``is_foreign``: the PGDATA is of a copy that does not own the archive.
    """

    pushed: tuple[str, ...] = ()
    tail: str = ""
    tail_end: str = ""
    not_taken: tuple[NotTaken, ...] = ()
    is_foreign: bool = False


class Salvor:
    """Pushes what lies in the pg_wal of one stopped PGDATA."""

    def __init__(
        self,
        settings: Settings,
        server: ServerSettings,
        pgdata: str,
        *,
        environment: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._server = server
        self._pgdata = pgdata
        self._environment = environment
        self._pushed: list[str] = []
        self._not_taken: list[NotTaken] = []
        self._is_foreign = False

    def run(self, whole: Sequence[str], tail: str, padded: bytes, end: Lsn) -> Salvage:
        """Push what is ready, the segments ``whole``, and the bytes of ``tail`` before ``end``.

        ``padded`` are those bytes with zeros behind, as long as a segment. Everything is
        tried, whatever fails. Raises DataDirectoryError when pg_wal cannot be read.
        """
        waiting = ready_names(self._pgdata)
        for name in (*waiting, *(one for one in whole if one not in waiting)):
            if self._is_foreign:
                break  # nothing of a copy that does not own the archive is taken
            self._try(name)
            reached("salvage.file")
        stored = ""
        if tail and not self._is_foreign and self._store_tail(tail, padded, end):
            stored = tail
        return Salvage(
            pushed=tuple(self._pushed),
            tail=stored,
            tail_end=str(end) if stored else "",
            not_taken=tuple(self._not_taken),
            is_foreign=self._is_foreign,
        )

    def _try(self, name: str) -> None:
        try:
            result = push_file(
                self._settings,
                self._server,
                os.path.join(self._pgdata, "pg_wal", name),
                pgdata=self._pgdata,
                environment=self._environment,
            )
        except NotOwnerError as error:
            self._is_foreign = True
            self._not_taken.append(NotTaken(name, error.message))
        except PgrecallError as error:
            self._not_taken.append(NotTaken(name, error.message))
        else:
            if result.outcome == CREATED:
                self._pushed.append(name)

    def _store_tail(self, tail: str, padded: bytes, end: Lsn) -> bool:
        control = read_control(self._pgdata)
        size = end - WalFile(tail).start(control.segment_bytes)
        if size <= LONG_HEADER_BYTES:
            return False  # no record ends in it
        writer = read_copy_marker(self._pgdata)
        origin = Origin(control.system_identifier, self._pgdata, writer)
        try:
            self._require_right_branch(tail, padded)
            landing = Landing(self._settings, self._server, self._environment, origin)
            landing.store_tail(tail, memoryview(padded), size)
        except PgrecallError as error:
            self._not_taken.append(NotTaken(tail, error.message))
            return False
        reached("salvage.tail")
        return True

    def _require_right_branch(self, tail: str, padded: bytes) -> None:
        """A former primary's own branch is no more welcome as a tail than as a segment."""
        path = os.path.join(self._pgdata, "pg_wal", tail)
        source = check_source(
            WalFile(tail), path, padded, (self._pgdata, read_control(self._pgdata))
        )
        for repository in required_repositories(self._settings, self._server):
            if repository.role == "required":
                store = target_store(self._settings, repository, self._environment)
                target = open_target(repository, store, self._server.name, source)
                target.goes_beyond_fork(source)
