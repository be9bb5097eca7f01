"""The component that answers /metrics and /healthz, on a port of this host or at a socket."""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from pgrecall.agent.component import Facts
from pgrecall.agent.metrics import AgentCollector, exposition
from pgrecall.agent.supervisor import ComponentStatus
from pgrecall.errors import AgentPlaceError, SettingsError

_log = logging.getLogger(__name__)

NAME = "metrics"
_LOOPBACK = "127.0.0.1"
# More than that at once are not scrapers; they wait for their turn.
_MOST_ANSWERS = 8
_CLIENT_SECONDS = 5.0


def parse_address(text: str) -> tuple[str, int] | str:
    """``HOST:PORT``, ``:PORT`` or ``[IPv6]:PORT`` as a pair, a path as it is; raises SettingsError.

    Without a host it is this host's own address, which nobody else can reach.
    """
    if text.startswith("/"):
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise SettingsError(
            f"[agent] metrics_address: {text!r} is neither HOST:PORT nor the path of a socket",
            hint='for example ":9187", "0.0.0.0:9187" or "/run/pgrecall/metrics.sock"',
        )
    return host.removeprefix("[").removesuffix("]") or _LOOPBACK, int(port)


class MetricsServer:
    """Serves ``collector`` and the health of ``statuses`` at ``address``; a Component."""

    def __init__(
        self,
        address: str,
        collector: AgentCollector,
        statuses: Callable[[], Sequence[ComponentStatus]],
    ) -> None:
        """``address`` as [agent] metrics_address; raises SettingsError."""
        self._address = parse_address(address)
        self._collector = collector
        self._statuses = statuses
        self._bound = ""

    @property
    def name(self) -> str:
        """``metrics``."""
        return NAME

    def facts(self) -> Facts:
        """``address``: where it answers; None while it does not."""
        return {"address": self._bound or None}

    def run(self, stop: threading.Event) -> None:
        """Answer until ``stop``; raises AgentPlaceError when the address cannot be had."""
        server = self._bind()
        thread = threading.Thread(
            target=server.serve_forever, args=(0.2,), name="metrics-answers", daemon=True
        )
        thread.start()
        try:
            stop.wait()
        finally:
            self._bound = ""
            server.shutdown()
            server.server_close()
            thread.join()
            if isinstance(self._address, str):
                with suppress(FileNotFoundError):
                    os.unlink(self._address)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for a path."""
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, exposition(self._collector)
        if path == "/healthz":
            ill = [one for one in self._statuses() if one.state != "running"]
            text = "".join(f"{one.name}: {one.state} {one.last_error}\n" for one in ill) or "ok\n"
            return 503 if ill else 200, "text/plain; charset=utf-8", text.encode()
        return 404, "text/plain; charset=utf-8", b"there is /metrics and /healthz\n"

    def _bind(self) -> _Server:
        try:
            if isinstance(self._address, str):
                _remove_dead_socket(self._address)
                server: _Server = _UnixServer(self._address, self)
                os.chmod(self._address, 0o660)
            elif ":" in self._address[0]:
                server = _Server6(self._address, self)
            else:
                server = _Server(self._address, self)
        except OSError as error:
            raise AgentPlaceError(
                f"metrics cannot be served at {self._shown(self._address)}: {error.strerror}",
                hint="choose another [agent] metrics_address, or end who has it",
            ) from error
        self._bound = self._shown(server.server_address)
        return server

    @staticmethod
    def _shown(address: Any) -> str:
        return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_SECONDS

    def do_GET(self) -> None:
        """Answer one request."""
        status, kind, body = self.server.owner.answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        """The client's address; that of a socket's client is empty."""
        return str(self.client_address)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not logged."""


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: Any, owner: MetricsServer) -> None:
        self.owner = owner
        self._turns = threading.BoundedSemaphore(_MOST_ANSWERS)
        super().__init__(address, _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._turns:
            super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is no event; anything else is a bug."""
        del request, client_address
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            _log.error("a scrape failed", exc_info=error)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _UnixServer(_Server):
    address_family = socket.AF_UNIX
    allow_reuse_address = False


def _remove_dead_socket(path: str) -> None:
    """Remove the socket of an agent that was killed; one that somebody answers at stays."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
