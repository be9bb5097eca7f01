"""Messages of physical replication inside COPY BOTH: parsed and made, without any I/O.

Source: PostgreSQL's documentation, "Streaming Replication Protocol"; all numbers
are big endian. Times are microseconds since 2000-01-01 00:00:00 UTC.
"""

from __future__ import annotations

import struct

from pgrecall.errors import ReceiveError
from pgrecall.model.lsn import Lsn

Buffer = bytes | memoryview

_WAL = ord("w")
_KEEPALIVE = ord("k")
_WAL_HEADER = struct.Struct("!xQQq")
_KEEPALIVE_BODY = struct.Struct("!xQqB")
WAL_HEADER_BYTES = _WAL_HEADER.size
_STATUS = struct.Struct("!cQQQqB")

NO_POSITION = 0
"""An LSN that says nothing (InvalidXLogRecPtr): a receiver that applies nothing reports it."""


class WalData:
    """A piece of WAL: ``data`` begins at ``start``; ``server_end`` is how far the server is."""

    __slots__ = ("data", "server_end", "start")

    def __init__(self, start: int, server_end: int, data: Buffer) -> None:
        self.start = Lsn(start)
        self.server_end = Lsn(server_end)
        self.data = data


class Keepalive:
    """The server is alive, has written up to ``server_end``, and may want an answer at once."""

    __slots__ = ("server_end", "wants_reply")

    def __init__(self, server_end: int, wants_reply: bool) -> None:
        self.server_end = Lsn(server_end)
        self.wants_reply = wants_reply


def wal_position(message: Buffer) -> tuple[int, int] | None:
    """Where the WAL of a message begins, and how far the server is; None: it holds no WAL.

    The WAL itself is what follows its first ``WAL_HEADER_BYTES``. For who takes
    thousands of messages a second; ``parse_message`` says the same of any message.
    """
    if len(message) < WAL_HEADER_BYTES or message[0] != _WAL:
        return None
    start, end, _ = _WAL_HEADER.unpack_from(message)
    return start, end


def parse_message(message: Buffer) -> WalData | Keepalive:
    """One CopyData message of the server; the WAL is not copied.

    Raises ReceiveError when it is neither WAL nor a keepalive.
    """
    wal = wal_position(message)
    if wal is not None:
        return WalData(*wal, message[WAL_HEADER_BYTES:])
    kind = message[0] if len(message) else None
    if kind == _KEEPALIVE and len(message) >= _KEEPALIVE_BODY.size:
        end, _, reply = _KEEPALIVE_BODY.unpack_from(message)
        return Keepalive(end, bool(reply))
    raise ReceiveError(
        f"the server sent a replication message of kind {kind!r} and {len(message)} bytes",
        hint="is this PostgreSQL 13 to 18, without anything in between?",
    )


def standby_status(flushed: int, *, sent_at: int, wants_reply: bool = False) -> bytes:
    """The message that reports what is durable.

    Written equals flushed, so that nobody takes for safe what is only in a cache;
    applied is left open (fact 9). ``sent_at``: microseconds since 2000.
    """
    return _STATUS.pack(b"r", flushed, flushed, NO_POSITION, sent_at, int(wants_reply))
