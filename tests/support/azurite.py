"""Azure's object storage for tests: Azurite, from npm, pinned by azurite/package-lock.json.

Needs Node.js and npm. Installed once into ``.cache/azurite`` of the checkout, or
where ``PGRECALL_TEST_CACHE`` points.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from pgrecall.settings.sections import RepositorySettings
from tests.support.object_servers import end_process, end_with_parent, free_ports

ACCOUNT = "pgrecalltests"
ACCOUNT_KEY = base64.b64encode(b"an account key of the tests, 32+").decode()
CONTAINER = "backups"

_HERE = Path(__file__).parent / "azurite"
_API_VERSION = "2021-12-02"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Azurite:
    """A running server with an empty container ``CONTAINER``."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """Where the settings' secret is found."""
        return {"THE_ACCOUNT_KEY": ACCOUNT_KEY}

    def settings(self, **changes: str) -> RepositorySettings:
        """Settings of a repository in the container."""
        return RepositorySettings(
            name="azure",
            store="azure",
            bucket=CONTAINER,
            account=ACCOUNT,
            account_key="env:THE_ACCOUNT_KEY",
            endpoint=f"http://127.0.0.1:{self.port}/{ACCOUNT}",
            allow_http=True,
            retries=0,
            timeout_seconds=20.0,
        ).replace(**changes)


@contextlib.contextmanager
def azurite_server(directory: Path) -> Iterator[Azurite]:
    """Start Azurite with its data below ``directory``; installs it where that was not done yet."""
    program = install_azurite()
    (port,) = free_ports(1)
    log = directory / "azurite.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port),
                "--location", str(directory), "--disableTelemetry", "--silent",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(directory),
                "AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}",
            },
            preexec_fn=end_with_parent,  # noqa: PLW1509  # one prctl(2), no locks
        )  # fmt: skip
    try:
        _create_container(port, process, log)
        yield Azurite(port, process)
    finally:
        end_process(process)


def install_azurite() -> Path:
    """The program; installed as the lock file says where it is missing or of another version."""
    root = Path(os.environ.get("PGRECALL_TEST_CACHE", _HERE.parents[2] / ".cache")) / "azurite"
    program = root / "node_modules" / ".bin" / "azurite-blob"
    lock = (_HERE / "package-lock.json").read_bytes()
    stamp = root / "installed"
    if program.exists() and stamp.exists() and stamp.read_bytes() == lock:
        return program
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("no `npm`: the tests of Azure need Node.js 20 or newer, and npm")
    root.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copyfile(_HERE / name, root / name)
    done = subprocess.run([npm, "ci"], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"npm ci failed in {root}:\n{done.stdout}\n{done.stderr}")
    stamp.write_bytes(lock)
    return program


def _create_container(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Create the container, as soon as the server answers."""
    deadline = time.monotonic() + _START_SECONDS
    answer = "no answer"
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            path = f"/{ACCOUNT}/{CONTAINER}?restype=container"
            connection.request("PUT", path, headers=_signed_headers())
            response = connection.getresponse()
            answer = f"{response.status} {response.read()[:300]!r}"
            if response.status == 201:
                return
        except OSError as error:
            answer = str(error)
        finally:
            connection.close()
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"Azurite did not start ({answer})\n{tail}")


def _signed_headers() -> dict[str, str]:
    """Of "Create Container", by Shared Key (Microsoft: Authorize with Shared Key)."""
    date = formatdate(usegmt=True)
    resource = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    lines = ["PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{_API_VERSION}", resource]
    digest = hmac.digest(base64.b64decode(ACCOUNT_KEY), "\n".join(lines).encode(), hashlib.sha256)
    return {
        "x-ms-date": date,
        "x-ms-version": _API_VERSION,
        "Content-Length": "0",
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
    }
