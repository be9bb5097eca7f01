"""A proxy in front of the S3 server that notes every request, and can delay or cut them."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class RecordingProxy(ThreadingHTTPServer):
    """Passes requests on to ``target``; ``requests`` holds ``METHOD path`` in order of arrival.

    ``before`` is called with each before it is passed on: it may wait, or return
    False to cut the connection. ``delay_seconds`` stands for the way there and back.
    ``most_at_once`` counts the requests that were under way at one time, of
    those for which ``counts`` is true.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[str] = []
        self.before: Callable[[str], bool] = lambda request: True
        self.counts: Callable[[str], bool] = lambda request: True
        self.delay_seconds = 0.0
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

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
def recording_proxy(target: str) -> Iterator[RecordingProxy]:
    """Run a proxy in a thread for the time of the block."""
    proxy = RecordingProxy(target)
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
            connection = http.client.HTTPConnection(self.server.target, timeout=60)
            try:
                connection.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
        # No longer under way: with the answer in hand, the client may ask for the next.
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        """Tests read ``requests``."""
