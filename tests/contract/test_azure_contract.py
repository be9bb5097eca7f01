"""The same contract, asked of Azure's protocol as Azurite speaks it. Needs Node.js."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pgrecall.errors import StoreAbsentError, StoreRefusedError
from pgrecall.store.base import Store
from pgrecall.store.opening import open_store
from tests.contract.test_store_contract import *  # noqa: F403  # the tests themselves
from tests.support.azurite import Azurite, azurite_server

pytestmark = pytest.mark.azure


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with azurite_server(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def store(azurite: Azurite) -> Store:
    settings = azurite.settings(prefix=f"tests/{os.urandom(6).hex()}")
    return open_store(settings, azurite.environment, is_anchored=False)


def test_a_missing_container_is_no_empty_store(azurite: Azurite) -> None:
    store = open_store(azurite.settings(bucket="missing"), azurite.environment)
    for call in (
        lambda: store.head("a/b"),
        lambda: store.read("a/b"),
        lambda: list(store.list("a/")),
        lambda: store.children("a/"),
        lambda: store.put("a/b", [b"x"]),
    ):
        with pytest.raises(StoreAbsentError):
            call()


def test_a_wrong_account_key_is_refused_and_not_repeated(azurite: Azurite) -> None:
    wrong = "d3Jvbmcga2V5IG9mIHRoZSB0ZXN0cyB3aXRoIDMyKys="
    store = open_store(azurite.settings(), {"THE_ACCOUNT_KEY": wrong})
    with pytest.raises(StoreRefusedError) as caught:
        store.put("a/b", [b"x"])
    assert wrong not in str(caught.value) + caught.value.hint
