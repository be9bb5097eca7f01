"""Fixtures of a real S3 server, for every directory of tests; a plugin of tests/conftest.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from pgrecall.settings.sections import RepositorySettings
from tests.support.certificates import Certificates, make_certificates
from tests.support.object_servers import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, s3_server

S3Settings = Callable[..., RepositorySettings]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority of our own, and a certificate for localhost that it has signed."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[S3Server]:
    """One server for the whole session; who wants to stop one starts another."""
    directory = tmp_path_factory.mktemp("s3")
    with s3_server(directory, certificate=certificates.certificate, key=certificates.key) as server:
        yield server


@pytest.fixture(scope="session")
def secret_environment() -> dict[str, str]:
    """Where ``s3_settings`` finds its secrets."""
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
