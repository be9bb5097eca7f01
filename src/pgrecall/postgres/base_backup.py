"""BASE_BACKUP: a server sends its data directory, one tar archive for each tablespace.

Source: PostgreSQL's documentation, "Streaming Replication Protocol", versions 13 to 18: up to 14
each archive and the manifest are a COPY of their own, from 15 on all is one COPY of messages that
begin with a letter. Nothing is made on the server but the backup that the session holds, which
the server ends when the session does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import psycopg
from psycopg import pq

from pgrecall.errors import BackupError, PgrecallError, PostgresError
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.replication import ReplicationSession

_ONE_COPY_MAJOR = 15
_IDLE_SECONDS = 1.0
_DATA_CORRUPTED = "XX001"
_OBJECT_STATE = "55000"
_MOST_WARNINGS = 20


class StreamedSpace(NamedTuple):
    """One archive: the tablespace's oid, None for PGDATA itself; ``size_bytes`` is estimated."""

    oid: int | None
    location: str
    size_bytes: int


class StreamStart(NamedTuple):
    """Where a streamed backup begins, and the archives that come, in their order."""

    lsn: Lsn
    timeline: int
    spaces: tuple[StreamedSpace, ...]


class StreamEnd(NamedTuple):
    """Where it ends. ``has_bad_pages``: the server found page checksums that fail."""

    lsn: Lsn
    timeline: int
    has_bad_pages: bool


class StreamReceiver(Protocol):
    """Where the archives and the manifest go; data is good until a call returns."""

    def archive(self, oid: int | None) -> None:
        """An archive begins, the one before is complete."""
        ...

    def archive_data(self, data: memoryview) -> None:
        """The next bytes of the archive."""
        ...

    def archives_done(self) -> None:
        """The last archive is complete; the manifest follows."""
        ...

    def manifest_data(self, data: memoryview) -> None:
        """The next bytes of PostgreSQL's own manifest."""
        ...


class BaseBackupSession(ReplicationSession):
    """One BASE_BACKUP; for one thread. Errors as of ReplicationSession.

    ``warnings``: what the server warned of meanwhile.
    """

    warnings: list[str]

    def reserve_wal(self, slot: str) -> None:
        """Keep WAL from being removed until the session ends, by a temporary slot."""
        name = slot.replace('"', "")
        self._run(f'CREATE_REPLICATION_SLOT "{name}" TEMPORARY PHYSICAL RESERVE_WAL')

    def begin(self, label: str, *, fast: bool, with_wal: bool) -> StreamStart:
        """Start the backup; returns when the checkpoint is done, which may take minutes."""
        self.warnings = []
        self._connection.notice_handler = self._note
        self._send(self._command(label, fast=fast, with_wal=with_wal))
        lsn, timeline = self._position_row(self._patiently())
        result = self._tuples(self._patiently())
        spaces = []
        for row in range(result.ntuples):
            oid, location, size = (result.get_value(row, column) for column in range(3))
            spaces.append(
                StreamedSpace(
                    int(oid) if oid is not None else None,
                    bytes(location or b"").decode("utf-8", "surrogateescape"),
                    int(size or 0) * 1024,
                )
            )
        return StreamStart(lsn, timeline, tuple(spaces))

    def stream(
        self, start: StreamStart, receiver: StreamReceiver, idle: Callable[[], None]
    ) -> StreamEnd:
        """Hand over everything that comes; ``idle`` is called when nothing came for a second."""
        if self.version_num // 10000 >= _ONE_COPY_MAJOR:
            messages = _Messages(receiver, start, self.where)
            self._begin_copy()
            self._copy(messages.take, idle)
            lsn, timeline = self._position_row(self._patiently())
            messages.finish()
        else:
            # What follows a COPY tells whether it was complete.
            for space in start.spaces:
                self._begin_copy()
                receiver.archive(space.oid)
                self._copy(receiver.archive_data, idle)
            self._begin_copy()
            receiver.archives_done()
            self._copy(receiver.manifest_data, idle)
            lsn, timeline = self._position_row(self._patiently())
        return StreamEnd(lsn, timeline, self._finish())

    # --- inside ------------------------------------------------------------------

    def _command(self, label: str, *, fast: bool, with_wal: bool) -> str:
        quoted = label.replace("'", "''")
        if self.version_num // 10000 >= _ONE_COPY_MAJOR:
            options = [
                f"LABEL '{quoted}'",
                "PROGRESS",
                f"CHECKPOINT '{'fast' if fast else 'spread'}'",
                "WAIT false",
                "TABLESPACE_MAP",
                "MANIFEST 'yes'",
                "MANIFEST_CHECKSUMS 'CRC32C'",
            ]
            return f"BASE_BACKUP ({', '.join([*options, *(['WAL'] if with_wal else [])])})"
        words = [f"BASE_BACKUP LABEL '{quoted}' PROGRESS"]
        words += ["FAST"] if fast else []
        words += ["WAL"] if with_wal else []
        words += ["NOWAIT TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"]
        return " ".join(words)

    def _begin_copy(self) -> None:
        result = self._patiently()
        if result.status != pq.ExecStatus.COPY_OUT:
            raise self._failed(result)

    def _copy(self, take: Callable[[memoryview], None], idle: Callable[[], None]) -> None:
        """Everything of one COPY, message by message, until it ends or is broken off."""
        get, consume = self._connection.get_copy_data, self._connection.consume_input
        is_idle = False
        while True:
            try:
                size, message = get(1)
                if size == 0:
                    # What has arrived is looked for first, and only then waited for.
                    if is_idle and not self._wait(_IDLE_SECONDS):
                        idle()
                    consume()
            except psycopg.Error as error:
                raise self._lost(error) from error
            if size < 0:
                return
            is_idle = size == 0
            if size:
                take(memoryview(message))

    def _finish(self) -> bool:
        """The command's end; whether the server says that it met damaged pages."""
        result = self._patiently()
        has_bad_pages = False
        if result.status != pq.ExecStatus.COMMAND_OK:
            field = result.error_field(pq.DiagnosticField.SQLSTATE)
            if field is None or bytes(field).decode() != _DATA_CORRUPTED:
                raise self._failed(result)
            # Everything was sent before. Which pages they are, we have seen ourselves.
            has_bad_pages = True
        while self._connection.get_result() is not None:
            pass
        return has_bad_pages

    def _patiently(self) -> pq.abc.PGresult:
        """The next result, however long it takes: TCP keepalives tell whether the host lives."""
        try:
            while self._connection.is_busy():
                self._wait(_IDLE_SECONDS)
                self._connection.consume_input()
        except psycopg.Error as error:
            raise self._lost(error) from error
        return self._result()

    def _tuples(self, result: pq.abc.PGresult) -> pq.abc.PGresult:
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise self._failed(result)
        return result

    def _position_row(self, result: pq.abc.PGresult) -> tuple[Lsn, int]:
        self._tuples(result)
        lsn, timeline = (bytes(result.get_value(0, column) or b"") for column in (0, 1))
        return Lsn.parse(lsn.decode("ascii")), int(timeline)

    def _note(self, result: pq.abc.PGresult) -> None:
        severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
        message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY)
        if severity == b"WARNING" and message and len(self.warnings) < _MOST_WARNINGS:
            self.warnings.append(bytes(message).decode("utf-8", "replace"))

    def _failed(self, result: pq.abc.PGresult) -> PgrecallError:
        field = result.error_field(pq.DiagnosticField.SQLSTATE)
        if field is not None and bytes(field).decode() == _OBJECT_STATE:
            message = bytes(result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"")
            return BackupError(
                f"{self.where} ended the backup: {message.decode('utf-8', 'replace')}",
                hint="run the backup again; a standby that was promoted is a primary now",
            )
        return super()._failed(result)


class _Messages:
    """The messages of the one COPY of 15 and later."""

    def __init__(self, receiver: StreamReceiver, start: StreamStart, where: str) -> None:
        self._receiver = receiver
        self._spaces = list(start.spaces)
        self._where = where
        self._is_manifest = False

    def take(self, message: memoryview) -> None:
        kind = bytes(message[:1])
        if kind == b"d":
            data = message[1:]
            if self._is_manifest:
                self._receiver.manifest_data(data)
            else:
                self._receiver.archive_data(data)
        elif kind == b"n" and self._spaces and not self._is_manifest:
            oid = self._spaces.pop(0).oid
            name = bytes(message[1:]).partition(b"\0")[0].decode("ascii", "replace")
            if name != ("base.tar" if oid is None else f"{oid}.tar"):
                raise PostgresError(f"{self._where} sent the archive {name!r} out of turn")
            self._receiver.archive(oid)
        elif kind == b"m" and not self._spaces and not self._is_manifest:
            self._is_manifest = True
            self._receiver.archives_done()
        elif kind != b"p":
            raise PostgresError(f"{self._where} sent a message {kind!r} out of turn")

    def finish(self) -> None:
        if not self._is_manifest:
            raise PostgresError(f"{self._where} ended the backup without its manifest")
