"""Every kind of store there is, behind one fixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.store.base import Store
from pgrecall.store.encrypted import EncryptedStore
from pgrecall.store.faulty import FaultyStore
from pgrecall.store.local import LocalStore
from pgrecall.store.memory import MemoryStore
from pgrecall.store.opening import open_store
from pgrecall.store.retry import Backoff, RetryStore
from tests.support.encryption import one_key_ring

KINDS = [
    "memory",
    "local",
    "s3",
    "faulty-memory",
    "retry-faulty-memory",
    "retry-faulty-local",
    "encrypted-memory",
    "encrypted-local",
    "encrypted-s3",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "azure: needs Node.js (Azurite); a tier of its own")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    kind: str = request.param
    if kind.startswith("encrypted-"):
        inner = _plain(kind.removeprefix("encrypted-"), request, tmp_path)
        return EncryptedStore(inner, one_key_ring())
    return _plain(kind, request, tmp_path)


def _plain(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
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
