"""Where a tool has its repository: a directory, or a prefix of a bucket in a real S3 server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from tests.support.certificates import make_certificates
from tests.support.object_servers import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    S3Server,
    s3_server,
    weed_binary,
)

from pgrecall.settings import RepositorySettings
from pgrecall.store.opening import open_store

_REGION = "us-east-1"
_PREFIXES = count(1)
# What SeaweedFS may hold as the tests start it: 64 volumes of 256 MB, one in four left free.
S3_CAPACITY_BYTES = 12_000_000_000


class RepositoryPlace(ABC):
    """Says both tools where to write; ``renew`` makes it another, empty one."""

    @abstractmethod
    def renew(self) -> None:
        """From now on an empty place; what the one before held is left or gone."""

    @abstractmethod
    def settings(self) -> RepositorySettings:
        """The repository ``main`` of pgrecall."""

    @abstractmethod
    def pgbackrest(self) -> dict[str, str]:
        """The same for pgBackRest."""

    @abstractmethod
    def bytes_below(self, path: str) -> int:
        """Bytes that are stored below a path of the repository."""

    def toml(self) -> str:
        """``settings`` as the section of pgrecall's configuration."""
        settings, default = self.settings(), RepositorySettings(name="main")
        lines = [
            f"{name} = {json.dumps(getattr(settings, name))}"
            for name in settings.fields
            if getattr(settings, name) != getattr(default, name)
        ]
        return "\n".join(["[repositories.main]", *lines, ""])


class LocalPlace(RepositoryPlace):
    """A directory; the tool removes it with everything else that is its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def renew(self) -> None:
        self._directory.mkdir(exist_ok=True)

    def settings(self) -> RepositorySettings:
        return RepositorySettings(name="main", store="local", path=str(self._directory))

    def pgbackrest(self) -> dict[str, str]:
        return {"repo1-path": str(self._directory)}

    def bytes_below(self, path: str) -> int:
        return bytes_below(self._directory / path)


class EncryptedPlace(LocalPlace):
    """A directory whose repository is encrypted, by a passphrase beside it."""

    def renew(self) -> None:
        super().renew()
        secret = self._secret()
        secret.write_text("of the benchmark\n", encoding="utf-8")
        secret.chmod(0o600)

    def settings(self) -> RepositorySettings:
        return (
            super().settings().replace(encryption="passphrase", passphrase=f"file:{self._secret()}")
        )

    def _secret(self) -> Path:
        return self._directory.with_name("passphrase")


class S3Place(RepositoryPlace):
    """A prefix in the bucket of a server; what a former prefix holds stays until the server ends.

    Both tools talk TLS and check the server's certificate.
    """

    def __init__(self, endpoint: str, secrets: Path, authority: Path) -> None:
        self._endpoint = endpoint
        self._secrets = secrets
        self._authority = authority
        self._prefix = ""

    def renew(self) -> None:
        self._prefix = f"run-{next(_PREFIXES)}"

    def settings(self) -> RepositorySettings:
        return RepositorySettings(
            name="main",
            store="s3",
            bucket=BUCKET,
            prefix=self._prefix,
            endpoint=self._endpoint,
            region=_REGION,
            path_style=True,
            ca_file=str(self._authority),
            access_key=f"file:{self._secrets}/access",
            secret_key=f"file:{self._secrets}/secret",
        )

    def pgbackrest(self) -> dict[str, str]:
        host, _, port = self._endpoint.removeprefix("https://").partition(":")
        return {
            "repo1-type": "s3",
            "repo1-path": f"/{self._prefix}",
            "repo1-s3-endpoint": host,
            "repo1-storage-port": port,
            "repo1-storage-ca-file": str(self._authority),
            "repo1-s3-bucket": BUCKET,
            "repo1-s3-region": _REGION,
            "repo1-s3-key": ACCESS_KEY,
            "repo1-s3-key-secret": SECRET_KEY,
            "repo1-s3-uri-style": "path",
        }

    def bytes_below(self, path: str) -> int:
        store = open_store(self.settings(), os.environ, is_anchored=False)
        return sum(found.size for found in store.list(f"{path}/"))


class S3Places:
    """A running server, and prefixes in it."""

    def __init__(self, server: S3Server, secrets: Path, authority: Path) -> None:
        self._server = server
        self._secrets = secrets
        self._authority = authority

    @property
    def pid(self) -> int:
        """The server's process."""
        if self._server.process is None:
            raise RuntimeError("the S3 server does not run")
        return self._server.process.pid

    def new(self) -> S3Place:
        """For a tool of its own."""
        return S3Place(self._server.https_endpoint, self._secrets, self._authority)


@contextlib.contextmanager
def s3_places(directory: Path) -> Iterator[S3Places]:
    """Start SeaweedFS with TLS on 127.0.0.1, its data below ``directory``; end it at the end."""
    certificates = make_certificates(directory / "tls")
    secrets = directory / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "access").write_text(ACCESS_KEY)
    (secrets / "secret").write_text(SECRET_KEY)
    with s3_server(
        directory / "s3", certificate=certificates.certificate, key=certificates.key
    ) as server:
        yield S3Places(server, secrets, certificates.authority)


def s3_version() -> str:
    """One line of SeaweedFS about itself."""
    done = subprocess.run(
        [weed_binary(), "version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return f"SeaweedFS {' '.join(done.stdout.split()[1:3])}"


def bytes_below(directory: Path) -> int:
    """Bytes of all files of a directory."""
    return sum(
        os.lstat(os.path.join(root, name)).st_size
        for root, _, files in os.walk(directory)
        for name in files
    )
