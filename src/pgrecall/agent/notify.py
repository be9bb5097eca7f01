"""Telling systemd how it is: a datagram to the socket that $NOTIFY_SOCKET names (sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

_log = logging.getLogger(__name__)


class Notifier:
    """Says READY, RELOADING, STOPPING and WATCHDOG to systemd; without systemd, nothing."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # An abstract socket is written with an @ for the NUL byte that it begins with.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self.watchdog_seconds = _watchdog_seconds(environment)

    def ready(self, status: str) -> None:
        """All that was to be started is started; ``status`` is shown by systemctl."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self, monotonic_microseconds: int) -> None:
        """The configuration is read again; ``ready`` says that it is done."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_microseconds}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """To be said at least every ``watchdog_seconds``, when that is not 0."""
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(text.encode(), self._address)
        except OSError as error:
            _log.warning("systemd cannot be told: %s", error.strerror)


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """WATCHDOG_USEC, when it is meant for this process (sd_watchdog_enabled(3)); else 0."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    meant_for = environment.get("WATCHDOG_PID", "")
    if not microseconds.isdigit() or (meant_for and meant_for != str(os.getpid())):
        return 0.0
    return int(microseconds) / 1e6
