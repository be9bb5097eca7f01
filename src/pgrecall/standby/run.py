"""Wait until a standby that was started streams, as both ends see it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

import msgspec

from pgrecall.errors import PostgresUnreachableError
from pgrecall.further_errors import StandbyError
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.upstream import connect_upstream, receiver_state, sender_of

_POLL_SECONDS = 0.1


class Streaming(msgspec.Struct, frozen=True, kw_only=True):
    """A standby that streams. ``lag_bytes``: what the primary has written and it not replayed."""

    application_name: str
    sync_state: str
    replayed_to: str
    lag_bytes: int


class ConnectStandby(Protocol):
    """Opens a session with the standby."""

    def __call__(self, purpose: str) -> Connection:
        """Raises PostgresUnreachableError, or RecoveryError when it has ended."""
        ...


def wait_streaming(
    standby: ConnectStandby,
    primary: Mapping[str, str],
    *,
    application_name: str,
    wait_seconds: float,
) -> Streaming:
    """Returns when the standby's receiver streams and the primary's sender says so, too.

    Raises StandbyError when they do not within ``wait_seconds``; RecoveryError
    when the standby has ended.
    """
    deadline = time.monotonic() + wait_seconds
    seen = "the standby has no WAL receiver"
    with connect_upstream(primary, "watching the standby") as upstream:
        while True:
            state = _receiver(standby)
            if state == "streaming":
                sender = sender_of(upstream, application_name)
                if sender is not None:
                    return Streaming(
                        application_name=application_name,
                        sync_state=sender.sync_state,
                        replayed_to=sender.replayed_to,
                        lag_bytes=sender.lag_bytes,
                    )
                seen = f"{upstream.where} has no sender to {application_name} that streams"
            elif state:
                seen = f"the standby's WAL receiver is {state}"
            if time.monotonic() > deadline:
                raise StandbyError(
                    f"the standby does not stream after {wait_seconds:g} s: {seen}",
                    hint="it runs, and goes on trying; its log says why it does not",
                )
            # Two servers: neither tells anybody when it begins to stream.
            time.sleep(_POLL_SECONDS)


def _receiver(standby: ConnectStandby) -> str:
    try:
        with standby("asking for its WAL receiver") as connection:
            return receiver_state(connection)
    except PostgresUnreachableError:
        return ""  # it ends or restarts: the next look tells, until the time is over
