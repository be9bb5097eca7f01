"""A tail that is in the way when it is stored again: taken for ours only when it is whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pgrecall.codec.compression import make_frame_encoder
from pgrecall.errors import WalConflictError
from pgrecall.repository.wal_objects import WalContent, WalHeader, WalObjectWriter
from pgrecall.store.local import LocalStore
from pgrecall.wal.receive_upload import _is_stored
from pgrecall.wal.targets import Target

KEY = "servers/main/wal/0001/tails/one"
RAW = bytes(range(256)) * 400
RAW_KEY = bytes(32)


def header_of(raw: bytes, index: bytes = b"index") -> tuple[WalHeader, WalContent]:
    return WalHeader("000000010000000000000003/one", "tail"), WalContent(raw, index, RAW_KEY)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(str(tmp_path))
    assert WalObjectWriter(*header_of(RAW), make_frame_encoder("none", 0)).write(store, KEY)
    return store


def ask(store: LocalStore, raw: bytes = RAW) -> bool:
    identity = SimpleNamespace(raw_key=lambda: RAW_KEY)
    target = SimpleNamespace(archive=SimpleNamespace(store=store, identity=identity))
    header, content = header_of(raw)
    WalObjectWriter(header, content, make_frame_encoder("none", 0))
    return _is_stored(cast("Target", target), KEY, header)


def test_the_same_is_stored_and_another_stays(store: LocalStore) -> None:
    assert ask(store)
    with pytest.raises(WalConflictError):
        ask(store, RAW + b"more")
    assert store.head(KEY) is not None


@pytest.mark.parametrize("where", ["frames", "index", "end"])
def test_a_damaged_one_makes_room(store: LocalStore, tmp_path: Path, where: str) -> None:
    """Its header is right: only who reads everything finds it out."""
    path = tmp_path / KEY
    content = bytearray(path.read_bytes())
    at = {"frames": len(content) // 2, "index": content.rindex(b"index"), "end": -1}[where]
    content[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    assert not ask(store)
    assert store.head(KEY) is None
