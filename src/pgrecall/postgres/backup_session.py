"""The session that holds a backup open on the server.

Source: PostgreSQL's documentation, "Making a Base Backup Using the Low Level API" (non-exclusive).
"""

from __future__ import annotations

from datetime import datetime
from types import TracebackType
from typing import Self

import msgspec

from pgrecall.errors import BackupError, DataDirectoryError, PostgresError
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.actions import server_clock
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.control import read_control
from pgrecall.postgres.facts import current_timeline

_CONTROL_TRIES = 3


class BackupLabel(msgspec.Struct, frozen=True):
    """What backup_label says; ``text`` is the file itself, to be stored byte for byte."""

    text: str
    start_lsn: Lsn
    start_file: str
    checkpoint_lsn: Lsn
    timeline: int
    is_from_standby: bool
    start_time: str
    label: str


class BackupStart(msgspec.Struct, frozen=True):
    """Where a backup begins; ``started_at`` is the server's clock (aware, UTC)."""

    lsn: Lsn
    timeline: int
    started_at: datetime


class BackupStop(msgspec.Struct, frozen=True):
    """Where a backup ends. ``tablespace_map`` is the file's text, empty without tablespaces."""

    lsn: Lsn
    label: BackupLabel
    tablespace_map: str
    stopped_at: datetime


class BackupSession:
    """A non-exclusive backup on one connection, which this object owns.

    Use as a context manager: leaving it closes the connection, and PostgreSQL then aborts a
    backup that was started and not stopped, so that nothing dangles on the server. The same
    happens when this process dies.
    """

    __slots__ = ("_connection", "_is_started", "_is_stopped")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._is_started = False
        self._is_stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()

    def reserve_wal(self, slot: str) -> None:
        """Keep the server from removing WAL from now until the session ends.

        Makes a temporary physical slot, for a backup that carries its own WAL; call it before
        start(). The role needs REPLICATION and the server a free slot (max_replication_slots).
        """
        self._connection.rows(
            "SELECT pg_catalog.pg_create_physical_replication_slot(%s, true, true)", (slot,)
        )

    def start(self, label: str, *, fast: bool) -> BackupStart:
        """Begin the backup; returns when the checkpoint is done.

        ``fast`` checkpoints at once; otherwise spread over the server's checkpoint time, which
        may take minutes. Raises PostgresError and its kinds.
        """
        if self._is_started:
            raise BackupError("this session has begun a backup already")
        connection = self._connection
        is_in_recovery = bool(connection.value("SELECT pg_catalog.pg_is_in_recovery()"))
        started_at = server_clock(connection)
        if connection.major >= 15:
            text = connection.value(
                "SELECT pg_catalog.pg_backup_start(%s, %s)::pg_catalog.text", (label, fast)
            )
        else:
            text = connection.value(
                "SELECT pg_catalog.pg_start_backup(%s, %s, false)::pg_catalog.text", (label, fast)
            )
        self._is_started = True
        timeline = current_timeline(connection, is_in_recovery=is_in_recovery)
        return BackupStart(lsn=Lsn.parse(text), timeline=timeline, started_at=started_at)

    def require_directory(self, data_directory: str) -> None:
        """Raise DataDirectoryError unless ``data_directory`` is the one the server works in.

        Call it after start(), which has made a checkpoint: pg_control of a copy (a clone that
        runs, a snapshot, an rsync of last week) has the same system identifier, and another
        checkpoint. The comparison is repeated where a checkpoint comes in between.
        """
        for _ in range(_CONTROL_TRIES):
            here = read_control(data_directory).checkpoint_lsn
            text = self._connection.value(
                "SELECT checkpoint_lsn::pg_catalog.text FROM pg_catalog.pg_control_checkpoint()"
            )
            if here == Lsn.parse(text):
                return
        raise DataDirectoryError(
            f"{data_directory} is a copy, not the directory that the server works in: its last"
            f" checkpoint is at {here}, the server's at {text}",
            hint="set data_directory to what SHOW data_directory prints",
        )

    def alive(self) -> None:
        """Raise PostgresUnreachableError when the session or the server was lost.

        May be called from another thread than the one that started the backup.
        """
        self._connection.ping()

    def stop(self, *, wait_for_archive: bool = False) -> BackupStop:
        """End the backup and return what must be stored with it.

        Without ``wait_for_archive`` the WAL up to the returned position may not be archived yet.
        Raises PostgresError and its kinds; on a standby PostgreSQL refuses when it was promoted
        meanwhile.
        """
        if not self._is_started or self._is_stopped:
            raise BackupError("no backup is under way in this session")
        connection = self._connection
        if connection.major >= 15:
            row = connection.row(
                "SELECT lsn::pg_catalog.text, labelfile, spcmapfile"
                " FROM pg_catalog.pg_backup_stop(%s)",
                (wait_for_archive,),
            )
        else:
            row = connection.row(
                "SELECT lsn::pg_catalog.text, labelfile, spcmapfile"
                " FROM pg_catalog.pg_stop_backup(false, %s)",
                (wait_for_archive,),
            )
        self._is_stopped = True
        return BackupStop(
            lsn=Lsn.parse(row[0]),
            label=parse_label(row[1]),
            tablespace_map=row[2] or "",
            stopped_at=server_clock(connection),
        )

    def close(self) -> None:
        """End the session; a backup that is under way is aborted by the server."""
        self._connection.close()


def parse_label(text: str) -> BackupLabel:
    """Read the content of backup_label (PostgreSQL's xlogbackup.c, build_backup_content).

    Raises PostgresError when a line that recovery needs is missing.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(": ")
        if colon:
            fields.setdefault(name, value)
    try:
        start, _, file = fields["START WAL LOCATION"].partition(" (file ")
        return BackupLabel(
            text=text,
            start_lsn=Lsn.parse(start),
            start_file=file.rstrip(")"),
            checkpoint_lsn=Lsn.parse(fields["CHECKPOINT LOCATION"]),
            timeline=int(fields["START TIMELINE"]),
            is_from_standby=fields.get("BACKUP FROM") == "standby",
            start_time=fields.get("START TIME", ""),
            label=fields.get("LABEL", ""),
        )
    except (KeyError, ValueError) as error:
        raise PostgresError(f"the server's backup_label does not parse: {text!r}") from error
