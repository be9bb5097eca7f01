"""Every kind of store there is, behind one fixture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.base import Store
from pgrecall.store.faulty import FaultyStore
from pgrecall.store.local import LocalStore
from pgrecall.store.memory import MemoryStore
from pgrecall.store.opening import open_store
from pgrecall.store.retry import Backoff, RetryStore
from tests.support.certificates import Certificates, make_certificates
from tests.support.object_servers import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, s3_server

KINDS = [
    "memory",
    "local",
    "s3",
    "faulty-memory",
    "retry-faulty-memory",
    "retry-faulty-local",
]

S3Settings = Callable[..., RepositorySettings]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "azure: needs Node.js (Azurite); a tier of its own")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[S3Server]:
    directory = tmp_path_factory.mktemp("s3")
    with s3_server(directory, certificate=certificates.certificate, key=certificates.key) as server:
        yield server


@pytest.fixture(scope="session")
def secret_environment() -> dict[str, str]:
    return {"THE_ACCESS_KEY": ACCESS_KEY, "THE_SECRET_KEY": SECRET_KEY}


@pytest.fixture
def s3_settings(s3: S3Server) -> S3Settings:
    """Settings of a repository in the S3 server, with a prefix of its own; changes by keyword."""
    settings = RepositorySettings(
        name="s3",
        store="s3",
        bucket=BUCKET,
        prefix=f"tests/{os.urandom(6).hex()}",
        endpoint=s3.endpoint,
        region="us-east-1",
        path_style=True,
        allow_http=True,
        access_key="env:THE_ACCESS_KEY",
        secret_key="env:THE_SECRET_KEY",
        retries=0,
        timeout_seconds=20.0,
    )
    return settings.replace


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    kind: str = request.param
    if kind == "s3":
        settings = request.getfixturevalue("s3_settings")()
        environment = request.getfixturevalue("secret_environment")
        return open_store(settings, environment, is_anchored=False)
    if kind.endswith("local"):
        inner: Store = LocalStore(str(tmp_path))
    else:
        inner = MemoryStore()
    if "faulty" in kind:
        inner = FaultyStore(inner)
    if "retry" in kind:
        inner = RetryStore(inner, Backoff(retries=3, total_seconds=10))
    return inner
