"""A physical replication session with a server, through libpq.

Source: PostgreSQL's documentation, "Streaming Replication Protocol", versions 13
to 18. Nothing here blocks for longer than it was told to: libpq is asked
without waiting, and waited for with poll.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import psycopg
from psycopg import pq

from pgrecall.errors import (
    PgrecallError,
    PostgresError,
    PostgresRightsError,
    PostgresUnreachableError,
    ReceiveError,
    SlotError,
    UnsupportedServerError,
    WalMissingError,
)
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.connection import NEWEST_MAJOR, OLDEST_MAJOR, describe
from pgrecall.postgres.replication_messages import (
    WAL_HEADER_BYTES,
    Keepalive,
    parse_message,
    standby_status,
    wal_position,
)
from pgrecall.settings import ServerSettings, resolve_secret

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
_EPOCH_SECONDS = 946_684_800  # 2000-01-01 in Unix time
_REFUSALS = ("28000", "28P01", "42501", "3D000")
_FILE_IS_GONE = "58P01"
_SLOT_IN_USE = "55006"
_SLOT_STATE = "55000"
_UNKNOWN_SLOT = "42704"


class SystemFacts:
    """IDENTIFY_SYSTEM: who the server is, and where (``flushed_to``, on ``timeline``)."""

    __slots__ = ("flushed_to", "segment_bytes", "system_identifier", "timeline")

    def __init__(
        self, system_identifier: int, timeline: int, flushed_to: Lsn, segment_bytes: int
    ) -> None:
        self.system_identifier = system_identifier
        self.timeline = timeline
        self.flushed_to = flushed_to
        self.segment_bytes = segment_bytes


class Batch:
    """What arrived in one go: consecutive ``pieces`` of WAL from ``start`` on.

    ``server_end``: how far the server is, as far as it said so (else 0).
    ``is_end``: the server has no more of this timeline.
    """

    __slots__ = ("end", "is_end", "pieces", "server_end", "start", "wants_reply")

    def __init__(self, start: Lsn) -> None:
        self.start = start
        self.end = start
        self.pieces: list[memoryview | bytes] = []
        self.server_end = Lsn(0)
        self.wants_reply = False
        self.is_end = False


class NextTimeline:
    """Where a historic timeline was left: ``timeline`` begins at ``begins_at``."""

    __slots__ = ("begins_at", "timeline")

    def __init__(self, timeline: int, begins_at: Lsn) -> None:
        self.timeline = timeline
        self.begins_at = begins_at


class ReplicationSession:
    """One walsender's session; for one thread.

    Everything raises PostgresUnreachableError when the session is lost, and
    PostgresError for another error of the server.
    """

    def __init__(
        self,
        server: ServerSettings,
        *,
        application_name: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Connect; raises PostgresUnreachableError, PostgresRightsError, UnsupportedServerError."""
        self.where = describe(server)
        known = os.environ if environment is None else environment
        self._connection = _connect(server, application_name, self.where, known)
        self._position = Lsn(0)
        major = self._connection.server_version // 10000
        if not OLDEST_MAJOR <= major <= NEWEST_MAJOR:
            self.close()
            raise UnsupportedServerError(
                f"{self.where} runs PostgreSQL {major}",
                hint=f"pgrecall supports PostgreSQL {OLDEST_MAJOR} to {NEWEST_MAJOR}",
            )

    @property
    def version_num(self) -> int:
        """The server's version as PostgreSQL counts it."""
        return self._connection.server_version

    @property
    def backend_pid(self) -> int:
        """Process id of the walsender on the server's host."""
        return self._connection.backend_pid

    # --- commands ----------------------------------------------------------------

    def identify(self) -> SystemFacts:
        """IDENTIFY_SYSTEM and wal_segment_size."""
        system, timeline, position, *_ = self._row("IDENTIFY_SYSTEM")
        (size,) = self._row("SHOW wal_segment_size")
        return SystemFacts(int(system), int(timeline), Lsn.parse(position), _parse_size(size))

    def create_slot(self, name: str) -> None:
        """Make a physical slot that reserves WAL at once; raises SlotError if it is taken."""
        self._run(f"CREATE_REPLICATION_SLOT {_quoted(name)} PHYSICAL RESERVE_WAL")

    def timeline_history(self, timeline: int) -> tuple[str, bytes]:
        """Name and content of a timeline's history file."""
        result = self._run(f"TIMELINE_HISTORY {timeline:d}")
        name, content = result.get_value(0, 0), result.get_value(0, 1)
        if name is None or content is None:
            raise PostgresError(f"{self.where} has no history of timeline {timeline}")
        return name.decode("ascii"), bytes(content)

    def start(self, slot: str, position: Lsn, timeline: int) -> NextTimeline | None:
        """Begin to stream at ``position``; None when it has begun.

        A timeline that was left exactly at ``position`` streams nothing: the next
        one is returned (engineering note). Raises WalMissingError when the server
        has removed the WAL at once; SlotError when the slot cannot be used.
        """
        command = f"START_REPLICATION SLOT {_quoted(slot)} PHYSICAL {position} TIMELINE {timeline}"
        self._send(command)
        result = self._result()
        if result.status == pq.ExecStatus.COPY_BOTH:
            self._position = position
            return None
        return self._next_timeline(result)

    # --- streaming ---------------------------------------------------------------

    def receive(self, wait_seconds: float, limit_bytes: int) -> Batch:
        """What has arrived, waiting so long for the first message; about ``limit_bytes`` at most.

        The pieces are libpq's own memory: let go of them soon. Raises ReceiveError
        when the server leaves out or repeats a byte, WalMissingError when it has
        removed what comes next.
        """
        batch = Batch(self._position)
        is_idle = not self._take(batch, limit_bytes)
        patience = wait_seconds if is_idle else 0.0
        while batch.end - batch.start < limit_bytes and not batch.is_end:
            # While whole messages come, what follows is taken without looking whether it is there.
            if is_idle and not self._wait(patience):
                break
            patience = 0.0
            try:
                self._connection.consume_input()
            except psycopg.Error as error:
                raise self._lost(error) from error
            is_idle = not self._take(batch, limit_bytes)
        return batch

    def report(self, flushed: Lsn, *, wants_reply: bool = False) -> None:
        """Tell the server what is durable."""
        sent_at = time.time_ns() // 1000 - _EPOCH_SECONDS * 1_000_000
        try:
            self._connection.put_copy_data(
                standby_status(flushed, sent_at=sent_at, wants_reply=wants_reply)
            )
            self._flush()
        except psycopg.Error as error:
            raise self._lost(error) from error

    def finish_timeline(self) -> NextTimeline:
        """After a batch with ``is_end``: end the COPY, and learn which timeline follows."""
        try:
            self._connection.put_copy_end()
            self._flush()
        except psycopg.Error as error:
            raise self._lost(error) from error
        result = self._result()
        while result.status in (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_BOTH):
            result = self._result()
        return self._next_timeline(result)

    def close(self) -> None:
        """End the session; may be called several times."""
        self._connection.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- inside ------------------------------------------------------------------

    def _take(self, batch: Batch, limit_bytes: int) -> bool:
        """Move what libpq holds into the batch; True when there was anything.

        A busy server sends ten thousand messages for each GB: little is done for one.
        """
        take, add_piece = self._connection.get_copy_data, batch.pieces.append
        end = before = int(batch.end)
        server_end = int(batch.server_end)
        limit = batch.start + limit_bytes
        has_keepalive = False
        while end < limit:
            try:
                size, message = take(1)
            except psycopg.Error as error:
                raise self._lost(error) from error
            if size <= 0:
                break
            wal = wal_position(message)
            if wal is None:
                has_keepalive = True
                server_end = max(server_end, self._keepalive(batch, message))
                continue
            if wal[0] != end:
                raise ReceiveError(
                    f"{self.where} sent WAL from {Lsn(wal[0])} where {Lsn(end)} comes next",
                    hint="nothing of it was kept; the next connection asks for it again",
                )
            end += size - WAL_HEADER_BYTES
            server_end = max(server_end, wal[1])
            add_piece(message[WAL_HEADER_BYTES:])
        else:
            size = 0
        batch.end = self._position = Lsn(end)
        batch.server_end = Lsn(server_end)
        if size < 0:
            self._end_of_copy(batch)
        return end > before or has_keepalive or size < 0

    def _keepalive(self, batch: Batch, message: memoryview | bytes) -> int:
        """Note what the server wants; how far it is."""
        parsed = parse_message(message)
        if isinstance(parsed, Keepalive):
            batch.wants_reply = batch.wants_reply or parsed.wants_reply
        return parsed.server_end

    def _end_of_copy(self, batch: Batch) -> None:
        """The COPY ended: the timeline has, or something went wrong."""
        result = self._connection.get_result()
        if result is None or result.status in (
            pq.ExecStatus.COPY_IN,
            pq.ExecStatus.COPY_BOTH,
            pq.ExecStatus.TUPLES_OK,
        ):
            batch.is_end = True
            return
        if result.status == pq.ExecStatus.COMMAND_OK:
            raise PostgresUnreachableError(
                f"{self.where} ended the stream: it shuts down",
                hint="it is asked again when it is back",
            )
        raise self._failed(result)

    def _next_timeline(self, result: pq.abc.PGresult) -> NextTimeline:
        if result.status != pq.ExecStatus.TUPLES_OK or result.ntuples != 1:
            if result.status == pq.ExecStatus.COMMAND_OK:
                raise PostgresUnreachableError(f"{self.where} ended the stream: it shuts down")
            raise self._failed(result)
        timeline, begins_at = (result.get_value(0, column) or b"" for column in (0, 1))
        while self._connection.get_result() is not None:
            pass
        return NextTimeline(int(timeline), Lsn.parse(bytes(begins_at).decode("ascii")))

    def _row(self, command: str) -> tuple[str, ...]:
        result = self._run(command)
        values = (result.get_value(0, column) for column in range(result.nfields))
        return tuple("" if value is None else bytes(value).decode() for value in values)

    def _run(self, command: str) -> pq.abc.PGresult:
        self._send(command)
        result = self._result()
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise self._failed(result)
        while self._connection.get_result() is not None:
            pass
        return result

    def _send(self, command: str) -> None:
        try:
            self._connection.send_query(command.encode())
            self._flush()
        except psycopg.Error as error:
            raise self._lost(error) from error

    def _result(self) -> pq.abc.PGresult:
        """The next result, waited for within bounds."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        try:
            while self._connection.is_busy():
                if not self._wait(deadline - time.monotonic()):
                    raise PostgresUnreachableError(
                        f"{self.where} did not answer within {_ANSWER_SECONDS:g} s"
                    )
                self._connection.consume_input()
            result = self._connection.get_result()
        except psycopg.Error as error:
            raise self._lost(error) from error
        if result is None:
            raise PostgresUnreachableError(f"the session with {self.where} ended without an answer")
        return result

    def _flush(self) -> None:
        while self._connection.flush():
            poller = select.poll()
            poller.register(self._connection.socket, select.POLLIN | select.POLLOUT)
            if not poller.poll(_ANSWER_SECONDS * 1000):
                raise PostgresUnreachableError(f"{self.where} does not take what it is sent")
            self._connection.consume_input()

    def _wait(self, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self._connection.socket, select.POLLIN)
        return bool(poller.poll(max(0.0, seconds) * 1000))

    def _lost(self, error: psycopg.Error) -> PostgresError:
        return PostgresUnreachableError(
            f"the replication session with {self.where} was lost: {_line(str(error))}",
            hint="it is made again when the server is up; its log says why it ended",
        )

    def _failed(self, result: pq.abc.PGresult) -> PgrecallError:
        field = result.error_field(pq.DiagnosticField.SQLSTATE)
        state = bytes(field).decode() if field else ""
        message = _line(result.get_error_message())
        if state == _FILE_IS_GONE:
            return WalMissingError(f"{self.where}: {message}")
        if state in (_SLOT_IN_USE, _SLOT_STATE, _UNKNOWN_SLOT, "42710"):
            hint = "pgrecall wal slots shows the slots of the server, and who uses them"
            refused = SlotError(f"{self.where}: {message}", hint=hint)
            # A walsender whose receiver was killed goes away by itself.
            refused.retryable = state == _SLOT_IN_USE
            return refused
        if state.startswith(("57P", "08")) or not state:
            return PostgresUnreachableError(f"the session with {self.where} was lost: {message}")
        if state in _REFUSALS:
            return PostgresRightsError(f"{self.where} refuses: {message}", hint=_RIGHTS_HINT)
        return PostgresError(f"{self.where} answered with an error: {message} (SQLSTATE {state})")


_RIGHTS_HINT = (
    "the role needs the attribute REPLICATION, and pg_hba.conf a line for the database replication"
)


def _connect(
    server: ServerSettings, application_name: str, where: str, environment: Mapping[str, str]
) -> pq.abc.PGconn:
    options = {
        "replication": "true",
        "port": str(server.port),
        "application_name": application_name,
        "client_encoding": "utf8",
        "keepalives": "1",
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
    }
    password = resolve_secret(server.password, environment)
    for key, given in (("host", server.host), ("user", server.user), ("password", password)):
        if given:
            options[key] = given
    text = psycopg.conninfo.make_conninfo("", **options)
    try:
        connection = pq.PGconn.connect_start(text.encode())
    except psycopg.Error as error:
        raise PostgresUnreachableError(f"cannot connect to {where}: {_line(str(error))}") from error
    try:
        _finish_connecting(connection, where)
        connection.nonblocking = 1
    except BaseException:
        connection.finish()
        raise
    return connection


def _finish_connecting(connection: pq.abc.PGconn, where: str) -> None:
    deadline = time.monotonic() + _CONNECT_SECONDS
    wanted = select.POLLOUT
    while connection.status != pq.ConnStatus.BAD:
        poller = select.poll()
        poller.register(connection.socket, wanted)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise PostgresUnreachableError(
                f"cannot connect to {where} for replication: no answer in {_CONNECT_SECONDS:g} s",
                hint="are host and port right, and does a firewall let it through?",
            )
        polled = connection.connect_poll()
        if polled == pq.PollingStatus.OK:
            return
        if polled == pq.PollingStatus.FAILED:
            break
        wanted = select.POLLIN if polled == pq.PollingStatus.READING else select.POLLOUT
    message = " ".join(connection.get_error_message().split())
    words = ("authentication failed", "no password supplied", "pg_hba.conf", "permission denied")
    if any(word in message for word in words) or "must be superuser or replication" in message:
        raise PostgresRightsError(
            f"{where} refuses the replication session: {message}", hint=_RIGHTS_HINT
        )
    raise PostgresUnreachableError(
        f"cannot connect to {where} for replication: {message}",
        hint="is PostgreSQL running, and are host (or socket directory) and port right?",
    )


def _quoted(name: str) -> str:
    """A slot's name as the replication grammar wants it (it may begin with a digit)."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _parse_size(text: str) -> int:
    """``16MB``, ``1GB`` as SHOW prints a size; bytes."""
    for unit, factor in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10), ("B", 1)):
        if text.endswith(unit):
            return int(text[: -len(unit)]) * factor
    return int(text)


def _line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else "no message"
