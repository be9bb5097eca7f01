"""A proxy in front of the S3 server that notes requests, and can delay, cut or falsify them."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.support.certificates import Certificates


class Answer(NamedTuple):
    """What the proxy answers by itself; ``tag`` is the ETag, empty for none."""

    status: int
    tag: str = ""
    content: bytes = b""

    def headers(self) -> list[tuple[str, str]]:
        """Those that a look at an object must have."""
        found = [("Last-Modified", "Sun, 22 Nov 2026 20:46:38 GMT")]
        return [*found, ("ETag", self.tag)] if self.tag else found


class RecordingProxy(ThreadingHTTPServer):
    """Passes requests on to ``target``; ``requests`` holds ``METHOD path`` in order of arrival.

    ``before`` is called with each before it is passed on: it may wait, or return
    False to cut the connection. ``falsify`` is given each with its body, and returns
    the body to pass on, or an Answer for which the server is not asked. ``after`` is
    called when the server has answered: False cuts the connection.
    ``delay_seconds`` stands for the way there and back.
    ``most_at_once`` counts the requests that were under way at one time, of
    those for which ``counts`` is true.
    """

    daemon_threads = True

    def __init__(self, target: str, certificates: Certificates | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self._tls: ssl.SSLContext | None = None
        if certificates is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificates.certificate, certificates.key)
            self.endpoint = f"https://localhost:{self.server_address[1]}"
        self.requests: list[str] = []
        self.before: Callable[[str], bool] = lambda request: True
        self.falsify: Callable[[str, bytes], bytes | Answer] = lambda request, body: body
        self.after: Callable[[str], bool] = lambda request: True
        self.counts: Callable[[str], bool] = lambda request: True
        self.delay_seconds = 0.0
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def finish_request(self, request: object, client_address: object) -> None:
        """In the thread of the connection: speak TLS first, if it is spoken here."""
        if self._tls is None:
            super().finish_request(request, client_address)  # type: ignore[arg-type]
            return
        assert isinstance(request, socket.socket)
        with self._tls.wrap_socket(request, server_side=True) as spoken:
            super().finish_request(spoken, client_address)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def noted(self, request: str) -> Iterator[None]:
        """Note a request, from here to the end of the block."""
        is_counted = self.counts(request)
        with self._lock:
            self.requests.append(request)
            self._at_once += is_counted
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= is_counted

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is what some tests want."""


@contextlib.contextmanager
def recording_proxy(
    target: str, certificates: Certificates | None = None
) -> Iterator[RecordingProxy]:
    """Run a proxy in a thread for the time of the block; with certificates it speaks TLS."""
    proxy = RecordingProxy(target, certificates)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RecordingProxy

    def _pass_on(self) -> None:
        request = f"{self.command} {self.path}"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.noted(request):
            if not self.server.before(request):
                self.close_connection = True
                return
            time.sleep(self.server.delay_seconds)
            passed = self.server.falsify(request, body)
            if isinstance(passed, Answer):
                self._answer(passed.status, passed.headers())
                self._finish(passed.content, str(len(passed.content)))
                return
            answer, content = self._ask(passed)
            if not self.server.after(request):
                self.close_connection = True
                return
        # No longer under way: with the answer in hand, the client may ask for the next.
        self._answer(answer.status, answer.getheaders())
        self._finish(content, answer.getheader("Content-Length"))

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() != "content-length":
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)

    def _finish(self, content: bytes, stated: str | None) -> None:
        """The length (of a HEAD: the one that the server ``stated``), and the body."""
        length = stated if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        """Tests read ``requests``."""
